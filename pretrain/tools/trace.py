"""Tell which samples and documents a training run saw, and when.

    python pretrain/tools/trace.py --output_dir ./out --step 120 [--rank 3] [--tokenizer_path ./converted]
    python pretrain/tools/trace.py --output_dir ./out --document pretrain/data/chinese_poems.jsonl:3
    python pretrain/tools/trace.py --output_dir ./out --seen_until 120 --output seen.txt
    python pretrain/preprocess.py --mode remove --read_path_prefix ./data/merged --new_path_prefix ./data/unseen \\
        --remove_samples @seen.txt

pretrain/train.py notes the settings that decide the order in training_data.json of its output folder. Runs without it
need --data_path and the settings below; --sampler distributed is the order of 2023. Epochs and steps count from 1, as
in the Trainer's log, ranks and the micro-batches of a step from 0.
"""

import argparse
import ast
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout holds knowlm/

import numpy as np

from knowlm.cli import ArgumentParser, run
from knowlm.corpus import Corpus
from knowlm.corpus_removal import ranges_of, samples_of_documents
from knowlm.files import replacing
from knowlm.tokenization import CorpusTokenizer
from knowlm.trained_data import (
    RECORD,
    SAMPLERS,
    STRATEGIES,
    OrderSettings,
    TrainingOrder,
    Visit,
    open_orders,
    order_of_step,
    read_record,
    samples_until,
    visits_of_samples,
)

TEXT_SHOWN = 80  # characters of a sample


