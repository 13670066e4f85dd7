"""The vLLM server, as a process of its own on a tiny model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_grounded import talkative

from knowlm.extraction.forms import render
from knowlm.extraction.grounded import extract
from knowlm.generation import GenerationSettings, generate
from knowlm.models import load_for_generation
from knowlm.prompts import Prompter

SCRIPT = Path(__file__).resolve().parents[1] / "inference/launch_vllm.py"
PUBLISHED_FLAGS = ["--use-np-weights", "--max-num-batched-tokens", "8000", "--dtype", "half"]
FASTER_START = ["--tensor-parallel-size", "1", "--enforce-eager", "--kv-cache-memory-bytes", "64M"]
LONG = {"instruction": "你好", "parameters": {"temperature": 0, "max_tokens": 1900}}
SHORT = {"instruction": "你好", "parameters": {"temperature": 0, "max_tokens": 5}}
KEYS = {"generated_text", "num_output_tokens_cf", "error"}
EXTRACTION_KEYS = {"items", "is_whole", "error"}


class RunningServer:
    """A server process, and what it answered until it was ready."""

    def __init__(self, model: Path, folder: Path, *flags: str):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = folder / "log.txt"
        command = [sys.executable, SCRIPT, "--port", str(self.port), "--model", model, *PUBLISHED_FLAGS, *FASTER_START]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *flags], stdout=log, stderr=log, cwd=folder, env=os.environ | {"CUDA_VISIBLE_DEVICES": "1,2"}
            )

    def wait_until(self, wanted: bool) -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.get("/is_ready") is wanted:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        pytest.fail(f"is_ready never was {wanted}:\n{self.log.read_text()[-3000:]}")

    def wait_until_said(self, words: str) -> None:
        deadline = time.monotonic() + 30
        while words not in self.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)

    def get(self, path: str):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
            return json.load(response)

    def post(self, body: dict | bytes, path: str = "/generate") -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def children(self):
        import psutil

        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self):
        return next(child for child in self.children() if "EngineCore" in " ".join(child.cmdline()))

    def assert_all_end(self, children, exit_code: int) -> None:
        import psutil

        assert self.process.wait(120) == exit_code, self.log.read_text()[-3000:]
        _, alive = psutil.wait_procs(children, timeout=30)
        assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture(scope="module")
def served_llama(tiny_llama, tmp_path_factory) -> Path:
    """The tiny model, so changed that it finds something when it extracts."""
    folder = tmp_path_factory.mktemp("served_llama")
    for part in talkative(*load_for_generation(str(tiny_llama))):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(served_llama, tmp_path_factory):
    """One request runs at a time, so that a place that isn't freed shows."""
    server = RunningServer(served_llama, tmp_path_factory.mktemp("server"), "--max-num-seqs", "1")
    server.wait_until(False)
    server.early_answer = server.post(SHORT)
    server.wait_until(True)
    server.wait_until_said("ready: ")
    yield server
    server.process.terminate()
    server.process.wait(120)


@pytest.mark.slow
def test_the_server_says_that_it_loads_and_then_where_it_listens(server):
    status, answer = server.early_answer
    assert status == 503 and answer.keys() == KEYS and "loading" in answer["error"]
    log = server.log.read_text()
    assert f"ready: http://127.0.0.1:{server.port}/generate\n" in log
    assert log.count("--use-np-weights") == 1


@pytest.mark.slow
def test_a_served_model_is_scored(server, run_script, tmp_path):
    case = {"id": 1, "task": "NER", "language": "chinese", "schema": ["地点"], "input": "杭州", "gold": []}
    (tmp_path / "case.json").write_text(json.dumps([case]))
    flags = ["--data", tmp_path / "case.json", "--report", tmp_path, "--max_new_tokens", 5]
    result = run_script("finetune/evaluate.py", "--server", f"http://127.0.0.1:{server.port}", *flags)
    assert result.returncode == 0, result.stderr
    asked = {"instruction": render("NER", ["地点"], language="chinese"), "input": "杭州"}
    _, answer = server.post(SHORT | asked)
    assert json.loads((tmp_path / "predictions.jsonl").read_text())["output"] == answer["generated_text"]


@pytest.mark.slow
def test_what_is_extracted_stands_in_the_text_and_is_what_transformers_extracts(server, served_llama):
    text = 'Marie "Curie" \\ was born, in Warsaw. ' * 8 + "鲁迅出生于绍兴😀。"
    events = [{"type": "trip", "roles": ["who", "where"]}]
    questions = [
        {"task": task, "schema": schema, "text": text[start:]}
        for task, schema in (("NER", ["b", "a"]), ("RE", ["r", "s", "t", "u", "v"]), ("EE", events))
        for start in range(0, 60, 7)
    ]
    wanted = extract(
        *load_for_generation(str(served_llama)), questions, Prompter(), GenerationSettings(max_new_tokens=40)
    )
    same = found = 0
    for number, extraction in wanted:
        status, answer = server.post(questions[number] | {"max_tokens": 40}, "/extract")
        assert status == 200 and answer.keys() == EXTRACTION_KEYS and answer["error"] is None
        whole = questions[number]["text"]
        for item in answer["items"]:
            assert 0 < item["score"] <= 1
            for span in (item, item.get("head"), item.get("tail"), item.get("trigger"), *item.get("arguments", [])):
                assert not span or "start" not in span or whole[span["start"] : span["end"]] == span["text"]
        found += len(answer["items"])
        places = [[{**r, "score": 0} for r in records] for records in (answer["items"], extraction.records)]
        if places[0] == places[1]:
            same += 1
            scores = [r["score"] for r in extraction.records]
            assert [r["score"] for r in answer["items"]] == pytest.approx(scores, abs=0.02)  # in half precision
    assert same >= 0.7 * len(questions)
    assert found > 5


