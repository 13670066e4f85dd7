"""Continue texts with a pretrained model, on a web page.

    python examples/generate_finetune_web.py --base_model ./zhixi

Open the address that it prints. Nothing on the page comes from another machine.
"""

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import run_fire
from knowlm.generation import GenerationSettings
from knowlm.models import load_for_generation
from knowlm.web import build_page, check_address, serve

EXAMPLES = {
    "E-mail": "Can you help me write a formal email to a potential business partner proposing a joint venture? "
    "Your answer:",
    "Healthy life": "You are now a doctor. Here are some tips for a healthy life. 1.",
    "A city": "You are very familiar with the information of Chinese cities, such as the attractions, cuisine, and "
    "history of Chinese cities. Please introduce the city of Hangzhou. Hangzhou",
    "续写诗句": "床前明月光，疑是地上霜。",
    "解释概念": "自然语言处理是",
    "中译英": "你很擅长将中文翻译成英文。将下面的句子翻译成英文：我们今天准备去西安看兵马俑。答案：",
}


def main(
    base_model: Annotated[str, "folder (or hub name) of the model"],
    load_8bit: Annotated[bool, "weights in int8 (bitsandbytes): a quarter of the memory"] = False,
    server_name: Annotated[str, "address to serve on; 0.0.0.0 lets other machines in"] = "127.0.0.1",
    server_port: Annotated[int, "port to serve on"] = 7860,
    share: Annotated[bool, "also a public link, through Gradio's servers"] = False,
) -> None:
    check_address(str(server_name), server_port)
    model, tokenizer = load_for_generation(str(base_model), load_8bit=load_8bit)
    page = build_page(
        model,
        tokenizer,
        title="KnowLM: continue a text",
        sentence="A pretrained model goes on where your text ends: begin the answer rather than ask for it.",
        texts={"Prompt": {"lines": 5, "max_lines": 15, "placeholder": "The text to continue"}},
        to_prompt=str,
        defaults=GenerationSettings(num_beams=3, repetition_penalty=1.6),
        examples={name: [prompt] for name, prompt in EXAMPLES.items()},
        stream_box=False,
    )
    serve(page, str(server_name), server_port, share)


if __name__ == "__main__":
    run_fire(main, __doc__)
