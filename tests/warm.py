"""Scripts in forks of a process that has torch and transformers imported already: each start takes seconds less.

The real script runs as ``__main__`` in a process of its own. What only a cold start shows (its imports, its launcher),
test_scripts.py, test_commands.py and test_quickstart.py show.
"""

import os
import runpy
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

PRELOADED = ["transformers.trainer", "transformers.models.llama.modeling_llama", "peft", "fire", "matplotlib.pyplot"]
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)


def run_warm(
    script: Path,
    *arguments: str,
    cwd: Path,
    env: dict[str, str] | None = None,
    processes: int = 1,
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    """Run a script in one process, or in several that find each other as torchrun's do.

    The result has the worst of their exit codes, and the words of all.
    """
    command = [str(script), *map(str, arguments)]
    environments = [dict(os.environ) | (env or {})]
    if processes > 1:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a free port, and nobody else's
        ours = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        ours |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        environments = [
            environments[0] | ours | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)
        ]
    outputs = [[cwd / f"{stream}.{rank}" for stream in ("stdout", "stderr")] for rank in range(processes)]
    forks = [
        FORKS.Process(target=run_as_main, args=(command, str(cwd), *both))
        for both in zip(environments, outputs, strict=True)
    ]
    for fork in forks:
        fork.start()
    for fork in forks:
        fork.join(timeout)
    if any(fork.exitcode is None for fork in forks):
        for fork in forks:
            fork.kill()
        raise subprocess.TimeoutExpired(command, timeout)
    code = max((fork.exitcode for fork in forks), key=abs)
    stdout, stderr = ("".join(paths[number].read_text() for paths in outputs) for number in (0, 1))
    return subprocess.CompletedProcess(command, code, stdout, stderr)


def run_as_main(command: list[str], folder: str, environment: dict[str, str], outputs: list[Path]) -> None:
    """In a fork: what ``python SCRIPT ARGUMENTS >stdout 2>stderr`` would do."""
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")