@pytest.mark.slow
def test_a_served_answer_does_not_depend_on_the_schemas_order(server):
    events = [{"type": kind, "roles": ["who", "where"]} for kind in "abcde"]
    turned = [{"type": kind, "roles": ["where", "who", "who"]} for kind in "edcbaa"]
    for task, one, other in (("RE", list("abcde"), list("edacbb")), ("EE", events, turned)):
        question = {"task": task, "text": "Marie Curie was born in Warsaw.", "max_tokens": 20}
        assert server.post(question | {"schema": one}, "/extract") == server.post(
            question | {"schema": other}, "/extract"
        )


@pytest.mark.slow
def test_a_bad_request_to_extract_gets_400_with_the_same_keys(server):
    good = {"task": "NER", "schema": ["a"], "text": "x"}
    for change, reason in [
        ({"task": "QA"}, "NER"),
        ({"schema": ["a", ""]}, "a list like"),
        ({"schema": "a"}, "schema"),
        ({"text": 3}, "text"),
        ({"language": "latin"}, "language"),
        ({"window": 5000}, "window"),
        ({"overlap": 600}, "overlap"),
        ({"max_tokens": 2048}, "max_tokens=2048"),
        ({"labels": ["a"]}, "labels"),
        ({"text": "a" * 3000, "window": 1, "overlap": 0}, "too long for windows of 1"),
        ({"text": "a. " * 1500, "window": 3, "overlap": 0, "schema": list("abcdefghij")}, "prompts, at most 2000"),
    ]:
        status, answer = server.post(good | change, "/extract")
        assert status == 400 and answer.keys() == EXTRACTION_KEYS and answer["items"] == []
        assert reason in answer["error"] and "\n" not in answer["error"]
    assert server.post(good | {"text": " "}, "/extract") == (200, {"items": [], "is_whole": True, "error": None})


