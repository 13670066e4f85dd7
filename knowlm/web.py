"""What both web pages share: texts and decoding settings on the left; on the right an answer that can be stopped."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from threading import Event, Lock, Thread

from knowlm.generation import GenerationSettings, stream

SLIDERS = {  # setting: label, lowest, highest, step, info
    "temperature": ("Temperature", 0, 1, 0.01, "lower is surer; counts only with Sample"),
    "top_p": ("Top p", 0, 1, 0.01, "share of probability; counts only with Sample"),
    "top_k": ("Top k", 0, 100, 1, "0 means all; counts only with Sample"),
    "num_beams": ("Beams", 1, 4, 1, "more is slower; 1 lets the answer stream"),
    "max_new_tokens": ("Max tokens", 1, 2000, 1, "most tokens to add"),
    "repetition_penalty": ("Repetition Penalty", 1, 2, 0.01, "1 is none"),
}
RESTING = "The answer appears here."
TURN = Lock()  # one generation at a time
TICK = 0.1  # seconds between two looks at the growing answer; only there can Gradio stop it


def check_address(server_name: str, server_port: int) -> None:
    """Raise ValueError if no page can be served there: called before a model is loaded for it."""
    if isinstance(server_port, bool) or not isinstance(server_port, int) or not 0 < server_port < 65536:
        raise ValueError(f"--server_port {server_port}: must be a whole number, 1 to 65535")
    try:
        socket.create_server((server_name, server_port)).close()
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        raise ValueError(
            f"cannot serve on {server_name}, port {server_port}: {reason}; give another --server_port or --server_name"
        ) from None


class Stoppable:
    """A model whose generation, beam search too, ends at the next token once ``stop`` is set."""

    def __init__(self, model):
        self.model, self.device, self.stop = model, model.device, Event()

    def generate(self, stopping_criteria=(), **inputs):
        import torch
        from transformers import StoppingCriteriaList

        def stopped(input_ids, scores, **_):
            return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device)

        return self.model.generate(**inputs, stopping_criteria=StoppingCriteriaList([*stopping_criteria, stopped]))


def growing_answer(model, tokenizer, prompt: str, settings: GenerationSettings) -> Iterator[str]:
    """The answer so far, every ``TICK`` seconds even while there is nothing new.

    Gradio can close a generator only between two values. Closing ends the generation at its next token.
    """
    model, answers, failures = Stoppable(model), [""], []

    def work() -> None:
        try:
            with TURN:
                answers.extend(stream(model, tokenizer, prompt, settings))
        except Exception as error:  # handed to the page
            failures.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(TICK)
            yield answers[-1]
    finally:
        model.stop.set()
    if failures:
        raise failures[0]
    yield answers[-1]


def build_page(
    model,
    tokenizer,
    *,
    title: str,
    sentence: str,
    texts: Mapping[str, dict],
    to_prompt: Callable[..., str],
    defaults: GenerationSettings,
    examples: Mapping[str, Sequence[str]],
    stream_box: bool,
):
    """A ``gr.Blocks`` page with one endpoint, ``/submit``, whose parameters are named like labels and settings.

    texts: label to ``gr.Textbox`` settings; the first must be filled in. ``to_prompt`` makes the prompt of them.
    examples: a short name to one value per text. stream_box: with the box "Stream output" (else always stream).
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is sent anywhere
    import gradio as gr

    def submit(*values):
        given = dict(zip(names, values, strict=True))
        written = [given.pop(label.lower()) or "" for label in texts]
        streaming = given.pop("stream_output", True)
        answer, start = "", time.monotonic()
        if not written[0].strip():
            gr.Warning(f"Write something under {next(iter(texts))}, or choose an example.")
            yield answer
            return
        if stream_box and streaming and given["num_beams"] > 1:
            gr.Info("With more than one beam the answer comes whole: set Beams to 1 to watch it grow.")
        try:
            settings = GenerationSettings(**{n: type(getattr(defaults, n))(value) for n, value in given.items()})
            for answer in growing_answer(model, tokenizer, to_prompt(*written), settings):
                waiting = gr.Textbox(value="", placeholder=f"Generating … {time.monotonic() - start:.0f} s")
                yield answer if answer and streaming else waiting
        except Exception as error:
            yield gr.Textbox(placeholder=RESTING)
            raise gr.Error(" ".join(str(error).split())[:500] or type(error).__name__) from error
        yield gr.Textbox(value=answer, placeholder=RESTING if answer else "The model gave an empty answer.")
        yield answer

    with gr.Blocks(title=title) as page:
        gr.Markdown(f"# {title}\n{sentence}")
        with gr.Row():
            with gr.Column():
                boxes = [gr.Textbox(label=label, **settings) for label, settings in texts.items()]
                flags = [gr.Checkbox(label="Stream output", info="needs Beams at 1")] if stream_box else []
                with gr.Row():
                    clear, stop, go = gr.Button("Clear"), gr.Button("Stop"), gr.Button("Submit", variant="primary")
                with gr.Accordion("Decoding settings"):
                    with gr.Row():
                        sliders = [
                            gr.Slider(
                                low, high, getattr(defaults, name), step=step, label=label, info=info, min_width=240
                            )  # two side by side, one below the other on a phone
                            for name, (label, low, high, step, info) in SLIDERS.items()
                        ]
                    flags.append(gr.Checkbox(label="Sample", info="draw tokens instead of taking the likeliest"))
            with gr.Column():
                output = gr.Textbox(label="Output", placeholder=RESTING, lines=19, max_lines=40)
                gr.Examples([*map(list, examples.values())], boxes, example_labels=list(examples), cache_examples=False)
        names = [label.lower() for label in texts] + [*SLIDERS, *["stream_output"] * stream_box, "do_sample"]
        signature = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
        submit.__signature__ = signature  # type: ignore[attr-defined]
        running = gr.on(
            [go.click, *(box.submit for box in boxes)],
            submit,
            [*boxes, *sliders, *flags],
            output,
            api_name="submit",
            concurrency_limit=1,
        )
        at_once = {"queue": False, "cancels": running, "api_visibility": "private"}
        stop.click(lambda: gr.Textbox(placeholder=RESTING), None, output, **at_once)
        clear.click(
            lambda: [gr.Textbox(value="", placeholder=box.placeholder) for box in [*boxes, output]],
            None,
            [*boxes, output],
            **at_once,
        )
    return page


def serve(page, server_name: str, server_port: int, share: bool = False) -> None:
    """Serve a page until the process ends. Its fonts come from Gradio's package: nothing is fetched from elsewhere."""
    import gradio as gr

    for name in ("NO_PROXY", "no_proxy"):  # Gradio first calls its own address, which a proxy may not reach
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost", server_name]))
    font: list = [gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "sans-serif"]  # its 600 lacks letters
    theme = gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=font)
    page.launch(
        server_name=server_name,
        server_port=server_port,
        share=share,
        theme=theme,
        ssr_mode=False,
        show_error=True,
        run_history=False,
        footer_links=["api", "settings"],
    )
