import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.corpus import LEDGER, CorpusWriter, merge_corpora
from knowlm.trained_data import OrderSettings, TrainingOrder, open_orders, read_record

REPOSITORY = Path(__file__).resolve().parents[1]
TRACE = "pretrain/tools/trace.py"
RECORDING = """
import json, runpy, sys, transformers

log = sys.argv[1]
train = transformers.Trainer.training_step


def training_step(self, model, inputs, *more, **named):
    with open(f"{log}.{self.args.process_index}", "a") as lines:
        print(json.dumps([self.state.global_step + 1, (inputs["input_ids"][:, 1] - 3).tolist()]), file=lines)
    return train(self, model, inputs, *more, **named)


transformers.Trainer.training_step = training_step
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Samples:
    """As much of a corpus as an order needs."""

    prefix = "corpus"

    def __init__(self, lengths):
        self.lengths, self.type_counts = np.array(lengths), [len(lengths)]

    def __len__(self):
        return len(self.lengths)


def settings(**changed):
    usual = {"data_path": "corpus", "num_samples": 17, "seed": 42, "world_size": 2, "max_steps": 6}
    return OrderSettings(**(usual | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} | changed))


@pytest.fixture
def corpus(tmp_path):
    """17 samples of two types; the second token of sample n is n + 3, its document line n + 1 of its type's file."""
    number, generator = 0, np.random.default_rng(0)
    for name, count in (("a", 12), ("b", 5)):
        sidecar = {"vocab_size": 600, "bos": 1, "eos": 2, "sources": [{"path": f"{name}.txt"}]}
        with CorpusWriter(tmp_path / name, sidecar, ledger=True) as writer:
            for line in range(1, count + 1):
                sample = [1, number + 3, *[50] * int(generator.integers(4, 24)), 2]
                writer.add(np.array(sample), [len(sample)], np.array([(0, line, 0, 9)], LEDGER))
                number += 1
    return merge_corpora([str(tmp_path / "a"), str(tmp_path / "b")], [0, 1], str(tmp_path / "corpus"))


@given(*[st.integers(1, top) for top in (40, 3, 4, 3)], st.sampled_from(["accelerate", "distributed"]), st.booleans())
def test_the_order_is_that_of_the_libraries(num_samples, world_size, batch_size, accumulation, sampler, drop_last):
    from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
    from torch.utils.data import BatchSampler, DistributedSampler

    if drop_last and num_samples < 2 * world_size * batch_size:
        return
    samples, epochs = range(num_samples), 2
    batches = []  # of each rank, through all epochs
    for rank in range(world_size):
        seen = []
        for epoch in range(epochs):
            if sampler == "distributed":
                source = DistributedSampler(samples, world_size, rank, seed=7)
            else:
                source = SeedableRandomSampler(samples, data_seed=7)
            source.set_epoch(epoch)
            of_epoch = BatchSampler(source, batch_size, drop_last)
            if sampler == "accelerate" and world_size > 1:
                of_epoch = BatchSamplerShard(of_epoch, world_size, rank)
            seen.append([list(batch) for batch in of_epoch])
        batches.append(seen)
    order = TrainingOrder(
        settings(
            num_samples=num_samples,
            seed=7,
            world_size=world_size,
            sampler=sampler,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            dataloader_drop_last=drop_last,
        ),
        Samples([5] * num_samples),
        last_step=0,
    )
    assert order.rounds == len(batches[0][0])
    got = defaultdict(list)
    for visit in order.visits(1, order.steps_of(epochs)):
        got[visit.rank, visit.epoch, visit.step, visit.micro_batch].append(visit.sample)
    for rank, seen in enumerate(batches):
        ours = [numbers for key, numbers in sorted(got.items()) if key[0] == rank]
        theirs = [batch for of_epoch in seen for batch in of_epoch]
        assert ours == theirs[: len(theirs) // accumulation * accumulation if sampler == "distributed" else None]


def train(model, data, out, log, processes, *flags):
    script = log.with_name("recording.py")
    script.write_text(RECORDING)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641"]
    command = [sys.executable, *(launcher if processes == 2 else []), script, log, REPOSITORY / "pretrain/train.py"]
    command += ["--model_name_or_path", model, "--data_path", data, "--output_dir", out, "--bf16", "False"]
    command += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr


def batches_of_run(log):
    """(step, rank) -> its micro-batches, as they went into the model."""
    seen = defaultdict(list)
    for path in log.parent.glob(f"{log.name}.*"):
        for line in path.read_text().splitlines():
            step, samples = json.loads(line)
            seen[step, int(path.suffix[1:])].append(samples)
    return dict(seen)


def batches_traced(out, corpus):
    orders = open_orders([OrderSettings(**entry) for entry in read_record(out)], corpus)
    seen = defaultdict(lambda: defaultdict(list))
    for order in orders:
        for visit in order.visits(order.first_step, order.last_step):
            seen[visit.step, visit.rank][visit.micro_batch].append(visit.sample)
    return {key: [numbers for _, numbers in sorted(batches.items())] for key, batches in seen.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        (1, []),
        (2, ["--data_seed", 5]),
        (2, ["--global_batch_distributed", "[3,1]", "--fill_mode", 2]),
        (1, ["--train_sampling_strategy", "group_by_length", "--model_max_length", 16]),
        (2, ["--dataloader_drop_last", True, "--max_steps", 3]),
    ],
    ids=lambda value: str(value),
)
def test_a_step_is_traced_to_what_went_into_the_model(tiny_llama, corpus, tmp_path, processes, flags):
    out = tmp_path / "out"
    train(tiny_llama, corpus.prefix, out, tmp_path / "log", processes, "--num_train_epochs", 2, "--seed", 3, *flags)
    seen = batches_of_run(tmp_path / "log")
    assert batches_traced(out, corpus) == seen and len(seen) >= 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        ((2, 2), ["--train_sampling_strategy", "group_by_length"]),
        ((1, 2), []),
        ((1, 1), ["--ignore_data_skip", True]),
    ],
    ids=lambda value: str(value),
)
def test_a_resumed_run_is_traced(tiny_llama, corpus, tmp_path, processes, flags):
    out = tmp_path / "out"
    stop = 4 if processes[0] == 2 else 7  # within the second epoch
    first = ["--save_steps", stop, "--num_train_epochs", 3, *flags]
    train(tiny_llama, corpus.prefix, out, tmp_path / "log", processes[0], *first, "--max_steps", stop)
    train(tiny_llama, corpus.prefix, out, tmp_path / "log", processes[1], *first)
    assert batches_traced(out, corpus) == batches_of_run(tmp_path / "log")
    assert [entry["from_step"] for entry in read_record(out)] == [0, stop]