def main() -> None:
    args = parse_args()
    entries = order_settings(args)
    corpus = Corpus(data_path_of(entries, args))
    orders = open_orders(entries, corpus)
    if args.step is not None:
        show_step(orders, corpus, args)
    elif args.seen_until is not None:
        write_seen(orders, corpus, args)
    else:
        show_samples(orders, corpus, args)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    group = parser.add_argument_group("questions, one of them").add_mutually_exclusive_group(required=True)
    group.add_argument("--step", type=int, help="which samples did this step take?")
    group.add_argument("--sample", type=int, nargs="+", help="which steps took samples of these numbers?")
    group.add_argument("--document", nargs="+", metavar="FILE:LINE", help="or samples of these documents: a.jsonl:7-9")
    group.add_argument("--seen_until", type=int, metavar="STEP", help="which samples were seen up to this step?")
    parser.add_argument("--rank", type=int, help="with --step: of this process only")
    parser.add_argument("--output", help="with --seen_until: the file for their numbers")
    parser.add_argument("--tokenizer_path", help="with --step: show how the samples begin")
    parser.add_argument("--output_dir", help="the run's output folder")
    group = parser.add_argument_group("settings of the run, where its output folder doesn't tell them, or tells wrong")
    group.add_argument("--data_path", help="prefix of the corpus")
    group.add_argument("--sampler", choices=SAMPLERS, help="distributed: torch's DistributedSampler, used in 2023")
    group.add_argument("--seed", type=int, help="the Trainer's own is 42; with --data_seed, that one")
    for name in ("world_size", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps"):
        group.add_argument(f"--{name}", type=int)
    group.add_argument("--num_train_epochs", type=float, help="instead of --max_steps")
    group.add_argument("--train_sampling_strategy", choices=STRATEGIES)
    group.add_argument("--global_batch_distributed", metavar="LIST", help='such as "[424,80]"')
    group.add_argument("--fill_mode", type=int, choices=[0, 1, 2, 3])
    group.add_argument("--model_max_length", type=int, help="matters to group_by_length")
    group.add_argument("--dataloader_drop_last", action=argparse.BooleanOptionalAction, default=None)
    args = parser.parse_args()
    for name, needs in (("rank", "step"), ("tokenizer_path", "step"), ("output", "seen_until")):
        if getattr(args, name) is not None and getattr(args, needs) is None:
            parser.error(f"--{name} goes with --{needs}")
    if args.seen_until is not None and args.output is None:
        parser.error("--seen_until needs --output")
    for name in ("world_size", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.max_steps is not None and args.num_train_epochs is not None:
        parser.error("--max_steps and --num_train_epochs exclude each other")
    return args


def order_settings(args: argparse.Namespace) -> list[OrderSettings]:
    """The run's record with the flags laid over it."""
    names = {field.name for field in dataclasses.fields(OrderSettings)}
    flags = {name: value for name, value in vars(args).items() if name in names and value is not None}
    if args.global_batch_distributed is not None:
        flags["global_batch_distributed"] = as_list(args.global_batch_distributed)
    record = (read_record(args.output_dir) if args.output_dir else []) or [{}]
    return [complete({**entry, **flags}, args) for entry in record]


def data_path_of(entries: list[OrderSettings], args: argparse.Namespace) -> str:
    """The corpus that the question is about; a run may have gone on with another one."""
    asked, known_from = args.step or args.seen_until, entries[0].from_step + 1
    if known_from > 1 and (args.seen_until is not None or (asked and asked < known_from)):
        raise ValueError(
            f"{args.output_dir}: has steps from {known_from} on; name the --output_dir of the steps before that"
        )
    return [entry for entry in entries if not asked or entry.from_step < max(asked, 1)][-1].data_path


def as_list(text: str) -> list[int]:
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"--global_batch_distributed {text}: a list such as [424,80] is needed")
    return values


def complete(settings: dict, args: argparse.Namespace) -> OrderSettings:
    """Raises ValueError telling the settings that are missing, or an order that isn't known here."""
    needed = ["data_path", "seed", "world_size", "per_device_train_batch_size", "gradient_accumulation_steps"]
    missing = [f"--{name}" for name in needed if name not in settings]
    if "max_steps" not in settings and args.num_train_epochs is None:
        missing.append("--max_steps or --num_train_epochs")
    if missing:
        where = f"{args.output_dir}: has no {RECORD} that tells the settings" if args.output_dir else "no --output_dir"
        raise ValueError(f"{where}; give {', '.join(missing)}")
    settings.setdefault("num_samples", len(Corpus(settings["data_path"])))
    names = {field.name for field in dataclasses.fields(OrderSettings)}
    order = OrderSettings(**{"max_steps": 0, **{name: settings[name] for name in names & settings.keys()}})
    if order.sampler not in SAMPLERS or order.train_sampling_strategy not in STRATEGIES:
        raise ValueError(
            f"{args.output_dir}: trained in an order that can't be told ({order.sampler}, "
            f"{order.train_sampling_strategy}); known are {', '.join(STRATEGIES)} without --accelerator_config"
        )
    if order.sampler == "distributed" and order.global_batch_distributed is not None:
        raise ValueError("--sampler distributed: its order is not known with --global_batch_distributed; leave one out")
    if args.num_train_epochs is not None:
        whole = TrainingOrder(order, Corpus(order.data_path), last_step=0)
        order.max_steps = whole.steps_of(args.num_train_epochs)
    return order


def show_step(orders: list[TrainingOrder], corpus: Corpus, args: argparse.Namespace) -> None:
    order = order_of_step(orders, args.step, "--step")
    world_size = order.settings.world_size
    if args.rank is not None and not 0 <= args.rank < world_size:
        raise ValueError(f"--rank {args.rank}: the run has ranks 0 to {world_size - 1}")
    tokenizer = CorpusTokenizer(args.tokenizer_path) if args.tokenizer_path else None
    visits = sorted(order.visits(args.step, args.step), key=lambda visit: (visit.rank, visit.micro_batch))
    visits = [visit for visit in visits if args.rank in (None, visit.rank)]
    epochs = " and ".join(str(epoch) for epoch in sorted({visit.epoch for visit in visits}))
    print(f"step {args.step}, epoch {epochs}: {len(visits)} samples of {corpus.prefix}")
    if corpus.ledger is None:
        print(f"{corpus.prefix}.ledger: isn't there, so nothing tells the samples' documents")
    for visit in visits:
        print(f"rank {visit.rank}, micro-batch {visit.micro_batch}: sample {visit.sample}{origin_of(corpus, visit)}")
        if tokenizer:
            print(f"    {tokenizer.decode(corpus[visit.sample][:TEXT_SHOWN].tolist())[:TEXT_SHOWN]!r}")


def origin_of(corpus: Corpus, visit: Visit) -> str:
    origin = corpus.origin(visit.sample)
    return f", {origin[0]} line {origin[1]}, bytes {origin[2]}–{origin[3]} of its text" if origin else ""


def show_samples(orders: list[TrainingOrder], corpus: Corpus, args: argparse.Namespace) -> None:
    if args.document:
        numbers = samples_of_documents(corpus, args.document, "--document")
    else:
        numbers = np.unique(args.sample)
        if not 0 <= numbers[0] <= numbers[-1] < len(corpus):
            raise ValueError(f"--sample: {corpus.prefix} has samples 0 to {len(corpus) - 1}")
    times = 0
    for visit in visits_of_samples(orders, numbers):
        print("sample {}: epoch {}, step {}, rank {}, micro-batch {}".format(*visit))
        times += 1
    steps = f"steps {orders[0].first_step} to {orders[-1].last_step}"
    print(f"{len(numbers)} samples, taken {times} times in {steps}")


def write_seen(orders: list[TrainingOrder], corpus: Corpus, args: argparse.Namespace) -> None:
    seen = samples_until(orders, args.seen_until, "--seen_until")
    with replacing(args.output) as partial, partial.open("w") as lines:
        lines.writelines(f"{first}-{stop - 1}\n" for first, stop in ranges_of(seen))
    print(f"{args.output}: {int(seen.sum())} of {len(corpus)} samples were seen up to step {args.seen_until}")


if __name__ == "__main__":
    run(main)