@pytest.mark.slow
def test_the_extraction_script_asks_the_server(server, run_script, tmp_path):
    (tmp_path / "texts.jsonl").write_text(
        '{"id": 7, "text": "Marie Curie was born in Warsaw."}\n{"id": 8, "text": "a"}\n'
    )
    flags = ["--task", "NER", "--schema", '["b", "a"]', "--input", "texts.jsonl", "--output", "o.jsonl"]
    result = run_script("examples/extract.py", "--server", f"http://127.0.0.1:{server.port}", *flags)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    question = {"task": "NER", "schema": ["a", "b"], "text": "Marie Curie was born in Warsaw."}
    assert rows[0] == {"id": 7, "entities": server.post(question, "/extract")[1]["items"]} and rows[1]["id"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--grounded"]])
def test_a_server_is_scored(server, run_script, tmp_path, flags):
    gold = [{"text": "Warsaw", "type": "a"}]
    case = {"task": "NER", "language": "english", "schema": ["a", "b"], "input": "Born in Warsaw.", "gold": gold}
    cases = [case | {"id": name} for name in ("1", "2", "3")]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    address = ["--server", f"http://127.0.0.1:{server.port}", "--max_new_tokens", 20]
    files = ["--data", tmp_path / "cases.jsonl", "--report", tmp_path / "report"]
    result = run_script("finetune/evaluate.py", *files, *address, *flags)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["cases"] == 3 and metrics["NER"]["gold"] == 3
    answers = [json.loads(line)["output"] for line in (tmp_path / "report/predictions.jsonl").read_text().splitlines()]
    assert len(set(answers)) == 1 and (not flags or metrics["unparsable"] == 0)


@pytest.mark.slow
def test_an_answer_is_what_transformers_generates_for_the_same_prompt(server, served_llama):
    model, tokenizer = load_for_generation(str(served_llama))
    prompt = Prompter().prompt("你好", "世界")
    wanted = generate(model, tokenizer, [prompt], GenerationSettings(max_new_tokens=5))
    status, answer = server.post(SHORT | {"input": "世界"})
    text = wanted[0].rstrip("\N{REPLACEMENT CHARACTER}")  # vLLM holds back a character that isn't whole
    assert (status, answer) == (200, {"generated_text": text, "num_output_tokens_cf": 5, "error": None})


@pytest.mark.slow
def test_every_published_parameter_is_taken(server):
    parameters = {"top_p": 0.7, "top_k": 40, "max_tokens": 7, "presence_penalty": 0.5, "frequency_penalty": -0.5,
                  "temperature": 0.8}  # fmt: skip
    status, answer = server.post({"instruction": "Hi", "input": "", "parameters": parameters})
    assert status == 200 and answer.keys() == KEYS and answer["error"] is None
    assert 1 <= answer["num_output_tokens_cf"] <= 7


@pytest.mark.slow
def test_bad_requests_get_400_and_harm_nobody(server):
    bad = [
        (b"", "JSON"),
        (b'{"instruction": "\\ud800"}', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"instruction": "' + b"a" * (1 << 20) + b'"}', "1 MiB"),
        ([], "object"),
        ({}, "instruction"),
        ({"instruction": ""}, "instruction"),
        ({"instruction": 3}, "instruction"),
        ({"instruction": "a", "inputs": "b"}, "inputs"),
        ({"instruction": "a\nb " * 3000}, "2048"),
        ({"instruction": "a", "parameters": {"max_tokens": 2048}}, "max_tokens=2048"),
        ({"instruction": "a", "parameters": {"max_tokens": 0}}, "max_tokens"),
        ({"instruction": "a", "parameters": {"top\nk": 3}}, "top k"),
        ({"instruction": "a", "parameters": {"top_k": 10**30}}, "top_k"),
        ({"instruction": "a", "parameters": {"top_p": 1.1}}, "top_p"),
        ({"instruction": "a", "parameters": {"temperature": float("nan")}}, "temperature"),
        ({"instruction": "a", "parameters": {"temperature": True}}, "temperature"),
    ]
    undisturbed = server.post(LONG)
    assert undisturbed[0] == 200 and undisturbed[1]["num_output_tokens_cf"] == 1900
    with ThreadPoolExecutor(1) as pool:
        good = pool.submit(server.post, LONG)
        for body, reason in bad:
            status, answer = server.post(body)
            assert status == 400, body
            assert answer.keys() == KEYS and answer["generated_text"] == "" and answer["num_output_tokens_cf"] == 0
            assert reason in answer["error"] and "\n" not in answer["error"]
        assert good.result() == undisturbed
    assert server.get("/is_ready") is True


@pytest.mark.slow
def test_clients_that_leave_free_their_places(server):
    server.post(LONG)  # the first request of all takes longer
    started = time.monotonic()
    server.post(LONG)
    seconds_of_one = time.monotonic() - started
    body = json.dumps(LONG).encode()
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            time.sleep(0.1)
    started = time.monotonic()
    assert server.post(SHORT)[0] == 200
    assert time.monotonic() - started < 3 * seconds_of_one


@pytest.mark.slow
def test_sigterm_ends_every_process(server):
    children = server.children()
    assert len(children) >= 2
    server.process.send_signal(signal.SIGTERM)
    server.assert_all_end(children, exit_code=143)


@pytest.mark.slow
def test_sigterm_ends_every_process_while_the_model_loads(tiny_llama, tmp_path):
    loading = RunningServer(tiny_llama, tmp_path)
    loading.wait_until(False)
    while not any("spawn_main" in " ".join(child.cmdline()) for child in loading.children()):
        time.sleep(0.1)
    children = loading.children()
    loading.process.send_signal(signal.SIGTERM)
    loading.assert_all_end(children, exit_code=143)


@pytest.mark.slow
def test_when_the_engine_dies_running_requests_get_503_and_the_server_exits_with_1(tiny_llama, tmp_path):
    doomed = RunningServer(tiny_llama, tmp_path)
    doomed.wait_until(True)
    children = doomed.children()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(doomed.post, LONG)
        time.sleep(0.5)
        doomed.engine().kill()
        status, answer = running.result()
    assert status == 503 and answer.keys() == KEYS and "died" in answer["error"]
    doomed.assert_all_end(children, exit_code=1)
    assert "launch_vllm.py: error:" in doomed.log.read_text()


@pytest.mark.slow  # vLLM itself says which flags it has, and takes ten seconds and more to be imported
def test_an_unknown_engine_flag_is_refused_in_one_line(run_script, tiny_llama):
    result = run_script("inference/launch_vllm.py", "--port", 0, "--model", tiny_llama, "--max-nmu-seqs", "1")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "launch_vllm.py: error: unrecognized arguments: --max-nmu-seqs 1 (see --help)"
    )


def test_a_missing_model_a_missing_template_and_a_busy_port_stop_in_one_line(run_script, tiny_llama):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        for flags, reason in [
            (["--model", "no_such_model"], "no_such_model: no such model folder"),
            (["--model", tiny_llama, "--port", port], f"127.0.0.1:{port}: can't listen there"),
            (["--model", tiny_llama, "--port", 99999], "127.0.0.1:99999: can't listen there"),
            (["--model", tiny_llama, "--port", 0, "--template_path", "no_such"], "no_such: no such file"),
        ]:
            result = run_script("inference/launch_vllm.py", *flags)
            assert result.returncode == 1
            assert len(result.stderr.splitlines()) == 1
            assert result.stderr.startswith(f"launch_vllm.py: error: {reason}")
