"""Answer instructions with a tuned model: the published extraction or general cases, a file of them, or one.

    python examples/generate_lora.py --load_8bit --base_model ./zhixi --lora_weights ./lora --run_ie_cases
    python examples/generate_lora.py --load_8bit --base_model ./zhixi --lora_weights ./lora --run_general_cases
    python examples/generate_lora.py --base_model ./zhixi-sft --instruction "请你背诵《静夜思》"
    python examples/generate_lora.py --base_model ./zhixi-sft --cases cases.json --output answers.jsonl

A merged model needs no --lora_weights. A case is {"instruction", "input", "settings"}; its settings decode it.
"""

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from tqdm import tqdm

from knowlm.cli import refuse, run_fire
from knowlm.files import read_records, write_jsonl
from knowlm.generation import GenerationSettings, generate
from knowlm.models import load_for_generation
from knowlm.prompts import Prompter

CASES = Path(__file__).with_name("cases")
DEFAULTS = GenerationSettings(num_beams=2, temperature=0.2, repetition_penalty=1.3)


def main(
    base_model: Annotated[str, "folder (or hub name) of the base or of a merged model"],
    lora_weights: Annotated[str | None, "folder of a LoRA adapter"] = None,
    load_8bit: Annotated[bool, "base in int8 (bitsandbytes): a quarter of the memory"] = False,
    run_ie_cases: Annotated[bool, "answer the extraction cases"] = False,
    run_general_cases: Annotated[bool, "answer the general cases"] = False,
    cases: Annotated[str | None, "answer the cases of this JSON or JSONL file"] = None,
    limit: Annotated[int | None, "answer only so many cases"] = None,
    instruction: Annotated[str | None, "answer this instruction"] = None,
    input: Annotated[str, "input that goes with --instruction"] = "",
    output: Annotated[str | None, "write answers to this JSONL file too"] = None,
    prompt_template: Annotated[str, "name in knowlm/templates, or a template's path"] = "alpaca",
    max_new_tokens: Annotated[int | None, "overrides every case's own"] = None,
    num_beams: Annotated[int | None, "overrides every case's own"] = None,
    do_sample: Annotated[bool | None, "draw tokens; temperature, top_p, top_k count only then"] = None,
    temperature: Annotated[float | None, "overrides every case's own"] = None,
    top_p: Annotated[float | None, "overrides every case's own"] = None,
    top_k: Annotated[int | None, "overrides every case's own"] = None,
    repetition_penalty: Annotated[float | None, "overrides every case's own"] = None,
) -> None:
    files = [CASES / "extraction.json"] * run_ie_cases + [CASES / "general.json"] * run_general_cases
    chosen = [case for file in [*files, *([cases] if cases else [])] for case in read_records(file)][:limit]
    if instruction is not None:
        chosen.append({"instruction": str(instruction), "input": str(input)})
    if not chosen:
        refuse("nothing to answer: give --run_ie_cases, --run_general_cases, --cases FILE or --instruction TEXT")
    overrides = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
    }
    settings = [case_settings(case).updated(**overrides) for case in chosen]
    prompter = Prompter(prompt_template)
    model, tokenizer = load_for_generation(str(base_model), lora_weights and str(lora_weights), load_8bit)
    answers = []
    for case, setting in zip(tqdm(chosen, desc="cases", disable=None), settings, strict=True):
        prompt = prompter.prompt(case["instruction"], case.get("input"))
        answer = generate(model, tokenizer, [prompt], setting)[0]
        answers.append({"instruction": case["instruction"], "input": case.get("input", ""), "output": answer})
        print(f"### Instruction:\n{case['instruction']}")
        if case.get("input"):
            print(f"### Input:\n{case['input']}")
        print(f"### Response:\n{answer}\n", flush=True)
    if output:
        write_jsonl(output, answers)
        print(f"{output}: {len(answers)} answers")


def case_settings(case: dict) -> GenerationSettings:
    """A case's own decoding settings over the defaults; ValueError when the case is no case."""
    if not isinstance(case.get("instruction"), str):
        raise ValueError(f'a case needs a text under "instruction": {str(case)[:80]}')
    try:
        return DEFAULTS.updated(**case.get("settings", {}))
    except TypeError as error:
        raise ValueError(f"settings of the case {case['instruction'][:40]!r}: {error}") from None


if __name__ == "__main__":
    run_fire(main, __doc__)
