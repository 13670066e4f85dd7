"""Answer instructions with a tuned model, on a web page.

    python examples/generate_lora_web.py --base_model ./zhixi --lora_weights ./lora
    python examples/generate_lora_web.py --base_model ./zhixi-sft

A merged model needs no --lora_weights. Open the address that it prints.
"""

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import run_fire
from knowlm.extraction.forms import render
from knowlm.generation import GenerationSettings
from knowlm.models import load_for_generation
from knowlm.prompts import Prompter
from knowlm.web import build_page, check_address, serve

ENGLISH = (
    "Marie Curie was born in Warsaw and worked in Paris with her husband Pierre Curie. "
    "In 1911 she won the Nobel Prize in Chemistry."
)
CHINESE = (
    "John昨天在纽约的咖啡馆见到了他的朋友Merry。他们计划下周一去圣弗朗西斯科参观旧金山大桥，"
    "下周三去洛杉矶拜访Merry的父亲威廉。"
)
EXAMPLES = {
    "Entities": [render("NER", ["person", "place", "award"]), ENGLISH],
    "Relations": [render("RE", ["born in", "worked in", "spouse", "award received"]), ENGLISH],
    "Events": [render("EE", [{"type": "award ceremony", "roles": ["winner", "award", "time"]}]), ENGLISH],
    "实体": [render("NER", ["地点", "人名"], language="chinese"), CHINESE],
    "关系": [render("RE", ["位于", "朋友", "父亲"], language="chinese"), CHINESE],
    "事件": [render("EE", [{"type": "旅游", "roles": ["地点", "时间", "人员"]}], language="chinese"), CHINESE],
}


def main(
    base_model: Annotated[str, "folder (or hub name) of the base or of a merged model"],
    lora_weights: Annotated[str | None, "folder of a LoRA adapter"] = None,
    load_8bit: Annotated[bool, "base in int8 (bitsandbytes): a quarter of the memory"] = False,
    prompt_template: Annotated[str, "name in knowlm/templates, or a template's path"] = "alpaca",
    server_name: Annotated[str, "address to serve on; 0.0.0.0 lets other machines in"] = "127.0.0.1",
    server_port: Annotated[int, "port to serve on"] = 7860,
    share: Annotated[bool, "also a public link, through Gradio's servers"] = False,
) -> None:
    check_address(str(server_name), server_port)
    prompter = Prompter(str(prompt_template))
    model, tokenizer = load_for_generation(str(base_model), lora_weights and str(lora_weights), load_8bit)
    page = build_page(
        model,
        tokenizer,
        title="KnowLM: follow an instruction",
        sentence="A tuned model extracts knowledge from a text, or answers whatever the instruction asks.",
        texts={
            "Instruction": {"lines": 4, "max_lines": 10, "placeholder": "What to do"},
            "Input": {"lines": 4, "max_lines": 10, "placeholder": "Optional: the text to do it with", "value": ""},
        },
        to_prompt=prompter.prompt,
        defaults=GenerationSettings(num_beams=2, temperature=0.4, repetition_penalty=1.3),
        examples=EXAMPLES,
        stream_box=True,
    )
    serve(page, str(server_name), server_port, share)


if __name__ == "__main__":
    run_fire(main, __doc__)
