"""Answer instructions over HTTP with vLLM.

    CUDA_VISIBLE_DEVICES=1,2 python inference/launch_vllm.py --port 8090 --model data/zhixi-13B --use-np-weights \\
        --max-num-batched-tokens 8000 --dtype half --tensor-parallel-size 2

POST /generate takes an instruction, an input and sampling parameters, and answers with the generated text; GET /is_ready
answers true or false. inference/README.md shows both. The server ends, with exit code 1, when its engine dies.
"""

import argparse
import asyncio
import multiprocessing
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Annotated, Any
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.models import check_model_folder
from knowlm.prompts import Prompter

# vLLM, FastAPI and uvicorn are imported in functions: vLLM's processes import this file again.

DEFAULT_MAX_TOKENS = 512
MAX_BODY_BYTES = 4 << 20  # a longer request is refused before it is read to its end
CPU_CACHE_BYTES = 1 << 30  # keys and values of running requests; vLLM would fill nine tenths of the memory
SECONDS_TO_FINISH = 5  # for running requests, once the server is told to stop


class Parameters(BaseModel):
    """How to draw tokens; vLLM's defaults, except for max_tokens."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0  # 0 is greedy
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 0  # 0 and -1: all tokens
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None  # None: 512, or what fits behind the prompt


class Question(BaseModel):
    """The body of POST /generate."""

    model_config = ConfigDict(extra="forbid", strict=True)
    instruction: Annotated[str, Field(min_length=1)]
    input: str | None = None
    parameters: Parameters | None = None


def main() -> None:
    own = check_before_vllm_loads()
    with open_port(own.host, own.port) as listener:
        args = parse_args()
        server = Server(args, Prompter(args.template_path))
        try:
            asyncio.run(server.serve(listener))
        finally:
            server.stop_engine()
    if server.failure:
        raise ChildProcessError(server.failure)


def check_before_vllm_loads() -> argparse.Namespace:
    """The script's own flags, checked within a second: vLLM takes some ten seconds to say what its flags are."""
    parser = ArgumentParser(__doc__)
    add_own_flags(parser)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder or hub name")
    parser.epilog = "Every flag of the vLLM engine is taken too; --help=all lists them, --help=WORD some."
    if any(argument.startswith("--help=") for argument in sys.argv[1:]):
        parse_args()
    args, _ = parser.parse_known_args()
    check_model_folder(args.model)
    Prompter(args.template_path)
    if args.use_np_weights:
        print(f"{Path(__file__).name}: warning: vLLM no longer has --use-np-weights, a cache of weights as numpy files; "
              "going on without", file=sys.stderr)
    return args


def add_own_flags(parser: argparse.ArgumentParser) -> None:
    def port(text: str) -> int:
        if not text.isdecimal() or int(text) > 65535:
            raise argparse.ArgumentTypeError(f"{text}: a port is 0 to 65535, and 0 chooses a free one")
        return int(text)

    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1)")
    parser.add_argument("--port", type=port, default=8090, help="port to listen on (default: 8090)")
    parser.add_argument("--template_path", "--template-path", default="alpaca", metavar="TEMPLATE",
                        help="prompt template: a name in knowlm/templates or a path (default: alpaca)")
    parser.add_argument("--use-np-weights", "--use_np_weights", action="store_true", help="ignored; vLLM dropped it")


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything loads: a port in use shows at once."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another with --host and --port") from None


def parse_args() -> argparse.Namespace:
    """All flags, with vLLM's own parser: names with _ or -, nested settings (--x.y 1), --config FILE."""
    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # INFO prints some sixty lines
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        error = ArgumentParser.error

    parser = Parser(description=__doc__, usage="%(prog)s --model FOLDER [flags]", allow_abbrev=False)
    add_own_flags(parser)
    args = AsyncEngineArgs.add_cli_args(parser).parse_args()
    if args.skip_tokenizer_init:
        refuse("--skip-tokenizer-init: prompts can't be encoded without the tokenizer")
    if current_platform.is_cpu():
        suit_cpu(args)
    return args


def suit_cpu(args: argparse.Namespace) -> None:
    """Fill in what vLLM can't guess without a GPU, where neither a flag nor the environment says it."""
    if args.kv_cache_memory_bytes is None and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        args.kv_cache_memory_bytes = CPU_CACHE_BYTES
    if args.max_model_len is None:
        args.max_model_len = -1  # the model's own length, or less where the cache is too small for it
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size
    if ranks > 1 and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        cores = sorted(os.sched_getaffinity(0))  # an equal share each, as in 0,1|2,3
        shares = [cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks] for rank in range(ranks)]
        if not all(shares):
            raise ValueError(f"--tensor-parallel-size {args.tensor_parallel_size}: this machine has {len(cores)} CPU cores, "
                             "one a part is needed; name fewer parts")
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)


@dataclass
class Answer:
    """What POST /generate answers, whether it went well or not."""

    generated_text: str = ""
    num_output_tokens_cf: int = 0
    error: str | None = None


class Server:
    """The HTTP server and its engine, which a thread loads while /is_ready already answers false."""

    def __init__(self, args: argparse.Namespace, prompter: Prompter):
        self.args, self.prompter = args, prompter
        self.engine: Any = None
        self.failure = ""
        self.loader = Thread(target=self.load_engine, daemon=True)

    def load_engine(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(self.args))
        except Exception as error:
            self.failure = f"{self.args.model}: vLLM does not start: {error}"

    @property
    def ready(self) -> bool:
        return self.engine is not None and not self.engine.errored

    async def serve(self, listener: socket.socket) -> None:
        """Answer requests until a signal comes, or until the engine fails: then ``failure`` says so."""
        import uvicorn

        http = uvicorn.Server(uvicorn.Config(self.app(), log_level="warning", lifespan="off",
                                             timeout_graceful_shutdown=SECONDS_TO_FINISH))
        watching = asyncio.create_task(self.watch(http, listener))
        await http.serve(sockets=[listener])
        watching.cancel()

    async def watch(self, http: Any, listener: socket.socket) -> None:
        self.loader.start()
        while not self.failure and self.engine is None:
            await asyncio.sleep(0.1)
        if self.engine is not None:
            host, port = listener.getsockname()[:2]
            host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
            url = f"http://{host}:{port}/generate"
            print(f"ready: {url}\n  curl -X POST {url} -H 'Content-Type: application/json' -d "
                  """'{"instruction": "你好", "input": "", "parameters": {"top_p": 0.7, "max_tokens": 256}}'""", flush=True)
            while self.ready:
                await asyncio.sleep(0.2)
            self.failure = f"{self.args.model}: the engine died; the reason stands above, start the server again"
        http.should_exit = True

    def app(self):
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse
        from starlette.exceptions import HTTPException

        app = FastAPI(openapi_url=None)

        @app.get("/is_ready")
        async def is_ready() -> bool:
            return self.ready

        @app.post("/generate")
        async def generate(request: Request) -> JSONResponse:
            ...

        return app

    def stop_engine(self) -> None:
        """End all of the engine's processes, also those of one that is still loading."""
        from vllm.utils.system_utils import kill_process_tree

        while self.loader.is_alive():
            for process in multiprocessing.active_children():
                kill_process_tree(process.pid)
            time.sleep(0.1)
        if self.engine is not None:
            self.engine.shutdown()


if __name__ == "__main__":
    run(main)
