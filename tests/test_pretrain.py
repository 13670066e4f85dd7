import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from knowlm.checkpoints import Checkpoint
from knowlm.corpus import CorpusWriter, merge_corpora
from knowlm.training import last_whole_checkpoint, translate_flags

pytestmark = pytest.mark.slow  # most tests run a script that imports torch
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def corpus(tmp_path):
    """A corpus of two types whose text repeats, so that a few steps lower its loss."""
    generator = np.random.default_rng(0)
    for name, count in (("a", 24), ("b", 8)):
        with CorpusWriter(tmp_path / name, {"vocab_size": 600, "tokenizer_sha256": "x", "bos": 1, "eos": 2}) as writer:
            for _ in range(count):
                start = int(generator.integers(10, 20))
                sample = [1, *range(start, start + int(generator.integers(8, 24))), 2]
                writer.add(np.array(sample), [len(sample)])
    merge_corpora([str(tmp_path / "a"), str(tmp_path / "b")], [0, 1], str(tmp_path / "corpus"))
    return tmp_path / "corpus"


def flags(model, corpus, out, *more):
    return [
        REPOSITORY / "pretrain/train.py",
        "--model_name_or_path",
        model,
        "--data_path",
        corpus,
        "--output_dir",
        out,
        "--per_device_train_batch_size",
        4,
        "--learning_rate",
        1e-2,
        "--logging_steps",
        1,
        "--warmup_steps",
        1,
        *more,
    ]


@pytest.fixture
def train(run_warm):
    """``train(model, corpus, out, *flags, processes=1)`` runs the script."""
    return lambda *arguments, **options: run_warm(*flags(*arguments), **options)


def weights_of(folder):
    with Checkpoint(folder) as checkpoint:
        return dict(checkpoint)


def losses(folder, key="loss"):
    return [
        entry[key] for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"] if key in entry
    ]


def test_training_lowers_the_held_out_loss_and_writes_a_model(train, tiny_llama, corpus, tmp_path):
    result = train(
        tiny_llama,
        corpus,
        tmp_path / "out",
        "--eval_data_path",
        corpus,
        "--eval_strategy",
        "epoch",
        "--evaluation_strategy",
        "epoch",
        "--overwrite_output_dir",
        "--num_train_epochs",
        2,
    )
    assert result.returncode == 0, result.stderr
    held_out = losses(tmp_path / "out", "eval_loss")
    assert held_out[-1] < held_out[0]
    assert (tmp_path / "out/loss.png").is_file()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "--evaluation_strategy is now --eval_strategy" in result.stderr


def test_bf16_trains_alike_and_the_weights_stay_32_bit(train, tiny_llama, corpus, tmp_path):
    for bf16 in (True, False):
        result = train(tiny_llama, corpus, tmp_path / str(bf16), "--max_steps", 6, "--bf16", bf16)
        assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), abs=0.05)
    assert losses(tmp_path / "True") != losses(tmp_path / "False")
    assert {value.dtype for value in weights_of(tmp_path / "True").values()} == {torch.float32}


def test_proportional_batches_train_and_must_sum_to_the_batch(train, tiny_llama, corpus, tmp_path):
    result = train(tiny_llama, corpus, tmp_path / "out", "--global_batch_distributed", "[3,1]", "--max_steps", 3)
    assert result.returncode == 0, result.stderr
    result = train(tiny_llama, corpus, tmp_path / "out2", "--global_batch_distributed", "[3,2]")
    assert result.returncode == 1 and "sums to 5; devices × per-device batch is 4" in result.stderr


def test_a_killed_run_goes_on_as_if_undisturbed(train, tiny_llama, corpus, tmp_path):
    more = ["--save_steps", 2, "--num_train_epochs", 6]
    assert train(tiny_llama, corpus, tmp_path / "whole", *more).returncode == 0
    killed = subprocess.Popen(
        [sys.executable, *map(str, flags(tiny_llama, corpus, tmp_path / "killed", *more))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not last_whole_checkpoint(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    result = train(tiny_llama, corpus, tmp_path / "killed", *more)
    assert result.returncode == 0 and "going on from" in result.stderr
    expected = weights_of(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(tmp_path / "killed").items())


def test_zero3_on_two_processes_trains_as_plain_two_processes_do(train, tiny_llama, corpus, tmp_path):
    more = ["--max_steps", 4, "--seed", 3, "--bf16", "False"]
    plain = train(tiny_llama, corpus, tmp_path / "plain", *more, processes=2)
    assert plain.returncode == 0, plain.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    more += ["--deepspeed", REPOSITORY / "pretrain/configs/zero3.json"]
    zero3 = subprocess.run(
        [*launcher, *map(str, flags(tiny_llama, corpus, tmp_path / "zero3", *more))],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    assert zero3.returncode == 0, zero3.stderr
    assert losses(tmp_path / "zero3") == pytest.approx(losses(tmp_path / "plain"), abs=1e-3)
    expected, got = weights_of(tmp_path / "plain"), weights_of(tmp_path / "zero3")
    assert got.keys() == expected.keys()
    assert all(torch.allclose(got[name], expected[name], atol=1e-3) for name in expected)


def test_deepspeed_without_its_launcher_is_told(train, tiny_llama, corpus, tmp_path):
    result = train(tiny_llama, corpus, tmp_path / "out", "--deepspeed", REPOSITORY / "pretrain/configs/zero3.json")
    assert result.returncode == 1
    assert "needs its launcher" in result.stderr and "Traceback" not in result.stderr


def test_an_unknown_flag_and_a_missing_corpus_are_one_line_each(train, tiny_llama, corpus, tmp_path):
    result = train(tiny_llama, corpus, tmp_path / "out", "--lerning_rate", 1)
    assert result.returncode == 2 and "unrecognized arguments: --lerning_rate 1" in result.stderr
    result = train(tiny_llama, tmp_path / "corpsu", tmp_path / "out")
    assert result.returncode == 1
    assert f"did you mean {tmp_path / 'corpus.idx'}?" in result.stderr.splitlines()[-1]


def test_a_corpus_of_a_larger_vocabulary_is_refused(train, tiny_llama, tmp_path):
    with CorpusWriter(tmp_path / "large", {"vocab_size": 32_000, "bos": 1, "eos": 2}) as writer:
        writer.add(np.array([1, 20_000, 2]), [3])
    result = train(tiny_llama, tmp_path / "large", tmp_path / "out")
    assert result.returncode == 1 and "made with a tokenizer of 32000 pieces" in result.stderr


def test_a_half_written_checkpoint_is_not_resumed(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_whole_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-2/trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-10/trainer_state.json").write_text('{"log_history": [')  # a kill cut it
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-best")  # a user's own
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-2")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--warmup_ratio", "0.1"], ["--warmup_steps", "0.1"]),
        (["--no_cuda", "True"], ["--use_cpu", "True"]),
        (["--overwrite_output_dir", "--seed", "1"], ["--seed", "1"]),
        (["--logging_dir=x"], []),
        (["--evaluation_strategy=steps"], ["--eval_strategy=steps"]),
    ],
)
def test_flags_of_2023_are_translated(old, new):
    assert translate_flags(old) == new
