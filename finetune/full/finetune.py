"""Tune all parameters on instructions, with DeepSpeed ZeRO-3 or on one device.

    deepspeed --num_gpus 8 finetune/full/finetune.py --deepspeed pretrain/configs/zero3.json \\
        --base_model ./zhixi --data_path ./instructions/train.json --output_dir ./tuned
    python finetune/full/finetune.py --base_model ./zhixi --data_path ./instructions/train.json --output_dir ./tuned

Data and flags are those of finetune/lora/finetune.py without LoRA's own. Output: the model as a Hugging Face folder,
checkpoint-N folders, trainer_state.json, loss.png. A run that was stopped goes on from its last whole checkpoint
(--resume_from_checkpoint False starts over). --dry_run checks everything that needs no model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout holds knowlm/

from knowlm.cli import run_fire
from knowlm.files import require_file
from knowlm.training import start_processes_on_cpu, train_and_save, use_one_gpu_per_process
from knowlm.tuning import ending, load_data, training_arguments
from knowlm.tuning_settings import TuningSettings, taking


@dataclass(kw_only=True)
class FullSettings(TuningSettings):
    learning_rate: Annotated[float, "peak learning rate"] = 2e-5
    save_steps: Annotated[int, "steps between checkpoints, each three times the model in 32 bits"] = 100
    save_total_limit: Annotated[int, "checkpoints kept; 0: all"] = 1
    eval_steps: Annotated[int, "steps between validations"] = 100
    deepspeed: Annotated[str | None, "DeepSpeed's settings, such as pretrain/configs/zero3.json"] = None
    local_rank: Annotated[int, "for DeepSpeed's launcher"] = -1


def main(settings: FullSettings) -> None:
    if settings.deepspeed:
        require_file(settings.deepspeed)
    data = load_data(settings)
    if settings.dry_run or data.is_over:
        return
    start_processes_on_cpu(bool(settings.deepspeed))

    import torch
    from transformers import set_seed

    from knowlm.models import load_base
    from knowlm.trainers import TuningTrainer

    use_one_gpu_per_process()
    gpu = torch.cuda.is_available()
    checkpointing = gpu if settings.gradient_checkpointing is None else settings.gradient_checkpointing
    deepspeed: dict = {"deepspeed": settings.deepspeed} if settings.deepspeed else {}
    if deepspeed and not gpu:
        deepspeed["accelerator_config"] = {"use_configured_state": True}
    arguments = training_arguments(settings, data, checkpointing, **deepspeed)
    set_seed(settings.seed)
    model = load_base(settings.base_model, training=True)
    model.config.use_cache = False
    trainer = TuningTrainer(model, settings, arguments, data)
    train_and_save(trainer, settings.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        print(f"{settings.output_dir}: model {ending(trainer, settings)}")


if __name__ == "__main__":
    run_fire(taking(FullSettings, main), __doc__)
