"""Continue texts with a pretrained model: the published cases, one prompt, or one after another.

    python examples/generate_finetune.py --base_model ./zhixi
    python examples/generate_finetune.py --base_model ./zhixi --prompt 床前明月光，
    python examples/generate_finetune.py --base_model ./zhixi --interactive

In interactive mode `/temperature 0.7` changes a decoding setting, `/settings` shows them, an empty line ends.
"""

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import run_fire
from knowlm.files import read_json, write_jsonl
from knowlm.generation import GenerationSettings, generate, stream
from knowlm.models import load_for_generation

CASES = Path(__file__).with_name("cases") / "pretraining.json"


def main(
    base_model: Annotated[str, "folder (or hub name) of the model"],
    prompt: Annotated[str | None, "continue this text instead of the cases"] = None,
    interactive: Annotated[bool, "read prompts from the terminal"] = False,
    output: Annotated[str | None, "write prompts and answers to this JSONL file too"] = None,
    load_8bit: Annotated[bool, "weights in int8 (bitsandbytes): a quarter of the memory"] = False,
    max_new_tokens: Annotated[int | None, "most tokens added; default 512"] = None,
    num_beams: Annotated[int | None, "beams; default 3 (1 in interactive mode, so that text streams)"] = None,
    do_sample: Annotated[bool | None, "draw tokens; temperature, top_p, top_k count only then"] = None,
    temperature: Annotated[float | None, "default 0.3"] = None,
    top_p: Annotated[float | None, "default 0.75"] = None,
    top_k: Annotated[int | None, "default 40"] = None,
    repetition_penalty: Annotated[float | None, "default 1.6"] = None,
) -> None:
    settings = GenerationSettings(num_beams=1 if interactive else 3, repetition_penalty=1.6).updated(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=do_sample,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
    )
    model, tokenizer = load_for_generation(str(base_model), load_8bit=load_8bit)
    if interactive:
        interact(model, tokenizer, settings)
        return
    answers = []
    for text in [str(prompt)] if prompt is not None else read_json(CASES):
        answers.append({"prompt": text, "output": generate(model, tokenizer, [text], settings)[0]})
        print(f">>> {text}\n{answers[-1]['output']}\n", flush=True)
    if output:
        write_jsonl(output, answers)


def interact(model, tokenizer, settings: GenerationSettings) -> None:
    print(__doc__.strip().splitlines()[-1], f"Now: {settings}", sep="\n", file=sys.stderr)
    while True:
        try:
            line = input(">>> ")
        except EOFError:
            return
        if not line.strip():
            return
        if line.startswith("/"):
            settings = changed(settings, line[1:])
            continue
        shown = ""
        for answer in stream(model, tokenizer, line, settings):
            print(answer[len(shown) :], end="", flush=True)
            shown = answer
        print()


def changed(settings: GenerationSettings, command: str) -> GenerationSettings:
    """Settings after ``temperature 0.7`` or the like; a mistake is told and changes nothing."""
    name, _, value = command.strip().partition(" ")
    try:
        if name != "settings":
            if not hasattr(settings, name):
                raise ValueError(f"no setting {name}; there are {settings}")
            kind = type(getattr(settings, name))
            settings = settings.updated(
                **{name: value.lower() in ("1", "true", "yes") if kind is bool else kind(value)}
            )
        print(settings, file=sys.stderr)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    return settings


if __name__ == "__main__":
    run_fire(main, __doc__)
