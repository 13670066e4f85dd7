"""Answer instructions over HTTP with vLLM.

    CUDA_VISIBLE_DEVICES=1,2 python inference/launch_vllm.py --port 8090 --model data/zhixi-13B --use-np-weights \\
        --max-num-batched-tokens 8000 --dtype half --tensor-parallel-size 2

POST /generate takes an instruction, an input and sampling parameters, and answers with the generated text.
POST /extract takes a task (NER, RE or EE), a schema and a text, and answers with what the text holds of it, and where.
GET /is_ready answers true or false. When the engine dies, the server ends too, with exit code 1.
Every flag of the vLLM engine is taken too: python -m vllm.entrypoints.openai.api_server --help=all
"""

import argparse
import asyncio
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Literal
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from knowlm.cli import ArgumentParser, run
from knowlm.extraction.grammar import grammar
from knowlm.extraction.grounded import OVERLAP, WINDOW, new_matcher, read_grounded, wrapped_tokenizer
from knowlm.extraction.windows import LONGEST_WINDOW, Ask, Extraction, join, split
from knowlm.models import check_model_folder, check_tokenizer_folder
from knowlm.prompts import Prompter, encode_prompt


class Parameters(BaseModel):  # the defaults are vLLM's own, except for max_tokens
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0  # 0 takes the likeliest token
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 0  # 0 and -1 draw from all tokens
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None  # 512, or what fits behind the prompt


class Question(BaseModel):  # the body of POST /generate
    model_config = ConfigDict(extra="forbid", strict=True)
    instruction: Annotated[str, Field(min_length=1)]
    input: str | None = None
    parameters: Parameters | None = None


MOST_PROMPTS = 2000  # of one question: windows of its text × batches of its schema


class ExtractionQuestion(BaseModel):  # the body of POST /extract
    model_config = ConfigDict(extra="forbid", strict=True)
    task: str
    labels: Annotated[list, Field(alias="schema")]  # for EE of {"type", "roles"}
    text: str
    language: Literal["english", "chinese"] | None = None  # of the instruction; None: the text's
    max_tokens: Annotated[int, Field(ge=1)] = 256  # of a window's answer
    window: Annotated[int, Field(ge=1, le=LONGEST_WINDOW)] = WINDOW  # characters read at once
    overlap: Annotated[int, Field(ge=0)] = OVERLAP  # of two windows
    labels_at_once: Annotated[int, Field(ge=1)] | None = None  # in a prompt; 6 for NER, else 4


def main() -> None:
    own, engine_flags = parse_own_flags()
    check_model_folder(own.model)
    check_tokenizer_folder(own.model)
    with open_port(own.host, own.port) as listener:
        service = Service(Prompter(own.template_path), parse_engine_flags(["--model", own.model, *engine_flags]))
        try:
            asyncio.run(service.run(listener))
        finally:
            service.stop_engine()
    if service.failure:
        raise ChildProcessError(f"{own.model}: {service.failure}")


def parse_own_flags() -> tuple[argparse.Namespace, list[str]]:
    """The script's flags, and the rest: vLLM takes ten seconds and more to say which flags it knows."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder, or a name on the hub")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8090, help="port to listen on; 0: any free one (default: 8090)")
    parser.add_argument(
        "--template_path", "--template-path", default="alpaca", help="prompt template (default: alpaca)"
    )
    parser.add_argument("--use-np-weights", "--use_np_weights", action="store_true", help="ignored; vLLM dropped it")
    args, rest = parser.parse_known_args()
    if args.use_np_weights:
        print(f"{parser.prog}: warning: vLLM has dropped --use-np-weights; going on without it", file=sys.stderr)
    return args, rest


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything loads, so that a port in use shows at once."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise OSError(f"{host}:{port}: can't listen there ({error}); choose another --port or --host") from None


def parse_engine_flags(flags: list[str]):
    """vLLM's AsyncEngineArgs, by its own parser: it takes _ for - in names, and nested settings as --x.y 1."""
    for setting in ("VLLM_NO_USAGE_STATS=1", "VLLM_LOGGING_LEVEL=ERROR", "VLLM_WORKER_MULTIPROC_METHOD=spawn"):
        os.environ.setdefault(*setting.split("="))  # forked, the engine would hold the server's sockets
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(allow_abbrev=False)
    parser.error = ArgumentParser("").error
    args = AsyncEngineArgs.add_cli_args(parser).parse_args(flags)
    if current_platform.is_cpu():  # where vLLM chooses badly by itself
        args.kv_cache_memory_bytes = args.kv_cache_memory_bytes or 1 << 30  # else nine tenths of the memory
        args.max_model_len = args.max_model_len or -1  # the model's own, or less where that cache is too small
        ranks = args.tensor_parallel_size * args.pipeline_parallel_size
        if ranks > 1 and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:  # else each needs a NUMA node of its own
            cores = sorted(map(str, os.sched_getaffinity(0)))
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(cores[r::ranks] or cores) for r in range(ranks))
    engine_args = AsyncEngineArgs.from_cli_args(args)
    if engine_args.structured_outputs_config.backend == "auto":
        engine_args.structured_outputs_config.backend = "guidance"  # what reads our grammars
    return engine_args


