import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from knowlm.files import locked

pytestmark = pytest.mark.slow  # the tests run a script that imports torch
REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "finetune/lora/finetune.py"
ROWS = [
    {"instruction": f"Say {word}.", "input": "" if n % 2 else "你好", "output": word}
    for n, word in enumerate(["one", "two words", "三", "(a,b)"] * 8)
]
CASES = [
    {
        "id": n,
        "task": "NER",
        "language": "english",
        "schema": ["place"],
        "input": place,
        "gold": [{"text": place, "type": "place"}],
    }
    for n, place in enumerate(["Paris", "Warsaw", "Rome"])
]
FLAGS = {
    "batch_size": 8,
    "micro_batch_size": 2,
    "val_set_size": 3,
    "lora_r": 4,
    "num_epochs": 2,
    "eval_steps": 3,
    "save_steps": 3,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def cases(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(case) + "\n" for case in CASES))
    return path


def flags(base, data, out, **changes):
    paths = {"base_model": base, "data_path": data, "output_dir": out}
    return [word for name, value in (paths | FLAGS | changes).items() for word in (f"--{name}", str(value))]


@pytest.fixture
def tune(run_warm, tiny_llama, data, tmp_path):
    """``tune("name", flag=value, ...)`` tunes into that folder."""

    def run(name, processes=1, base=tiny_llama, **changes):
        return run_warm(SCRIPT, *flags(base, data, tmp_path / name, **changes), processes=processes)

    return run


def history(folder, key="loss"):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_tuning_writes_an_adapter_that_peft_loads_and_our_merge_merges_alike(tune, run_warm, tiny_llama, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = tune("lora", num_epochs=4)
    assert result.returncode == 0, result.stderr
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "lora")
    changed = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert len(changed) == 2 * 7 and all(p.abs().max() > 0 for p in changed)
    losses = history(tmp_path / "lora", "eval_loss")
    assert losses[-1] < losses[0]
    assert (tmp_path / "lora/loss.png").stat().st_size > 5000
    assert "held-out loss" in result.stdout
    paths = ["--path_zhixi", tiny_llama, "--path_lora", tmp_path / "lora", "--path_sfted", tmp_path / "merged"]
    result = run_warm(REPOSITORY / "tools/weight_diff.py", "merge", *paths)
    assert result.returncode == 0, result.stderr
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
        assert torch.allclose(model(ids).logits, ours, atol=1e-4)


def test_packing_and_two_processes_change_no_loss(tune, tmp_path):
    """Short of rounding: sums in another order, and in 16 bits where the CPU has them."""
    same = {"lora_dropout": 0, "learning_rate": 1e-3}
    runs = [("plain", {}), ("packed", {"pack": True}), ("two", {"processes": 2}),
            ("two_packed", {"processes": 2, "pack": True})]  # fmt: skip
    for name, options in runs:
        result = tune(name, **same, **options)
        assert result.returncode == 0, result.stderr
    expected = history(tmp_path / "plain") + history(tmp_path / "plain", "eval_loss")
    assert len(expected) == 8 + 4  # two epochs of 29 examples, validated before, twice and at the end
    for name, _ in runs[1:]:
        got = history(tmp_path / name) + history(tmp_path / name, "eval_loss")
        assert got == pytest.approx(expected, abs=3e-3), name
    step = [json.loads((tmp_path / name / "trainer_state.json").read_text())["global_step"] for name, _ in runs]
    assert len(set(step)) == 1


@pytest.mark.parametrize("way", [{"val_set_size": 3}, {"pack": True}, {"group_by_length": True}])
def test_a_killed_run_goes_on_with_the_very_losses_of_an_undisturbed_one(tune, tiny_llama, data, tmp_path, way):
    """The rest of the data, of the schedule and of dropout's random numbers."""
    way = {"batch_size": 4, "num_epochs": 3, "save_steps": 4, "val_set_size": 0, "lora_dropout": 0.2} | way
    result = tune("whole", **way)
    assert result.returncode == 0, result.stderr
    command = [sys.executable, SCRIPT, *flags(tiny_llama, data, tmp_path / "killed", **way)]
    kill_behind_a_checkpoint(command, tmp_path / "killed")
    result = tune("killed", **way)
    assert result.returncode == 0 and "going on from" in result.stderr, result.stderr
    for key in ("loss", "eval_loss"):
        assert history(tmp_path / "killed", key) == history(tmp_path / "whole", key)
    expected = adapter(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in adapter(tmp_path / "killed").items())


