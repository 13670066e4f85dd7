"""What grounding costs: grammars, masks, and answers of the same length with and without it, in one run.

    python benchmarks/grounded.py --base_model ./zhixi

Prints milliseconds to compile a grammar and to compute a mask, for texts of several lengths (random walks
through the grammar), and the seconds of a batch of answers decoded freely and under the grammar, in turns.
"""

import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, run
from knowlm.extraction.grounded import Guide, new_matcher, wrapped_tokenizer
from knowlm.extraction.windows import split
from knowlm.files import read_records
from knowlm.generation import GenerationSettings, encode_prompts
from knowlm.models import load_for_generation
from knowlm.prompts import Prompter

ENCYCLOPEDIA = Path(__file__).resolve().parents[1] / "finetune/data/encyclopedia"
SCHEMAS = {
    "NER": ["person", "place", "work", "organisation", "event", "species"],
    "RE": ["place of birth", "country", "author", "notable work"],
    "EE": [{"type": "birth", "roles": ["who", "where", "when"]}, {"type": "trip", "roles": ["who", "from", "to"]}],
}


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--base_model", required=True, help="folder (or hub name) of a model")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="answers decoded both ways so often (default: 3)")
    args = parser.parse_args()
    model, tokenizer = load_for_generation(args.base_model)
    constraint = wrapped_tokenizer(tokenizer, model.get_output_embeddings().weight.shape[0])
    print("| text | characters | task | grammar, ms | mask, median ms | mask, most ms |\n|---|---|---|---|---|---|")
    for name in ("english", "chinese"):
        text = "\n".join(record["text"] for record in read_records(ENCYCLOPEDIA / f"{name}.jsonl")[:20])
        for length in (100, 300, 600, 1000):
            for task in SCHEMAS:
                walk = measure_masks(constraint, task, text[:length])
                print(f"| {name} | {length} | {task} | {walk[0]:.1f} | {walk[1]:.2f} | {walk[2]:.1f} |")
    compare(model, tokenizer, constraint, args)


def measure_masks(constraint, task: str, text: str) -> tuple[float, float, float]:
    """(milliseconds to compile, median of a mask, longest mask) over random answers."""
    generator = random.Random(0)
    ask = split([{"task": task, "schema": SCHEMAS[task], "text": text}], 1000, 0)[0]
    compiled, masks = [], []
    for _ in range(10):
        started = time.perf_counter()
        matcher = new_matcher(constraint, ask)
        compiled.append(time.perf_counter() - started)
        matcher.consume_token(constraint.tokenize_str("(")[0])  # an answer with items; NAN would end at once
        for _ in range(40):
            started = time.perf_counter()
            mask = matcher.compute_logit_bias()
            masks.append(time.perf_counter() - started)
            token = generator.choice([number for number, allowed in enumerate(mask) if allowed])
            if token == constraint.eos_token or not matcher.consume_token(token):
                break
    return 1000 * statistics.median(compiled), 1000 * statistics.median(masks), 1000 * max(masks)


def compare(model, tokenizer, constraint, args) -> None:
    """Seconds of a batch of 8 answers of the same number of tokens, freely and grounded."""
    import torch

    records = read_records(ENCYCLOPEDIA / "english.jsonl")[:8]
    questions = [{"task": "NER", "schema": SCHEMAS["NER"], "text": record["text"][:400]} for record in records]
    asks = split(questions, 600, 0)
    prompts = [Prompter().prompt(ask.instruction, ask.text) for ask in asks]
    inputs = encode_prompts(tokenizer, prompts, model.device)
    config = GenerationSettings(max_new_tokens=args.tokens).for_transformers(tokenizer)
    config.eos_token_id = model.generation_config.eos_token_id = None  # both go on to the last token
    seconds: dict[str, list[float]] = {"freely": [], "grounded": []}
    with torch.inference_mode():
        for _ in range(args.rounds):
            for how, times in seconds.items():
                started = time.perf_counter()
                guides = [Guide(constraint, asks, tokenizer.pad_token_id)] if how == "grounded" else []
                model.generate(**inputs, generation_config=config, logits_processor=guides)
                times.append(time.perf_counter() - started)
    free, grounded = (statistics.median(times) for times in seconds.values())
    print(
        f"\n8 answers of {args.tokens} tokens: freely {free:.2f} s, grounded {grounded:.2f} s, {grounded / free:.2f} x"
    )


if __name__ == "__main__":
    run(main)