async def discard(request: Request) -> None:
    """Read a body's first 16 MiB and forget them: a client that is still writing doesn't read why it is refused."""
    received = 0
    async for part in request.stream():
        received += len(part)
        if received > 1 << 24:
            return


class Service:
    """The HTTP server, and the engine, which a thread loads while /is_ready answers false."""

    def __init__(self, prompter: Prompter, engine_args):
        self.prompter, self.engine_args = prompter, engine_args
        self.engine: Any = None
        self.is_warm = False  # has answered once
        self.failure = ""  # what went wrong with the engine
        self.loader = Thread(target=self.load_engine, daemon=True)

    def load_engine(self) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self.engine = AsyncLLM.from_engine_args(self.engine_args)
        except Exception as error:
            self.failure = f"vLLM doesn't start: {error}"

    async def run(self, listener: socket.socket) -> None:
        """Answer requests until a signal comes or the engine fails."""
        import uvicorn
        from fastapi import FastAPI

        app = FastAPI()
        app.get("/is_ready")(self.is_ready)
        app.post("/generate")(self.answer_generate)
        app.post("/extract")(self.answer_extract)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))  # seconds
        watching = asyncio.create_task(self.watch_engine(server, listener))
        await server.serve(sockets=[listener])
        watching.cancel()

    async def watch_engine(self, server, listener: socket.socket) -> None:
        self.loader.start()
        while not (self.engine or self.failure):
            await asyncio.sleep(0.1)
        if self.engine:
            await self.warm_up()
            url = "http://{}:{}/generate".format(*listener.getsockname())
            print(
                f"ready: {url}\ntry:   curl -X POST {url} -H 'Content-Type: application/json' "
                """-d '{"instruction": "你好", "parameters": {"top_p": 0.7, "max_tokens": 256}}'""",
                flush=True,
            )
            while self.is_ready():
                await asyncio.sleep(0.1)
            self.failure = "the engine died; start again, with VLLM_LOGGING_LEVEL=INFO to see more"
        server.should_exit = True

    async def warm_up(self) -> None:
        """Extract once before the server is ready: for the first answer vLLM compiles and imports for 3 to 25 s."""
        from vllm.exceptions import VLLMClientError

        with suppress(ValueError, VLLMClientError):  # a model that can't extract is served all the same
            await self.extract(ExtractionQuestion(task="NER", schema=["place"], text="Rome", max_tokens=2))
        self.is_warm = True

    def is_ready(self) -> bool:
        return self.is_warm and not self.engine.errored

    async def answer_generate(self, request: Request) -> JSONResponse:
        return await self.answer(request, self.generated, {"generated_text": "", "num_output_tokens_cf": 0})

    async def answer_extract(self, request: Request) -> JSONResponse:
        return await self.answer(request, self.extracted, {"items": [], "is_whole": False})

    async def answer(self, request: Request, work: Callable[[Request], Any], empty: dict) -> JSONResponse:
        """What ``work`` gives, with a key "error"; the same keys whatever goes wrong."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            if not self.is_ready():
                raise EngineDeadError
            if int(request.headers.get("content-length", 1 << 30)) > 1 << 20:
                await discard(request)
                raise ValueError("a request states its Content-Length, and that is at most 1 MiB")
            return JSONResponse(await work(request) | {"error": None})
        except ValidationError as error:
            mistake = error.errors()[0]
            status, reason = 400, ": ".join([*map(str, mistake["loc"]), mistake["msg"]])
        except (ValueError, VLLMClientError, ClientDisconnect) as error:
            status, reason = 400, str(error)
        except EngineDeadError:
            status, reason = 503, "the engine died" if self.engine else "the model is still loading; see /is_ready"
        except Exception as error:
            traceback.print_exc()
            status, reason = 500, f"{type(error).__name__}: {error}"
        return JSONResponse(empty | {"error": " ".join(reason.split())[:500]}, status)

    async def generated(self, request: Request) -> dict:
        question = Question.model_validate_json(await request.body())
        output = await self.generate(request, *await asyncio.to_thread(self.prepare, question))
        return {"generated_text": output.text.strip(), "num_output_tokens_cf": len(output.token_ids)}

    async def extracted(self, request: Request) -> dict:
        return await self.extract(ExtractionQuestion.model_validate_json(await request.body()), request)

    async def extract(self, question: ExtractionQuestion, request: Request | None = None) -> dict:
        asks, prepared = await asyncio.to_thread(self.prepare_extraction, question)
        try:
            async with asyncio.TaskGroup() as group:  # when one fails, the others end, too
                tasks = [group.create_task(self.generate(request, ids, params)) for ids, params in prepared]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        outputs = [task.result() for task in tasks]
        parts = await asyncio.to_thread(lambda: list(map(self.read, asks, outputs)))
        found = join(question.task, question.text, zip(asks, parts, strict=True))
        return {"items": found.records, "is_whole": found.is_whole}

    def prepare(self, question: Question):
        """The prompt's ids and SamplingParams."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        ids = encode_prompt(self.engine.get_tokenizer(), self.prompter.prompt(question.instruction, question.input))
        wanted = (question.parameters or Parameters()).model_dump()
        wanted["max_tokens"] = wanted["max_tokens"] or max(1, min(512, self.longest() - len(ids)))
        self.check_length(ids, wanted["max_tokens"])
        return ids, SamplingParams(**wanted, output_kind=RequestOutputKind.FINAL_ONLY)

    def prepare_extraction(self, question: ExtractionQuestion):
        """The windows and schema batches to ask for; of each the prompt's ids and SamplingParams."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        asked = {"task": question.task, "schema": question.labels, "text": question.text, "language": question.language}
        if len(question.text) > MOST_PROMPTS * question.window:
            raise ValueError(f"text of {len(question.text)} characters: too long for windows of {question.window}")
        asks = split([asked], question.window, question.overlap, question.labels_at_once)
        if len(asks) > MOST_PROMPTS:
            raise ValueError(f"{len(asks)} prompts, at most {MOST_PROMPTS} at once; send parts of the text or schema")
        prepared = []
        for ask in asks:
            ids = encode_prompt(self.engine.get_tokenizer(), self.prompter.prompt(ask.instruction, ask.text))
            self.check_length(ids, question.max_tokens)
            params = SamplingParams(
                temperature=0,
                max_tokens=question.max_tokens,
                logprobs=1,
                structured_outputs=StructuredOutputsParams(grammar=grammar(ask.task, ask.schema, ask.text)),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prepared.append((ids, params))
        return asks, prepared

    def read(self, ask: Ask, output) -> Extraction:
        """The extraction of vLLM's CompletionOutput in the grammar of ``ask``."""
        constraint = wrapped_tokenizer(self.engine.get_tokenizer(), self.engine.model_config.get_vocab_size())
        tokens = [token for token in output.token_ids if token != constraint.eos_token]
        log_probabilities = [place[token].logprob for token, place in zip(tokens, output.logprobs, strict=False)]
        matcher = new_matcher(constraint, ask)
        is_whole = output.finish_reason == "stop" and matcher.consume_tokens(tokens) and matcher.is_accepting()
        return read_grounded(ask, constraint, tokens, log_probabilities, is_whole)

    def longest(self) -> int:
        return self.engine.model_config.max_model_len

    def check_length(self, ids: list[int], max_tokens: int) -> None:
        if len(ids) + max_tokens > self.longest():
            raise ValueError(
                f"{len(ids)} prompt tokens and max_tokens={max_tokens} exceed the model's "
                f"{self.longest()}; shorten the prompt or lower max_tokens"
            )

    async def generate(self, request: Request | None, ids: list[int], params):
        """vLLM's CompletionOutput. When the client leaves early, its place in the engine is freed."""
        request_id = uuid4().hex

        async def finish():
            results = self.engine.generate({"type": "token", "prompt_token_ids": ids}, params, request_id)
            return [result async for result in results][-1].outputs[0]

        finishing = asyncio.create_task(finish())
        try:
            while not (await asyncio.wait({finishing}, timeout=0.2))[0]:
                if request and await request.is_disconnected():
                    raise ClientDisconnect
            return finishing.result()
        finally:
            if not finishing.done():
                finishing.cancel()
                await self.engine.abort(request_id)  # cancelling misses a request that is just being handed over

    def stop_engine(self) -> None:
        """End all of the engine's processes, also while it loads."""
        from vllm.utils.system_utils import kill_process_tree

        while self.loader.is_alive():
            for process in multiprocessing.active_children():
                kill_process_tree(process.pid)
            self.loader.join(0.1)
        if self.engine:
            self.engine.shutdown(timeout=20)  # seconds until they are killed
            self.engine = None  # else Python's end ends it again, and complains


def follow_server() -> None:
    """In vLLM's processes, which import this file again: leave Ctrl-C to the server, and end if it is killed."""
    os.setpgrp()
    server = os.getppid()
    while os.getppid() == server:
        time.sleep(1)
    os._exit(1)


if __name__ == "__mp_main__":
    Thread(target=follow_server, daemon=True).start()
if __name__ == "__main__":
    run(main)
