import importlib.util
import json
from pathlib import Path

import pytest

from knowlm.prompts import Prompter

pytestmark = pytest.mark.slow  # most tests run a script that imports torch
SCRIPT = Path(__file__).resolve().parents[1] / "finetune/lora/finetune.py"
ROWS = [
    {"instruction": f"Say {word}.", "input": "" if n % 2 else "你好", "output": word}
    for n, word in enumerate(["one", "two words", "三", "(a,b)"] * 4)
]


@pytest.fixture(scope="module")
def finetune():
    spec = importlib.util.spec_from_file_location("lora_finetune", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("row", ROWS[:4])
def test_the_loss_is_taken_on_the_answer_and_its_end_alone(finetune, tiny_tokenizer, row):
    example = finetune.encode_example(row, Prompter(), tiny_tokenizer, 512, train_on_inputs=False)
    answer = [token for token in example["labels"] if token != -100]
    assert answer[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.decode(answer[:-1]) == row["output"]
    assert example["input_ids"][0] == tiny_tokenizer.bos_token_id
    masked = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label == -100]
    assert tiny_tokenizer.decode(masked[1:]) == Prompter().prompt(row["instruction"], row["input"])


def test_an_answer_that_is_cut_off_has_no_end(finetune, tiny_tokenizer):
    example = finetune.encode_example(ROWS[1] | {"output": "x " * 500}, Prompter(), tiny_tokenizer, 200, False)
    assert len(example["input_ids"]) == 200 and example["labels"][-1] != tiny_tokenizer.eos_token_id


def test_training_on_inputs_takes_the_loss_everywhere(finetune, tiny_tokenizer):
    example = finetune.encode_example(ROWS[0], Prompter(), tiny_tokenizer, 512, train_on_inputs=True)
    assert -100 not in example["labels"][1:]


def tune(run_warm, base, data, out, *flags):
    return run_warm(
        "finetune/lora/finetune.py",
        "--base_model",
        base,
        "--data_path",
        data,
        "--output_dir",
        out,
        "--batch_size",
        4,
        "--micro_batch_size",
        2,
        "--val_set_size",
        4,
        "--lora_r",
        4,
        "--num_epochs",
        2,
        "--eval_steps",
        3,
        "--save_steps",
        3,
        "--warmup_steps",
        1,
        *flags,
    )


def test_tuning_writes_an_adapter_that_peft_loads(run_warm, tiny_llama, data, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = tune(run_warm, tiny_llama, data, tmp_path / "lora", "--learning_rate", 1e-2)
    assert result.returncode == 0, result.stderr
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "lora")
    changed = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert len(changed) == 2 * 7 and all(p.abs().max() > 0 for p in changed)
    history = json.loads((tmp_path / "lora/trainer_state.json").read_text())["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert (tmp_path / "lora/loss.png").stat().st_size > 5000
    assert "held-out loss" in result.stdout


def test_int8_and_a_folder_of_data_work(run_warm, tiny_llama, data, tmp_path):
    (tmp_path / "folder").mkdir()
    data.rename(tmp_path / "folder/a.json")
    (tmp_path / "folder/b.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    result = tune(run_warm, tiny_llama, tmp_path / "folder", tmp_path / "lora", "--load_8bit", "--num_epochs=1")
    assert "given twice" in result.stderr
    result = tune(run_warm, tiny_llama, tmp_path / "folder", tmp_path / "lora", "--load_8bit", "--group_by_length")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "lora/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--batch_size=5"], "given twice"), (["--cutof_len", "5"], "unrecognized arguments: --cutof_len")],
)
def test_a_wrong_flag_stops_at_once(run_warm, tiny_llama, data, tmp_path, flags, message):
    result = tune(run_warm, tiny_llama, data, tmp_path / "lora", *flags)
    assert result.returncode == 2 and message in result.stderr


def test_data_that_is_no_instructions_is_named_by_record(run_warm, tiny_llama, tmp_path):
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "output": "b"}, {"instruction": "c"}]')
    result = tune(run_warm, tiny_llama, tmp_path / "rows.json", tmp_path / "lora")
    assert result.returncode == 1
    assert "rows.json, record 2" in result.stderr and len(result.stderr.splitlines()) == 1
