"""LoRA tuning: examples and useful tokens a second of padding, grouping by length and packing, on the same data.

    python benchmarks/lora.py --base_model ./smollm --data_path ./instructions/train.json
    python benchmarks/lora.py --base_model ./smollm --data_path ./instructions/train.json --lengths mixed
    python benchmarks/lora.py --base_model ./smollm --data_path ./instructions/train.json --num_examples 8 --quantized

Each way is finetune/lora/finetune.py on the same steps, in a process of its own; "as in 2023" is a plain peft + Trainer
loop as alpaca-lora wrote it. Useful tokens are those of the examples, not of padding. ``--lengths mixed`` joins some
of the rows into longer ones, so that lengths are uneven as in Alpaca's data: most short, a few long.
``--quantized`` compares, packed, the base in int8 and in 4 bits with the base as it is (16 bits on a GPU, and on a CPU
that multiplies bfloat16; else 32). On a GPU both are done.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, run
from knowlm.files import write_json
from knowlm.instructions import encode_rows, read_rows
from knowlm.models import check_model_folder, load_base, load_tokenizer
from knowlm.prompts import Prompter

SCRIPT = Path(__file__).resolve().parents[1] / "finetune/lora/finetune.py"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
PLAIN = "as in 2023"
WAYS: dict[str, list[str]] = {
    PLAIN: [],
    "padding": [],
    "grouped by length": ["--group_by_length"],
    "packed": ["--pack"],
}
QUANTIZED = {"packed, int8": ["--pack", "--load_8bit"], "packed, 4 bits": ["--pack", "--load_4bit"]}
# Rows joined into one, by turns: 20 rows of 100 tokens become 12, of which 9 have 100 and one each 200, 300 and 600.
JOINED = (1, 1, 1, 2, 1, 1, 1, 3, 1, 1, 1, 6)


def main() -> None:
    args = parse_args()
    if args.only:
        print(json.dumps(measure(args)))
        return
    check_model_folder(args.base_model)
    rows = read_rows(args.data_path)
    rows = (uneven(rows) if args.lengths == "mixed" else rows)[: args.num_examples]
    tokenizer = load_tokenizer(args.base_model)
    examples = list(encode_rows(rows, Prompter(), tokenizer, args.cutoff_len))
    if any(example.is_cut for example in examples):
        raise ValueError(f"--cutoff_len {args.cutoff_len}: some examples are longer; choose a larger one")
    lengths = [len(example.ids) for example in examples]
    print(
        f"{len(rows)} examples of {min(lengths)} to {max(lengths)} tokens, {sum(lengths) / len(rows):.0f} on average, "
        f"{sorted(lengths)[len(rows) // 2]} at the median",
        flush=True,
    )
    ways = WAYS | QUANTIZED if has_gpu() else {"packed": WAYS["packed"]} | QUANTIZED if args.quantized else WAYS
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "rows.json", rows)
        for number, way in enumerate(ways):
            command = [sys.executable, "-W", "ignore", __file__, "--only", way, "--output_dir", f"{folder}/{number}"]
            for name in ("base_model", "batch_size", "micro_batch_size", "cutoff_len"):
                command += [f"--{name}", str(getattr(args, name))]
            command += ["--data_path", f"{folder}/rows.json"]
            process = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[way] = json.loads(process.stdout.splitlines()[-1])
            print(f"{way}: {found[way]['seconds']:.1f} s", flush=True)
    print(table(found, len(rows), sum(lengths)))


def uneven(rows: list[dict]) -> list[dict]:
    """Some rows as they are, others joined: instructions, inputs and answers each below one another."""
    joined, left, sizes = [], iter(rows), itertools.cycle(JOINED)
    while some := list(itertools.islice(left, next(sizes))):
        names = ("instruction", "input", "output")
        joined.append({name: "\n".join(row.get(name) or "" for row in some).strip() for name in names})
    return joined


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--base_model", required=True, help="folder of a small model")
    parser.add_argument("--data_path", required=True, help="instruction rows")
    parser.add_argument("--num_examples", type=int, default=32, help="the first so many (default: 32)")
    parser.add_argument("--batch_size", type=int, default=8, help="examples in a step (default: 8)")
    parser.add_argument("--micro_batch_size", type=int, default=4, help="rows computed at once (default: 4)")
    parser.add_argument("--cutoff_len", type=int, default=512, help="most tokens of a row (default: 512)")
    parser.add_argument(
        "--lengths", choices=["given", "mixed"], default="given", help="mixed: some rows are joined (default: given)"
    )
    parser.add_argument("--quantized", action="store_true", help="on a CPU: int8 and 4 bits, in place of the ways")
    parser.add_argument("--only", help="for this script itself: one way")
    parser.add_argument("--output_dir", help="for this script itself")
    return parser.parse_args()


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def measure(args) -> dict:
    """Train an epoch in this process: its seconds from begin to the last step's end, loss, memory.

    Without a GPU the seconds are those of the CPU, which don't wander with what else the machine does.
    """
    import torch
    from transformers import TrainerCallback, trainer

    now = time.monotonic if torch.cuda.is_available() else time.process_time

    class Clock(TrainerCallback):
        begin = end = 0.0

        def on_train_begin(self, *_, **__):
            Clock.begin = now()

        def on_step_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            Clock.end = now()

    trainer.DEFAULT_CALLBACKS.append(Clock)
    (plain if args.only == PLAIN else ours)(args)
    log = json.loads((Path(args.output_dir) / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    return {
        "seconds": Clock.end - Clock.begin,
        "loss": sum(losses) / len(losses),
        "memory": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else most_memory(),
    }


def most_memory() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def ours(args) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("lora_finetune", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    flags = (WAYS | QUANTIZED)[args.only]
    given = {flag[2:]: True for flag in flags if flag.startswith("--")}
    module.main(
        module.LoraSettings(
            base_model=args.base_model,
            data_path=args.data_path,
            output_dir=args.output_dir,
            batch_size=args.batch_size,
            micro_batch_size=args.micro_batch_size,
            cutoff_len=args.cutoff_len,
            num_epochs=1,
            val_set_size=0,
            save_steps=10**6,
            **({"load_8bit": False} | given),
        )
    )


def plain(args) -> None:
    """The loop of alpaca-lora in today's spelling: micro-batches at random, padded to the longest in them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    from knowlm.models import cpu_multiplies_bf16, gpu_multiplies_bf16

    set_seed(0)
    gpu = torch.cuda.is_available()
    tokenizer = load_tokenizer(args.base_model)
    tokenizer.padding_side = "right"
    examples = encode_rows(read_rows(args.data_path), Prompter(), tokenizer, args.cutoff_len)
    rows = [
        {"input_ids": e.ids.tolist(), "labels": [-100] * e.answer_start + e.ids[e.answer_start :].tolist()}
        for e in examples
    ]
    model = load_base(args.base_model, training=True, frozen=True)
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS, bias="none", task_type="CAUSAL_LM"
    )
    trainer = Trainer(
        model=get_peft_model(model, lora),
        train_dataset=rows,
        args=TrainingArguments(
            output_dir=args.output_dir,
            per_device_train_batch_size=args.micro_batch_size,
            gradient_accumulation_steps=args.batch_size // args.micro_batch_size,
            num_train_epochs=1,
            learning_rate=3e-4,
            warmup_steps=10,
            logging_steps=1,
            save_strategy="no",
            bf16=gpu_multiplies_bf16() if gpu else cpu_multiplies_bf16(),
            fp16=gpu and not gpu_multiplies_bf16(),
            use_cpu=not gpu,
            seed=0,
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, return_tensors="pt", padding=True),
    )
    trainer.train()
    trainer.save_state()


def table(found: dict[str, dict], examples: int, tokens: int) -> str:
    """Rates, and how they compare with those of the plain loop, of padding, and of packing."""
    second = "second" if has_gpu() else "CPU second"
    against = [way for way in (PLAIN, "padding", "packed") if way in found]
    columns = ["way", f"examples a {second}", f"useful tokens a {second}", *(f"against {way}" for way in against)]
    lines = [f"| {' | '.join([*columns, 'mean loss', 'peak GB'])} |", "|---" * (len(columns) + 2) + "|"]
    for way, entry in found.items():
        seconds = entry["seconds"]
        cells = [way, f"{examples / seconds:.2f}", f"{tokens / seconds:.0f}"]
        cells += [f"{found[other]['seconds'] / seconds:.2f} ×" for other in against]
        cells += [f"{entry['loss']:.3f}", f"{entry['memory'] / 1e9:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run(main)
