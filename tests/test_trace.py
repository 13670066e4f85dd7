import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.corpus import LEDGER, Corpus, CorpusWriter, merge_corpora
from knowlm.trained_data import OrderSettings, TrainingOrder, note_order, open_orders, read_record, samples_until

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


@pytest.fixture
def train(run_warm, tiny_llama, corpus, tmp_path):
    """``train(processes, *flags)`` trains into ``tmp_path / "out"`` and adds to ``tmp_path / "log"`` what it is fed."""
    script = tmp_path / "recording.py"
    script.write_text(RECORDING)
    usual = ["--model_name_or_path", tiny_llama, "--data_path", corpus.prefix, "--output_dir", tmp_path / "out"]
    usual += ["--bf16", "False", "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]

    def run(processes, *flags):
        arguments = [tmp_path / "log", REPOSITORY / "pretrain/train.py", *usual, *flags]
        result = run_warm(script, *arguments, processes=processes, env={"DS_ACCELERATOR": "cpu"})
        assert result.returncode == 0, result.stderr

    return run


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
        (2, ["--dataloader_drop_last", True, "--deepspeed", REPOSITORY / "pretrain/configs/zero3.json"]),
    ],
    ids=str,
)
def test_a_step_is_traced_to_what_went_into_the_model(train, corpus, tmp_path, processes, flags):
    train(processes, "--num_train_epochs", 2, "--seed", 3, *flags)
    seen = batches_of_run(tmp_path / "log")
    assert batches_traced(tmp_path / "out", corpus) == seen and len(seen) >= 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        ((2, 2), ["--train_sampling_strategy", "group_by_length"]),
        ((1, 2), []),
        ((1, 1), ["--ignore_data_skip", True]),
    ],
    ids=str,
)
def test_a_resumed_run_is_traced(train, corpus, tmp_path, processes, flags):
    stop = 4 if processes[0] == 2 else 7  # within the second epoch
    first = ["--save_steps", stop, "--num_train_epochs", 3, *flags]
    train(processes[0], *first, "--max_steps", stop)
    train(processes[1], *first)
    assert batches_traced(tmp_path / "out", corpus) == batches_of_run(tmp_path / "log")
    assert [entry["from_step"] for entry in read_record(tmp_path / "out")] == [0, stop]


@pytest.fixture
def run_of(corpus, tmp_path):
    """The folder of a run that was never made, with the record of one; more settings are laid over it."""

    def note(**changed):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        note_order(out, settings(**{"data_path": corpus.prefix, "train_sampling_strategy": "sequential"} | changed))
        return out

    return note


def test_a_step_is_told_with_its_documents(run_script, run_of):
    result = run_script(TRACE, "--output_dir", run_of(), "--step", 2, "--rank", 1)
    assert result.returncode == 0, result.stderr
    # 17 samples, 2 ranks of 2: rounds of 4 from sample 0 on, two of them a step
    assert result.stdout.splitlines()[1:] == [
        "rank 1, micro-batch 0: sample 10, a.txt line 11, bytes 0–9 of its text",
        "rank 1, micro-batch 0: sample 11, a.txt line 12, bytes 0–9 of its text",
        "rank 1, micro-batch 1: sample 14, b.txt line 3, bytes 0–9 of its text",
        "rank 1, micro-batch 1: sample 15, b.txt line 4, bytes 0–9 of its text",
    ]


def test_a_step_is_told_with_its_texts(run_script, run_of, sentencepiece_model):
    result = run_script(TRACE, "--output_dir", run_of(), "--step", 1, "--tokenizer_path", sentencepiece_model)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1 + 2 * 8


def test_without_a_ledger_the_samples_are_told(run_script, run_of, corpus):
    Path(f"{corpus.prefix}.ledger").unlink()
    result = run_script(TRACE, "--output_dir", run_of(), "--step", 3)
    assert "corpus.ledger: isn't there, so nothing tells the samples' documents" in result.stdout
    assert result.stdout.splitlines()[2:] == [
        "rank 0, micro-batch 0: sample 16",
        "rank 0, micro-batch 0: sample 0",  # it begins anew for want of others
        "rank 1, micro-batch 0: sample 1",
        "rank 1, micro-batch 0: sample 2",
    ]


def test_a_document_and_a_sample_are_told_with_their_steps(run_script, run_of):
    for question in (["--document", "b.txt:3-4"], ["--sample", 15, 14]):
        result = run_script(TRACE, "--output_dir", run_of(), *question)
        assert result.stdout.splitlines() == [
            "sample 14: epoch 1, step 2, rank 1, micro-batch 1",
            "sample 15: epoch 1, step 2, rank 1, micro-batch 1",
            "sample 14: epoch 2, step 5, rank 1, micro-batch 1",
            "sample 15: epoch 2, step 5, rank 1, micro-batch 1",
            "2 samples, taken 4 times in steps 1 to 6",
        ]


def test_seen_samples_are_listed_and_can_be_removed(run_script, run_of, corpus, tmp_path):
    result = run_script(TRACE, "--output_dir", run_of(), "--seen_until", 1, "--output", tmp_path / "seen")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "seen").read_text() == "0-7\n"
    paths = ["--read_path_prefix", corpus.prefix, "--new_path_prefix", tmp_path / "unseen"]
    flags = ["--remove_samples", f"@{tmp_path / 'seen'}"]
    result = run_script("pretrain/preprocess.py", "--mode", "remove", *paths, *flags)
    assert result.returncode == 0, result.stderr
    assert [sample[1] - 3 for sample in Corpus(tmp_path / "unseen")] == list(range(8, 17))