def kill_behind_a_checkpoint(command, folder):
    """Start a tuning and kill it behind its first checkpoint."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture
def stopped(tune, tiny_llama, data, tmp_path):
    """The flags of a run that was killed behind its first checkpoint."""
    way = {"num_epochs": 30, "save_steps": 2, "val_set_size": 0}
    command = [sys.executable, SCRIPT, *flags(tiny_llama, data, tmp_path / "lora", **way)]
    kill_behind_a_checkpoint(command, tmp_path / "lora")
    return way


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_does_not_go_on_as_another(tune, stopped, tiny_llama, sharp_llama, data, tmp_path):
    """With another adapter, other steps, other weights of the same shape, or other examples."""
    before = files_of(tmp_path / "lora")
    assert not (tmp_path / "lora/adapter_config.json").exists()
    changes = [{"lora_alpha": 64}, {"lora_r": 8}, {"lora_target_modules": "[q_proj]"}, {"batch_size": 4}, {"seed": 1}]
    changes += [{"learning_rate": 0.5}, {"base": sharp_llama}, {"cutoff_len": 90}, {"prompt_template_name": "./t.json"}]
    template = {"prompt_input": "{instruction}{input}=", "prompt_no_input": "{instruction}=", "response_split": "="}
    (tmp_path / "t.json").write_text(json.dumps(template))
    for change in changes:
        result = tune("lora", **stopped | change)
        name = next(iter(change))
        name = {"base": "base_model", "cutoff_len": "data_path", "prompt_template_name": "data_path"}.get(name, name)
        said = result.stderr.splitlines()[-1]
        assert result.returncode == 1 and f"--{name} " in said and "start over with --resume" in said, result.stderr
        assert "Traceback" not in result.stderr
    assert files_of(tmp_path / "lora") == before
    last = max(tmp_path.glob("lora/checkpoint-*"))
    result = tune("elsewhere", resume_from_checkpoint=last, **stopped | {"lora_r": 8})
    assert result.returncode == 1 and "--lora_r 8: the run in" in result.stderr
    assert not (tmp_path / "elsewhere").exists()
    shutil.copytree(tiny_llama, tmp_path / "moved")
    same = {"base": tmp_path / "moved", "num_epochs": 0.5, "pack": True, "micro_batch_size": 1}
    result = tune("lora", **stopped | same)
    assert result.returncode == 0 and "going on from" in result.stderr, result.stderr


def test_a_run_goes_on_where_its_layers_are_written_another_way(tune, stopped):
    layers = "['v_proj','q_proj', k_proj,o_proj,down_proj,up_proj,gate_proj,]"
    result = tune("lora", **stopped | {"num_epochs": 0.5, "lora_target_modules": layers})
    assert result.returncode == 0 and "going on from" in result.stderr, result.stderr


def test_an_adapter_alone_is_tuned_further(tune, tmp_path):
    assert tune("lora", num_epochs=0.5).returncode == 0
    (published := tmp_path / "published").mkdir()  # as in 2023
    config = Path(shutil.copy(tmp_path / "lora/adapter_config.json", published))
    torch.save(adapter(tmp_path / "lora"), published / "adapter_model.bin")
    tuned = {"resume_from_checkpoint": published, "num_epochs": 0.1, "save_steps": 1}
    assert tune("further", learning_rate=1e-12, **tuned).returncode == 0
    before, after = adapter(tmp_path / "lora"), adapter(tmp_path / "further")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert any(weight.abs().max() > 1e-3 for name, weight in before.items() if "lora_B" in name)
    assert "going on from" in tune("further", learning_rate=1e-12, **tuned | {"num_epochs": 0.5}).stderr
    result = tune("further", learning_rate=1e-12, **tuned | {"num_epochs": 1, "resume_from_checkpoint": None})
    assert result.returncode == 1 and "began with another adapter, or none" in result.stderr
    for change, said in (({"lora_r": 8}, "has r 4, not 8"), ({"lora_target_modules": "[q_proj]"}, "is on down_proj,")):
        result = tune("other", **tuned | change)
        assert result.returncode == 1 and said in result.stderr.splitlines()[-1], result.stderr
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    assert "has use_rslora, which no flag gives" in tune("other", **tuned).stderr
    assert not (tmp_path / "other").exists()


def test_starting_over_leaves_nothing_that_a_later_start_would_go_on_from(tune, stopped, tmp_path):
    result = tune("lora", **stopped | {"num_epochs": 0.3, "lora_r": 8, "resume_from_checkpoint": False})
    assert result.returncode == 0 and "going on from" not in result.stderr, result.stderr
    assert [path.name for path in tmp_path.glob("lora/checkpoint-*")] == ["checkpoint-2"]
    assert next(value.shape[0] for name, value in adapter(tmp_path / "lora").items() if "lora_A" in name) == 8


def test_a_finished_run_is_neither_repeated_nor_replaced(tune, data, tmp_path):
    assert tune("lora", num_epochs=0.3).returncode == 0
    before = files_of(tmp_path / "lora")
    result = tune("lora", num_epochs=0.3)
    assert result.returncode == 0 and "lora: this run is over" in result.stderr and not result.stdout, result.stderr
    for change in ({"lora_r": 8}, {"resume_from_checkpoint": False}, {"lora_r": 8, "resume_from_checkpoint": False}):
        result = tune("lora", num_epochs=0.3, **change)
        assert result.returncode == 1 and "name another --output_dir" in result.stderr.splitlines()[-1], result.stderr
        assert "or start over" not in result.stderr
    assert files_of(tmp_path / "lora") == before
    result = tune("lora", num_epochs=0.6)
    assert result.returncode == 0 and "going on from" in result.stderr, result.stderr
    (tmp_path / "lora/tuning_data.json").unlink()
    result = tune("lora", num_epochs=0.6)
    assert result.returncode == 1 and "holds a model that was not tuned there" in result.stderr


def test_a_loss_that_is_no_number_stops_the_run_in_one_line(tune, tmp_path):
    result = tune("lora", learning_rate=1e30, warmup_steps=0, num_epochs=20, save_steps=100, val_set_size=0)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "the loss became nan at step" in result.stderr.splitlines()[-1], result.stderr
    assert not list(tmp_path.glob("lora/*adapter*")) and not list(tmp_path.glob("lora/checkpoint-*"))


@pytest.mark.parametrize("bits", ["load_8bit", "load_4bit"])
def test_a_quantized_base_is_tuned_on_a_cpu_from_a_folder_of_data(tune, data, tmp_path, bits):
    (tmp_path / "folder").mkdir()
    data.rename(tmp_path / "folder/a.json")
    (tmp_path / "folder/b.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    result = tune("lora", data_path=tmp_path / "folder", pack=True, num_epochs=4, **{bits: True})
    assert result.returncode == 0, result.stderr
    assert "33 examples" in result.stderr
    losses = history(tmp_path / "lora", "eval_loss")
    assert losses[-1] < losses[0]
    assert adapter(tmp_path / "lora").keys()


@pytest.fixture(scope="module")
def sharp_llama(tiny_llama, tiny_tokenizer, tmp_path_factory):
    """A random model whose output layer is large enough for an adapter to make it sure of something."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.lm_head.weight.data *= 20
    folder = tmp_path_factory.mktemp("sharp_llama")
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_the_result_is_the_checkpoint_of_the_best_validation_loss(tune, sharp_llama, tmp_path):
    """A learning rate that grows until it ruins the model makes an early checkpoint the best."""
    ruinous = {"learning_rate": 2, "warmup_steps": 500, "num_epochs": 8}
    result = tune("lora", base=sharp_llama, best_by="loss", save_total_limit=2, **ruinous)
    assert result.returncode == 0, result.stderr
    state = json.loads((tmp_path / "lora/trainer_state.json").read_text())
    by_step = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    best = min((step for step in by_step if step), key=by_step.get)
    assert best < state["global_step"]
    assert f"adapter of step {best} of {state['global_step']}, the best by loss: {by_step[best]:.3f}" in result.stdout
    kept = adapter(tmp_path / f"lora/checkpoint-{best}")
    assert all(torch.equal(value, kept[name]) for name, value in adapter(tmp_path / "lora").items())
    for file in ("adapter_config.json", "adapter_model.safetensors", "trainer_state.json"):
        (tmp_path / "lora" / file).unlink()  # as if killed behind the last checkpoint
    (tmp_path / "lora").rename(tmp_path / "moved")
    result = tune("moved", base=sharp_llama, best_by="loss", save_total_limit=2, **ruinous)
    assert f"adapter of step {best} of" in result.stdout, result.stderr
    assert all(torch.equal(value, kept[name]) for name, value in adapter(tmp_path / "moved").items())


