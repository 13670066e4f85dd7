"""The flags that say where stages run; apart from knowlm/executors.py, for datatrove takes half a second to load."""

import argparse
import importlib.util
import shutil
from argparse import ArgumentParser


def add_executor_flags(parser: ArgumentParser, tasks: str) -> None:
    """tasks: the help of ``--tasks``."""
    group = parser.add_argument_group("where to run")
    group.add_argument(
        "--executor",
        choices=["local", "slurm", "ray"],
        default="local",
        help="this machine, a Slurm cluster, or a Ray cluster (pip install ray); clusters need a shared file system",
    )
    group.add_argument("--tasks", type=int, help=tasks)
    group.add_argument(
        "--num_workers", type=int, help="tasks at once (default: 1 here, all on a cluster); the result is the same"
    )
    group.add_argument("--partition", help="Slurm: the partition")
    group.add_argument("--time", default="24:00:00", help="Slurm: time limit of a task (default: 24:00:00)")
    group.add_argument("--cpus_per_task", type=int, default=1, help="clusters: CPUs of a task (default: 1)")
    group.add_argument("--mem_per_cpu_gb", type=int, default=4, help="clusters: memory of a CPU (default: 4)")
    group.add_argument(
        "--sbatch_args", nargs="+", default=[], metavar="NAME=VALUE", help="Slurm: more options: account=abc qos=low"
    )


def check_executor_flags(parser: ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what can't work."""
    if min(value for value in (args.tasks, args.num_workers, args.cpus_per_task, 1) if value is not None) < 1:
        parser.error("--tasks, --num_workers and --cpus_per_task must be at least 1")
    if args.executor == "slurm" and not args.partition:
        parser.error("--executor slurm needs --partition (sinfo lists them)")
    if args.executor == "slurm" and not shutil.which("sbatch"):
        parser.error("--executor slurm: there is no sbatch here; run this on a login node of the cluster")
    if args.executor == "ray" and not importlib.util.find_spec("ray"):
        parser.error("--executor ray: Ray is not installed; pip install ray")
    if bad := [argument for argument in args.sbatch_args if "=" not in argument]:
        parser.error(f"--sbatch_args {bad[0]}: NAME=VALUE is needed")
