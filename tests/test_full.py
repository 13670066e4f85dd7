import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from knowlm.checkpoints import Checkpoint

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "finetune/full/finetune.py"
ROWS = [{"instruction": f"Say {word}.", "output": word} for word in ["one", "two words", "三", "(a,b)"] * 8]
FLAGS = {
    "batch_size": 8,
    "micro_batch_size": 2,
    "val_set_size": 3,
    "num_epochs": 2,
    "save_steps": 4,
    "eval_steps": 4,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def flags(base, data, out, **changes):
    paths = {"base_model": base, "data_path": data, "output_dir": out}
    return [word for name, value in (paths | FLAGS | changes).items() for word in (f"--{name}", str(value))]


def losses(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for key in ("loss", "eval_loss") for entry in log if key in entry]


def weights_of(folder):
    with Checkpoint(folder) as checkpoint:
        return dict(checkpoint)


def test_all_parameters_are_tuned_into_a_folder_that_loads_and_a_second_start_goes_on(
    run_warm, tiny_llama, data, tmp_path
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run_warm(SCRIPT, *flags(tiny_llama, data, tmp_path / "tuned", pack=True))
    assert result.returncode == 0, result.stderr
    assert "model after 8 steps, held-out loss" in result.stdout
    before, after = weights_of(tiny_llama), weights_of(tmp_path / "tuned")
    assert after.keys() == before.keys()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned")("你好").input_ids
    found = losses(tmp_path / "tuned")
    assert found[-1] < found[8]  # held-out, at the end and before
    result = run_warm(SCRIPT, *flags(tiny_llama, data, tmp_path / "tuned", pack=True, num_epochs=3))
    assert result.returncode == 0 and "going on from" in result.stderr, result.stderr
    assert "model after 12 steps" in result.stdout


def test_zero3_on_two_processes_has_the_losses_of_one_process(run_warm, tiny_llama, data, cases, tmp_path):
    result = run_warm(SCRIPT, *flags(tiny_llama, data, tmp_path / "one"))
    assert result.returncode == 0, result.stderr
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    zero3 = flags(tiny_llama, data, tmp_path / "two", deepspeed=REPOSITORY / "pretrain/configs/zero3.json")
    zero3 += ["--pack", "True", "--eval_cases", str(cases), "--eval_max_new_tokens", "2"]
    result = subprocess.run(
        [*command, *zero3],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=3e-3)
    expected, got = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert got.keys() == expected.keys()
    for name, weight in expected.items():  # those of ZeRO-3 are saved in bf16 where that is trained in
        assert (got[name].float() - weight).abs().mean() < 1e-4 + weight.abs().mean() / 256, name
    result = run_warm(SCRIPT, *flags(tiny_llama, data, tmp_path / "two", pack=True, num_epochs=3))
    assert result.returncode == 1, result.stderr  # it would go on without the optimizer's state
    assert "holds the optimizer's state of 2 processes of DeepSpeed" in result.stderr.splitlines()[-1]


@pytest.fixture
def cases(tmp_path):
    case = {"task": "NER", "language": "english", "schema": ["place"], "input": "Rome", "gold": []}
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps({"id": n} | case) + "\n" for n in range(3)))
    return path


def test_the_run_script_needs_three_arguments_and_deepspeed_its_launcher(run_warm, tiny_llama, data, tmp_path):
    result = subprocess.run(["bash", REPOSITORY / "finetune/full/run_full.sh", "a"], capture_output=True, text=True)
    assert result.returncode == 2 and "usage" in result.stderr
    config = REPOSITORY / "pretrain/configs/zero3.json"
    result = run_warm(SCRIPT, *flags(tiny_llama, data, tmp_path / "out", deepspeed=config))
    assert result.returncode == 1 and "needs its launcher" in result.stderr and "Traceback" not in result.stderr