def test_the_best_checkpoint_can_be_told_by_extraction(tune, sharp_llama, data, cases, tmp_path):
    from knowlm.extraction.forms import render

    asked = render("NER", ["place"], language="english")
    rows = [{"instruction": asked, "input": c["input"], "output": f"({c['input']},place)"} for c in CASES]
    data.write_text(json.dumps(rows * 8))
    extracting = {"best_by": "f1", "eval_cases": cases, "eval_max_new_tokens": 24, "eval_steps": 15, "save_steps": 15}
    result = tune("lora", base=sharp_llama, num_epochs=20, lora_r=16, lora_dropout=0, pack=True, **extracting)
    assert result.returncode == 0, result.stderr
    scores = history(tmp_path / "lora", "eval_f1")
    assert scores[0] == 0 and max(scores) > 0
    assert f"the best by f1: {max(scores):.3f}" in result.stdout
    pair = tune("pair", processes=2, eval_cases=cases, eval_max_new_tokens=4, num_epochs=0.1)
    assert pair.returncode == 0 and history(tmp_path / "pair", "eval_f1") == [0, 0], pair.stderr


def test_two_runs_do_not_write_one_folder_at_once(tune, tmp_path):
    with locked(tmp_path / "lora"):
        result = tune("lora", num_epochs=1)
    assert result.returncode == 1 and "lora: another command is writing it" in result.stderr.splitlines()[-1]
    assert not list((tmp_path / "lora").glob("*adapter*"))