def test_the_settings_can_be_given_by_flags(run_script, corpus):
    flags = ["--data_path", corpus.prefix, "--seed", 42, "--world_size", 2, "--sampler", "distributed"]
    flags += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--num_train_epochs", 1]
    result = run_script(TRACE, *flags, "--train_sampling_strategy", "sequential", "--step", 1, "--rank", 1)
    assert [line.split()[5].strip(",") for line in result.stdout.splitlines()[1:]] == ["1", "3", "5", "7"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step", 7], "--step 7: the run has steps 1 to 6"),
        (["--step", 0], "--step 0: the run has steps 1 to 6"),
        (["--step", 1, "--rank", 2], "--rank 2: the run has ranks 0 to 1"),
        (["--seen_until", 7, "--output", "seen"], "--seen_until 7: the run has steps 1 to 6"),
        (["--document", "a.txt:99"], "--document a.txt:99: no sample of"),
        (["--document", "c.txt:1"], "--document c.txt:1: the corpus was made of a.txt, b.txt"),
        (["--sample", 17], "has samples 0 to 16"),
        (["--step", 1, "--data_path", "{folder}/a"], "a: has 12 samples, 17 when it was trained on"),
        (["--step", 1, "--global_batch_distributed", "os"], "a list such as [424,80] is needed"),
        (["--step", 1, "--global_batch_distributed", "[4]"], "the corpus has 2 types"),
    ],
    ids=str,
)
def test_what_can_not_be_told_is_told(run_script, run_of, tmp_path, flags, message):
    flags = [str(flag).format(folder=tmp_path) for flag in flags]
    result = run_script(TRACE, "--output_dir", run_of(), *flags)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr


def test_missing_settings_are_named(run_script, tmp_path):
    result = run_script(TRACE, "--output_dir", tmp_path, "--step", 1, "--world_size", 8)
    assert result.returncode == 1
    assert (
        f"{tmp_path}: has no training_data.json that tells the settings; give --data_path, --seed, "
        "--per_device_train_batch_size, --gradient_accumulation_steps, --max_steps or --num_train_epochs"
    ) in result.stderr
    (tmp_path / "trainer_state.json").write_text('{"max_steps": 9, "train_batch_size": 4}')
    result = run_script(TRACE, "--output_dir", tmp_path, "--step", 1, "--world_size", 8)
    assert result.stderr.strip().endswith("give --data_path, --seed, --gradient_accumulation_steps")


def test_a_wrong_command_is_told(run_script):
    for flags, message in (
        ([], "one of the arguments --step --sample --document --seen_until is required"),
        (["--step", 1, "--sample", 2], "not allowed with"),
        (["--sample", 1, "--rank", 0], "--rank goes with --step"),
        (["--seen_until", 1], "--seen_until needs --output"),
    ):
        result = run_script(TRACE, *flags)
        assert result.returncode == 2 and message in result.stderr


def test_steps_trained_elsewhere_are_told(run_script, run_of):
    result = run_script(TRACE, "--output_dir", run_of(from_step=3), "--step", 2)
    assert result.returncode == 1
    assert "has steps from 4 on; name the --output_dir of the steps before that" in result.stderr


def test_a_run_may_go_on_with_another_corpus(run_script, run_of, tmp_path):
    run_of()
    out = run_of(from_step=3, max_steps=8, data_path=str(tmp_path / "a"), num_samples=12)
    for step, path in ((3, "corpus"), (4, "a")):
        result = run_script(TRACE, "--output_dir", out, "--step", step)
        assert f"samples of {tmp_path / path}\n" in result.stdout
    summary = run_script(TRACE, "--output_dir", out, "--sample", 1).stdout.splitlines()[-1]
    assert summary.endswith("in steps 4 to 8")


def test_a_corpus_that_was_written_anew_since_is_refused(run_script, run_of, corpus, tmp_path):
    out = run_of(corpus_blake3=corpus.digest)
    assert run_script(TRACE, "--output_dir", out, "--step", 2).returncode == 0
    merge_corpora([str(tmp_path / "a"), str(tmp_path / "b")], [1, 0], str(tmp_path / "corpus"))
    result = run_script(TRACE, "--output_dir", out, "--step", 2)
    assert result.returncode == 1 and "was written anew since" in result.stderr


def test_an_unknown_order_is_refused(run_script, run_of):
    result = run_script(TRACE, "--output_dir", run_of(sampler="accelerate with another split_batches"), "--step", 2)
    assert result.returncode == 1 and "trained in an order that can't be told" in result.stderr


def test_the_record_keeps_what_changed_and_forgets_what_is_trained_again(tmp_path):
    note_order(tmp_path, settings())
    note_order(tmp_path, settings(from_step=4))  # goes on as before
    note_order(tmp_path, settings(from_step=5, world_size=4))
    assert [entry["from_step"] for entry in read_record(tmp_path)] == [0, 5]
    note_order(tmp_path, settings(from_step=3, world_size=8))
    assert [(entry["from_step"], entry["world_size"]) for entry in read_record(tmp_path)] == [(0, 2), (3, 8)]
    note_order(tmp_path, settings())
    assert [entry["from_step"] for entry in read_record(tmp_path)] == [0]


def test_what_was_seen_is_the_same_as_the_visits(corpus):
    same = {"data_path": corpus.prefix, "max_steps": 9}
    orders = open_orders([settings(**same), settings(from_step=4, world_size=3, **same)], corpus)
    for last in range(1, 10):
        visited = {
            visit.sample
            for order in orders
            for visit in order.visits(order.first_step, order.last_step)
            if visit.step <= last
        }
        assert set(np.flatnonzero(samples_until(orders, last, "--seen_until")).tolist()) == visited
