from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from knowlm.extraction.answering import answer_all, post, reordered

QUESTIONS = [{"instruction": str(number)} for number in range(5)]


@pytest.fixture
def stopped(tmp_path):
    """The journal of a run that was stopped after two of five answers, amid the third line."""

    def two_answers(questions):
        yield 3, "three\nlines\u2028"
        yield 0, "zero"
        raise KeyboardInterrupt

    journal = tmp_path / "report" / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_all(QUESTIONS, lambda: two_answers, journal, {"model": "a"})
    with journal.open("a") as lines:
        lines.write('[1, "on')
    return journal


def echo(asked):
    def answer(questions):
        asked.extend(question["instruction"] for question in questions)
        return ((number, question["instruction"]) for number, question in enumerate(questions))

    return lambda: answer


def test_answers_of_a_stopped_run_are_kept(stopped):
    asked = []
    answers = answer_all(QUESTIONS, echo(asked), stopped, {"model": "a"})
    assert answers == ["zero", "1", "2", "three\nlines\u2028", "4"]
    assert asked == ["1", "2", "4"]
    assert answer_all(QUESTIONS, echo(asked), stopped, {"model": "a"}) == answers and len(asked) == 3


def test_answers_of_another_job_are_not_taken(stopped):
    asked = []
    assert answer_all(QUESTIONS, echo(asked), stopped, {"model": "b"}) == ["0", "1", "2", "3", "4"]
    assert len(asked) == 5


def test_another_order_holds_the_same_labels_and_roles():
    schema = [{"type": str(number), "roles": list("abcdefgh")} for number in range(8)]
    orders = [reordered({"id": "1", "schema": schema}, seed)["schema"] for seed in (1, 2)]
    assert schema != orders[0] != orders[1] and orders[0] == reordered({"id": "1", "schema": schema}, 1)["schema"]
    for order in orders:
        assert sorted(entry["type"] for entry in order) == [entry["type"] for entry in schema]
        assert all(sorted(entry["roles"]) == list("abcdefgh") for entry in order)


@contextmanager
def answering(content, missing=0):
    """The address of a server that answers with ``content``, cut short by ``missing`` bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + missing))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("content", "missing", "message"),
    [
        (b"<html>", 0, "no inference/launch_vllm.py answers there"),
        (b"[1]", 0, "no inference/launch_vllm.py answers there"),
        (b'{"generated_text": "x"', 9, "broke off"),
    ],
)
def test_a_reply_of_something_else_or_half_a_reply_is_told_with_the_address(content, missing, message):
    with answering(content, missing) as address, pytest.raises(OSError, match=f"{address}: {message}"):
        post(address, "generate", {"input": "x"})


def test_a_server_on_this_machine_is_not_sought_behind_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with answering(b'{"generated_text": "x", "error": null}') as address:
        assert post(address, "generate", {"input": "x"})["generated_text"] == "x"