def test_a_dry_run_says_how_the_data_fit_and_writes_nothing(tune, data, tmp_path):
    data.write_text(json.dumps([*ROWS, ROWS[0] | {"output": "x " * 500}, ROWS[0] | {"instruction": "x " * 500}]))
    result = tune("lora", cutoff_len=200, pack=True, dry_run=True)
    assert result.returncode == 0, result.stderr
    assert "34 examples of" in result.stderr and "2 (5.9%) are cut at --cutoff_len 200" in result.stderr
    assert "1 of them lose their whole answer and are left out" in result.stderr
    assert "30 to train on, 3 held out: 4 steps" in result.stderr
    assert not (tmp_path / "lora").exists() and not result.stdout


def test_another_architecture_is_tuned_where_its_layers_are_named(tune, tiny_tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    result = tune("lora", base=tmp_path / "gpt2")
    assert result.returncode == 1 and "it has c_attn, c_proj, c_fc; name some of them, or all-linear" in result.stderr
    for targets in ("all-linear", "c_attn", "['c_attn', 'c_fc']"):
        result = tune(f"lora-{targets}", base=tmp_path / "gpt2", lora_target_modules=targets, num_epochs=0.1)
        assert result.returncode == 0, result.stderr
        assert len(adapter(tmp_path / f"lora-{targets}")) == 2 * 2 * {"all-linear": 4, "c_attn": 1}.get(targets, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_by": "f1"}, "name a file of them with --eval_cases"),
        ({"best_by": "acc"}, "loss or f1 is needed"),
        ({"lora_dropout": 1.5}, "--lora_dropout 1.5: must be 0 or more and below 1"),
        ({"best_by": "loss", "save_steps": 6}, "make --save_steps 6 and --eval_steps 3 equal"),
        ({"load_8bit": True, "load_4bit": True}, "leave one out"),
        ({"cutoff_len": 20}, "cuts the answer off every example"),
        ({"micro_batch_size": 0}, "must be 1 or more"),
        ({"lora_alpha": 0}, "--lora_alpha 0: must be 1 or more"),
        ({"learning_rate": -1}, "--learning_rate -1.0: must be above 0"),
        ({"num_epochs": "nan"}, "--num_epochs nan: must be above 0"),
        ({"seed": -1}, "--seed -1: must be from 0"),
        ({"base_model": "./nowhere"}, "no such model folder"),
        ({"lora_target_modules": "[q_proj,w_pack]"}, "w_pack: "),
        ({"cutof_len": 5}, "unrecognized arguments: --cutof_len"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_written(tune, tmp_path, changes, message):
    result = tune("lora", **changes)
    assert result.returncode == (2 if "unrecognized" in message else 1)
    assert message in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert not (tmp_path / "lora").exists()


VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    base, adapter, prompt = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    llm = LLM(base, enforce_eager=True, dtype="float32", max_model_len=256, enable_lora=True, max_lora_rank=16,
              kv_cache_memory_bytes=64 << 20, disable_log_stats=True)
    greedy = SamplingParams(temperature=0, max_tokens=8)
    for request in (LoRARequest("tuned", 1, adapter), None):
        answer = llm.generate({"prompt_token_ids": prompt}, greedy, lora_request=request, use_tqdm=False)[0]
        print("ANSWER", json.dumps(list(answer.outputs[0].token_ids)))
"""


def test_vllm_answers_with_the_adapter_as_peft_does(tune, sharp_llama, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = tune("lora", base=sharp_llama, lora_r=16)
    assert result.returncode == 0, result.stderr
    prompt = list(range(3, 40))
    (tmp_path / "ask.py").write_text(VLLM)
    command = [sys.executable, tmp_path / "ask.py", sharp_llama, tmp_path / "lora", json.dumps(prompt)]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, cwd=tmp_path)
    answers = [json.loads(line.split(" ", 1)[1]) for line in result.stdout.splitlines() if line.startswith("ANSWER")]
    assert result.returncode == 0 and len(answers) == 2, result.stderr[-3000:]
    model = AutoModelForCausalLM.from_pretrained(sharp_llama)
    for answer in reversed(answers):  # without the adapter, then with it
        expected = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        assert answer == expected.tolist()
        model = PeftModel.from_pretrained(model, tmp_path / "lora")
    assert answers[0] != answers[1]
