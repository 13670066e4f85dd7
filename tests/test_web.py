"""The web pages: arguments are checked early; a page answers a client and a browser, and can be stopped."""

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from knowlm.generation import GenerationSettings
from knowlm.web import Stoppable, build_page, check_address, growing_answer

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PAGES = {"generate_finetune_web.py": ["Prompt"], "generate_lora_web.py": ["Instruction", "Input"]}
BOUNDS = {"Temperature": (0, 1), "Top p": (0, 1), "Top k": (0, 100)}
BOUNDS |= {"Beams": (1, 4), "Max tokens": (1, 2000), "Repetition Penalty": (1, 2)}
DEFAULTS = {
    "generate_finetune_web.py": [0.3, 0.75, 40, 3, 512, 1.6],
    "generate_lora_web.py": [0.4, 0.75, 40, 2, 512, 1.3],
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
BROWSER_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
BROWSER_FLAGS += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module", params=PAGES)
def page(request, tiny_llama, tmp_path_factory):
    """A running page on the tiny model: its script's name and its address."""
    folder, port = tmp_path_factory.mktemp("page"), free_port()
    command = [sys.executable, EXAMPLES / request.param, "--base_model", tiny_llama, "--server_port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until_open(port, process, folder / "log")
        yield SimpleNamespace(script=request.param, texts=PAGES[request.param], address=f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium of its own. Where there is none its tests are skipped, but not in CI."""
    if not CHROMIUM:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"), executable_path=CHROMIUM, args=BROWSER_FLAGS
        )
        yield context
        context.close()


@pytest.fixture
def tab(browser):
    """A new tab, and in ``tab.asked`` the address of everything that it requests."""
    tab = browser.new_page()
    tab.asked = []
    tab.on("request", lambda request: tab.asked.append(request.url))
    yield tab
    tab.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until_open(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the page ended: {log.read_text()}")
        try:
            urlopen(f"http://127.0.0.1:{port}", timeout=10).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"no page after 120 s: {log.read_text()}")


def client(address: str):
    from gradio_client import Client

    return Client(address, verbose=False, analytics_enabled=False)


def output(tab):
    return tab.get_by_label("Output", exact=True)


def wait_for_answer(tab, pattern: str = ".") -> str:
    from playwright.sync_api import expect

    expect(output(tab)).to_have_value(re.compile(pattern), timeout=30_000)
    return output(tab).input_value()


@pytest.fixture
def fake_stream(monkeypatch):
    """Let the pages take their answers from a function of (model, tokenizer, prompt, settings)."""
    return lambda function: monkeypatch.setattr("knowlm.web.stream", function)


def fake_model():
    return SimpleNamespace(device="cpu")


# Before a model is loaded


@pytest.mark.parametrize("script", PAGES)
def test_an_unknown_flag_stops_the_page(script, run_script):
    result = run_script(f"examples/{script}", "--base_model", "nowhere", "--sever_port", "7999")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"{script}: error: unrecognized arguments: --sever_port (see --help)\n"


@pytest.mark.parametrize("script", PAGES)
def test_a_missing_model_folder_is_told_in_one_line(script, run_script):
    result = run_script(f"examples/{script}", "--base_model", "./nowhere", "--server_port", free_port())
    assert result.returncode == 1
    assert result.stderr.startswith(f"{script}: error: ./nowhere: no such model folder;")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("script", PAGES)
def test_a_busy_port_is_told_before_the_model_is_looked_at(script, run_script, busy_port):
    result = run_script(f"examples/{script}", "--base_model", "./nowhere", "--server_port", busy_port)
    assert result.returncode == 1
    assert result.stderr == (
        f"{script}: error: cannot serve on 127.0.0.1, port {busy_port}: Address already in use; "
        "give another --server_port or --server_name\n"
    )


@pytest.mark.parametrize("port", [0, 65536, "http", 78.6, True])
def test_a_port_is_a_number_in_range(port):
    with pytest.raises(ValueError, match=f"--server_port {port}: must be a whole number, 1 to 65535"):
        check_address("127.0.0.1", port)


def test_a_missing_template_is_told_before_the_model_is_looked_at(run_script):
    result = run_script(
        "examples/generate_lora_web.py",
        "--base_model",
        "./nowhere",
        "--server_port",
        free_port(),
        "--prompt_template",
        "nothing.json",
    )
    assert result.returncode == 1
    assert "nothing.json: no such file" in result.stderr


# A growing answer


def test_an_answer_grows_to_what_the_stream_gave_last(fake_stream):
    fake_stream(lambda *_: iter(["a", "ab", "abc"]))
    assert list(growing_answer(fake_model(), None, "prompt", GenerationSettings()))[-1] == "abc"


def test_a_failing_generation_raises_its_own_error(fake_stream):
    def failing(*_):
        yield "a"
        raise RuntimeError("out of memory")

    fake_stream(failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(growing_answer(fake_model(), None, "prompt", GenerationSettings()))


@pytest.mark.parametrize("beams", [1, 3])
def test_closing_an_answer_ends_its_generation(tiny_llama, beams, monkeypatch):
    from knowlm.models import load_for_generation

    model, tokenizer = load_for_generation(str(tiny_llama))
    steps, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **inputs: steps.append(0) or forward(*args, **inputs))
    answer = growing_answer(model, tokenizer, "Say", GenerationSettings(max_new_tokens=100_000, num_beams=beams))
    next(answer)
    while not steps:
        next(answer)
    answer.close()
    time.sleep(0.5)
    done = len(steps)
    time.sleep(0.5)
    assert len(steps) == done < 100_000


def test_a_model_that_is_not_stopped_generates_as_ever(tiny_llama):
    from knowlm.generation import generate
    from knowlm.models import load_for_generation

    model, tokenizer = load_for_generation(str(tiny_llama))
    settings = GenerationSettings(max_new_tokens=12, num_beams=3)
    assert generate(Stoppable(model), tokenizer, ["Say"], settings) == generate(model, tokenizer, ["Say"], settings)


# A page, through its endpoint


@pytest.mark.slow
def test_submit_answers_a_client_with_text(page):
    answer = client(page.address).predict(
        *["Marie Curie was born in"] * len(page.texts), max_new_tokens=12, num_beams=1, api_name="/submit"
    )
    assert isinstance(answer, str)
    assert answer


@pytest.mark.slow
def test_beam_search_and_sampling_answer_too(page):
    answer = client(page.address).predict(
        "你好", num_beams=2, do_sample=True, temperature=1, max_new_tokens=8, api_name="/submit"
    )
    assert isinstance(answer, str)


@pytest.mark.slow
def test_the_endpoint_has_the_published_defaults(page):
    endpoint = client(page.address).view_api(return_format="dict", print_info=False)["named_endpoints"]["/submit"]
    values = {parameter["label"]: parameter["parameter_default"] for parameter in endpoint["parameters"]}
    assert [values[label] for label in BOUNDS] == DEFAULTS[page.script]
    assert values["Sample"] is False


@pytest.mark.slow
def test_an_empty_prompt_gives_an_empty_answer(page):
    assert client(page.address).predict("  ", api_name="/submit") == ""


# A page, in a browser


@pytest.mark.slow
def test_all_published_controls_are_there_by_label(page, tab):
    tab.goto(page.address)
    tab.get_by_role("button", name="Submit", exact=True).wait_for()
    for label in [*page.texts, "Output"]:
        assert tab.get_by_label(label, exact=True).is_visible(), label
    for label, (low, high) in BOUNDS.items():
        slider = tab.get_by_role("slider", name=label)
        assert slider.is_visible(), label
        assert (slider.get_attribute("min"), slider.get_attribute("max")) == (str(low), str(high))
    for name in ("Clear", "Stop", "Submit"):
        assert tab.get_by_role("button", name=name, exact=True).is_visible(), name
    assert tab.get_by_label("Sample", exact=True).is_visible()
    assert tab.get_by_label("Stream output", exact=True).count() == (page.script == "generate_lora_web.py")


@pytest.mark.slow
def test_submit_fills_the_output_and_clear_empties_it_without_a_request_to_elsewhere(page, tab):
    tab.goto(page.address)
    for label in page.texts:
        tab.get_by_label(label, exact=True).fill("床前明月光")
    tab.get_by_label("number input for Max tokens").fill("12")
    tab.get_by_role("button", name="Submit", exact=True).click()
    assert wait_for_answer(tab)
    tab.get_by_role("button", name="Clear", exact=True).click()
    wait_for_answer(tab, "^$")
    assert [tab.get_by_label(label, exact=True).input_value() for label in page.texts] == [""] * len(page.texts)
    assert len(tab.asked) > 5
    assert [url for url in tab.asked if not url.startswith((page.address, "data:", "blob:"))] == []


@pytest.mark.slow
def test_an_empty_prompt_is_told_kindly(page, tab):
    tab.goto(page.address)
    tab.get_by_role("button", name="Submit", exact=True).click()
    tab.get_by_text(f"Write something under {page.texts[0]}").wait_for(timeout=10_000)


@pytest.mark.slow
def test_an_example_fills_the_texts(page, tab):
    tab.goto(page.address)
    tab.get_by_role("button", name=re.compile("[\u4e00-\u9fff]")).first.click()
    for label in page.texts:
        box = tab.get_by_label(label, exact=True).element_handle()
        tab.wait_for_function("box => box.value", arg=box, timeout=10_000)


@pytest.fixture
def served(fake_stream):
    """Serve a page with made-up answers from this process, and return its address."""
    pages = []

    def serve(answers) -> str:
        fake_stream(answers)
        pages.append(
            build_page(
                fake_model(),
                None,
                title="T",
                sentence="S",
                texts={"Prompt": {}},
                to_prompt=str,
                defaults=GenerationSettings(),
                examples={"one": ["1"]},
                stream_box=True,
            )
        )
        return pages[-1].launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, ssr_mode=False)[1]

    yield serve
    for page in pages:
        page.close()


@pytest.mark.slow
def test_a_failing_generation_shows_on_the_page_which_lives_on(served, tab):
    def answers(model, tokenizer, prompt, settings):
        if prompt == "fail":
            raise RuntimeError("the model broke")
        yield f"answer to {prompt}"

    tab.goto(served(answers))
    tab.get_by_label("Prompt", exact=True).fill("fail")
    tab.get_by_role("button", name="Submit", exact=True).click()
    tab.get_by_text("the model broke").wait_for(timeout=10_000)
    tab.get_by_label("Prompt", exact=True).fill("2 + 2")
    tab.get_by_role("button", name="Submit", exact=True).click()
    assert wait_for_answer(tab, "2") == "answer to 2 + 2"


@pytest.mark.slow
def test_stop_ends_the_generation_and_keeps_what_is_there(served, tab):
    models = []

    def answers(model, tokenizer, prompt, settings):
        models.append(model)
        for number in itertools.takewhile(lambda _: not model.stop.is_set(), itertools.count(1)):
            yield "word " * number
            time.sleep(0.1)

    tab.goto(served(answers))
    tab.get_by_label("Prompt", exact=True).fill("go")
    tab.get_by_label("Stream output", exact=True).check()
    tab.get_by_role("button", name="Submit", exact=True).click()
    wait_for_answer(tab, "word word")
    assert not models[0].stop.is_set()
    tab.get_by_role("button", name="Stop", exact=True).click()
    assert models[0].stop.wait(10)
    shown = output(tab).input_value()
    time.sleep(1)
    assert "word word" in shown
    assert output(tab).input_value() == shown


@pytest.mark.slow
def test_a_page_that_is_left_ends_its_generation(served, tab):
    models = []

    def answers(model, tokenizer, prompt, settings):
        models.append(model)
        model.stop.wait(60)
        yield "late"

    tab.goto(served(answers))
    tab.get_by_label("Prompt", exact=True).fill("go")
    tab.get_by_role("button", name="Submit", exact=True).click()
    tab.wait_for_function("document.body.innerHTML.includes('Generating …')", timeout=10_000)
    tab.goto("about:blank")
    assert models[0].stop.wait(20)


@pytest.mark.slow
def test_one_generation_runs_at_a_time(served):
    running, most = [], []

    def answers(model, tokenizer, prompt, settings):
        running.append(prompt)
        most.append(len(running))
        time.sleep(0.3)
        running.remove(prompt)
        yield prompt

    address = served(answers)
    jobs = [client(address).submit(str(number), api_name="/submit") for number in range(3)]
    assert [job.result(30) for job in jobs] == ["0", "1", "2"]
    assert most == [1, 1, 1]
