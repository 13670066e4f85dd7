"""Tune LoRA weights on instructions.

    python finetune/lora/finetune.py --base_model ./zhixi --data_path ./instructions/train.json --output_dir ./lora
    torchrun --nproc_per_node 8 finetune/lora/finetune.py --base_model ./zhixi \\
        --data_path ./instructions/train.json --output_dir ./lora --pack

Data: JSON or JSONL of {"instruction", "input", "output"}, one file or a folder of them. The base is loaded in int8 on a
GPU (--load_4bit: QLoRA; --load_8bit False: 16 bits), in 32 bits on a CPU. Output: a peft adapter folder with the
tokenizer's files, checkpoint-N folders, trainer_state.json, loss.png. A run that was stopped goes on from its last
whole checkpoint (--resume_from_checkpoint False starts over). --dry_run checks everything that needs no model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout holds knowlm/

from knowlm.cli import run_fire
from knowlm.training import train_and_save, use_one_gpu_per_process
from knowlm.tuning import ending, load_data, say, training_arguments
from knowlm.tuning_run import names_in
from knowlm.tuning_settings import TuningSettings, taking

TARGETS = "[q_proj,k_proj,v_proj,o_proj,gate_proj,down_proj,up_proj]"


@dataclass(kw_only=True)
class LoraSettings(TuningSettings):
    lora_r: Annotated[int, "rank"] = 16
    lora_alpha: Annotated[int, "scale; the adapter counts alpha / r"] = 32
    lora_dropout: Annotated[float, "dropout before the adapter"] = 0.05
    lora_target_modules: Annotated[str, "list of layers that get an adapter, or all-linear"] = TARGETS
    load_8bit: Annotated[bool | None, "base in int8; by default on a GPU"] = None
    load_4bit: Annotated[bool, "base in 4 bits (nf4), as QLoRA"] = False


def main(settings: LoraSettings) -> None:
    if settings.load_8bit and settings.load_4bit:
        raise ValueError("--load_8bit and --load_4bit: the base is in one of them; leave one out")
    for name in ("lora_r", "lora_alpha"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name} {getattr(settings, name)}: must be 1 or more")
    if not 0 <= settings.lora_dropout < 1:
        raise ValueError(f"--lora_dropout {settings.lora_dropout}: must be 0 or more and below 1")
    data = load_data(settings)
    targets = find_targets(settings)
    if settings.dry_run or data.is_over:
        return

    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    from knowlm.models import load_base
    from knowlm.trainers import TuningTrainer

    use_one_gpu_per_process()
    load_8bit = settings.load_8bit
    if load_8bit is None:
        load_8bit = torch.cuda.is_available() and not settings.load_4bit
    quantized = load_8bit or settings.load_4bit
    checkpointing = quantized if settings.gradient_checkpointing is None else settings.gradient_checkpointing
    arguments = training_arguments(settings, data, checkpointing)
    model = load_base(
        settings.base_model, load_8bit=load_8bit, load_4bit=settings.load_4bit, training=True, frozen=True
    )
    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # the Trainer sees to that
    model.config.use_cache = False
    set_seed(settings.seed)
    model = get_peft_model(
        model,
        LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )
    trainer = TuningTrainer(model, settings, arguments, data)
    train_and_save(trainer, settings.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        print(f"{settings.output_dir}: adapter {ending(trainer, settings)}")


def find_targets(settings: LoraSettings) -> list[str] | str:
    """The layers to adapt; ValueError, with those that there are, where the model has none of a name."""
    from knowlm.models import linear_layers

    targets = names_in(settings.lora_target_modules)
    if targets == ["all-linear"]:
        return "all-linear"
    names = linear_layers(settings.base_model)
    missing = [target for target in targets if target not in names]
    if missing:
        raise ValueError(
            f"--lora_target_modules {','.join(missing)}: {settings.base_model} has no such linear layer; "
            f"it has {', '.join(names)}; name some of them, or all-linear"
        )
    say(f"adapters on {', '.join(f'{names[target]} {target}' for target in targets)}")
    return targets


if __name__ == "__main__":
    run_fire(taking(LoraSettings, main), __doc__)
