import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "finetune/lora/finetune.py"


def test_where_no_checkpoint_was_the_best_the_last_is_told():
    from transformers import TrainerState

    from knowlm.tuning import ending
    from knowlm.tuning_settings import TuningSettings

    settings = TuningSettings(base_model="m", data_path="d", best_by="loss")
    for best in (None, float("inf"), 1.5):
        state = TrainerState(global_step=3, best_metric=best, log_history=[{"loss": 2.0, "step": 1}])
        assert ending(SimpleNamespace(state=state), settings) == "after 3 steps, training loss 2.000 → 2.000"


def test_where_several_gpus_are_seen_one_process_takes_one_and_says_how_to_use_all(monkeypatch, capsys):
    from knowlm.training import use_one_gpu_per_process

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,4,5")
    monkeypatch.setenv("WORLD_SIZE", "4")
    use_one_gpu_per_process()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3,4,5"
    monkeypatch.delenv("WORLD_SIZE")
    use_one_gpu_per_process()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert "torchrun --nproc_per_node 4" in capsys.readouterr().err


def test_every_published_flag_has_its_published_default():
    spec = importlib.util.spec_from_file_location("lora_finetune", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    settings = module.LoraSettings(base_model="m", data_path="d")
    published = {"output_dir": "./checkpoint", "batch_size": 128, "micro_batch_size": 4, "num_epochs": 3,
                 "learning_rate": 3e-4, "cutoff_len": 512, "val_set_size": 2000, "lora_r": 16, "lora_alpha": 32,
                 "lora_dropout": 0.05, "train_on_inputs": False, "group_by_length": False, "wandb_project": "",
                 "wandb_run_name": "", "wandb_watch": "", "wandb_log_model": "", "resume_from_checkpoint": None,
                 "prompt_template_name": "alpaca", "warmup_steps": 10, "logging_steps": 1, "save_steps": 10,
                 "save_total_limit": 5, "eval_steps": 10}  # fmt: skip
    assert {name: getattr(settings, name) for name in published} == published
    names = settings.lora_target_modules.strip("[]").replace("_proj", "")
    assert names.split(",") == ["q", "k", "v", "o", "gate", "down", "up"]


@pytest.mark.slow
def test_machines_that_share_no_folder_are_refused(tiny_llama, tmp_path):
    """The second one would have no checkpoint to go on from, and they would wait for each other."""
    from torch.distributed import TCPStore

    data = tmp_path / "rows.json"
    data.write_text(json.dumps([{"instruction": "Say it.", "output": "it"}] * 4))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ours = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ours |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    machines = []
    for rank in "01":
        paths = ["--data_path", data, "--output_dir", tmp_path / f"disk{rank}/lora"]
        command = [sys.executable, SCRIPT, "--base_model", tiny_llama, *paths, "--batch_size", "2"]
        environment = os.environ | ours | {"RANK": rank}
        machines.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    for machine in machines:
        _, said = machine.communicate(timeout=300)
        assert machine.returncode == 1 and "on a disk that the machines share" in said.splitlines()[-1], said
    assert not list(tmp_path.glob("disk*/lora"))
