"""Run datatrove pipelines here, on Slurm or on Ray: the same stages, one flag."""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from loguru import logger
from tqdm import tqdm

from knowlm.cli import end_with_parent
from knowlm.files import read_json, write_json

CHECKOUT = Path(__file__).resolve().parents[1]
MOST_JOBS = 1000  # in one Slurm array: its default limit is 1001


@dataclass
class Stage:
    """A datatrove pipeline and into how many tasks its work is cut; stages run one after another."""

    name: str
    pipeline: list
    tasks: int = 1


def run_stages(stages: Sequence[Stage], args: argparse.Namespace, logging_dir: Path) -> bool:
    """Run what isn't done yet; True when all is done, False when it was only handed to Slurm.

    logging_dir: absolute, seen by all machines. LOGGING_DIR/STAGE/completions holds a file for every task that is done,
    which a repeated command leaves out, and .../logs what each task logged.
    """
    logger.remove()  # datatrove logs to its files alone
    if args.executor == "slurm":
        return not submit(stages, args, logging_dir)
    for stage in stages:
        common: dict[str, Any] = {
            "tasks": stage.tasks,
            "logging_dir": str(logging_dir / stage.name),
        }
        if args.executor == "local":
            LocalExecutor(stage.pipeline, **common, workers=args.num_workers or 1).run()
        else:
            run_on_ray(RayPipelineExecutor(here(stage.pipeline), **common, **cluster_settings(args)))
    return True


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's, but ends when a worker is killed: its pool of processes would wait for that one forever."""

    def run(self) -> None:
        name = Path(self.logging_dir.path).name
        ranks = self.get_incomplete_ranks()
        if not ranks:
            return
        self.save_executor_as_json()
        workers = min(self.workers, len(ranks))
        with ProcessPoolExecutor(workers, get_context("fork"), start_worker, (self, os.getpid())) as pool:
            futures = [pool.submit(run_task, rank) for rank in ranks]
            try:
                for future in tqdm(as_completed(futures), name, len(ranks), unit="task", disable=None):
                    if message := future.result():
                        raise OSError(message)
            except (KeyboardInterrupt, SystemExit):
                for worker in active_children():
                    worker.terminate()  # don't wait for its task
                raise
            except BrokenProcessPool:
                raise OSError(
                    f"a worker of {name} was killed, perhaps for want of memory; take fewer --num_workers and repeat "
                    "the command: it goes on"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


worker_executor: LocalExecutor  # of a worker process


def start_worker(executor: LocalExecutor, parent: int) -> None:
    global worker_executor
    end_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # duplicates are sought in the files of all tasks at once
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # datatrove logs and draws bars there; its log files have it all
    worker_executor = executor


def run_task(rank: int) -> str:
    """Run one task; what went wrong, in a line, or nothing."""
    executor = deepcopy(worker_executor)  # steps keep counts and open files
    try:
        executor._run_for_rank(rank)
    except Exception as error:  # of any library, and not all of them can travel between processes
        return f"{error or type(error).__name__} (log: {executor.logging_dir.path}/logs/task_{rank:05d}.log)"
    return ""


def cluster_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "workers": args.num_workers or -1,
        "cpus_per_task": args.cpus_per_task,
        "mem_per_cpu_gb": args.mem_per_cpu_gb,
    }


def here(pipeline: list) -> list:
    """The pipeline for other machines: relative paths mean there what they mean here."""
    return [EnterFolder(Path.cwd()), *pipeline]


@dataclass
class EnterFolder:
    """A datatrove step."""

    folder: Path

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        os.chdir(self.folder)


class SlurmExecutor(SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Leave out datatrove's extra job for each stage: nobody reads its summary."""


def submit(stages: Sequence[Stage], args: argparse.Namespace, logging_dir: Path) -> list[str]:
    """Submit an array job for each stage that isn't done, each to start after the one before; their numbers."""
    record = logging_dir / "slurm_jobs.json"
    if record.exists() and (waiting := still_queued(read_json(record))):
        raise ValueError(f"{record}: jobs {waiting} are still in the queue; wait for them, or scancel them")
    programs, last, jobs = Path(sys.executable).parent, None, []
    for stage in stages:
        last = SlurmExecutor(
            here(stage.pipeline),
            tasks=stage.tasks,
            tasks_per_job=-(-stage.tasks // MOST_JOBS),  # one array: the next stage waits for all of it
            time=args.time,
            partition=args.partition,
            job_name=f"knowlm_{stage.name}",
            qos="",  # the cluster's own, unless --sbatch_args names one
            sbatch_args={"kill-on-invalid-dep": "yes"} | dict(pair.split("=", 1) for pair in args.sbatch_args),
            env_command=f"export PATH='{programs}':$PATH PYTHONPATH='{CHECKOUT}':$PYTHONPATH\nulimit -n $(ulimit -Hn)",
            logging_dir=str(logging_dir / stage.name),
            depends=last,
            with_srun=False,  # a task is one process
            **cluster_settings(args),
        )
        try:
            last.run()
        except subprocess.CalledProcessError as error:
            raise OSError(f"sbatch refused {logging_dir / stage.name}/launch_script.slurm ({error})") from None
        jobs += [last.job_id] if last.job_id != -1 else []
        write_json(record, jobs)
    return jobs


def still_queued(jobs: list[str]) -> str:
    """Those of the jobs that wait or run, with spaces between."""
    if not jobs or not shutil.which("squeue"):
        return ""
    queue = subprocess.run(["squeue", "-h", "-o", "%A", "-j", ",".join(jobs)], capture_output=True, text=True)
    return " ".join(sorted(set(queue.stdout.split())))


def run_on_ray(executor: RayPipelineExecutor) -> None:
    """Run on the cluster that RAY_ADDRESS names, or one of this machine alone."""
    import ray

    if not ray.is_initialized():
        paths = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False, logging_level="error")
    executor.run()
    if missing := executor.get_incomplete_ranks():
        log = f"{executor.logging_dir.path}/logs/task_{missing[0]:05d}.log"
        raise OSError(f"{len(missing)} tasks failed, {log} says why; mend it and repeat the command: it goes on")
