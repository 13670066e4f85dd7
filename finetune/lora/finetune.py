"""Tune LoRA weights on instructions.

    python finetune/lora/finetune.py --base_model ./zhixi --data_path ./instructions/train.json --output_dir ./lora
    torchrun --nproc_per_node 8 finetune/lora/finetune.py --base_model ./zhixi \\
        --data_path ./instructions/train.json --output_dir ./lora --pack

Data: JSON or JSONL of {"instruction", "input", "output"}, one file or a folder of them. The base is loaded in int8 on a
GPU (--load_4bit: QLoRA; --load_8bit False: 16 bits), in 32 bits on a CPU. Output: a peft adapter folder with the
tokenizer's files, checkpoint-N folders, trainer_state.json, loss.png. A run that was stopped goes on from its last
whole checkpoint (--resume_from_checkpoint False starts over, --resume_from_checkpoint ADAPTER tunes that further).
--dry_run checks everything that needs no model.
"""

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout holds knowlm/

from knowlm.cli import run_fire
from knowlm.files import read_json
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
    first_adapter: str = field(default="", init=False)  # folder of the one to tune further
    first_adapter_sha256: str = field(default="", init=False)


def main(settings: LoraSettings) -> None:
    if settings.load_8bit and settings.load_4bit:
        raise ValueError("--load_8bit and --load_4bit: the base is in one of them; leave one out")
    for name in ("lora_r", "lora_alpha"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name} {getattr(settings, name)}: must be 1 or more")
    if not 0 <= settings.lora_dropout < 1:
        raise ValueError(f"--lora_dropout {settings.lora_dropout}: must be 0 or more and below 1")
    take_adapter(settings)
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
    if settings.first_adapter:
        load_adapter(model, settings.first_adapter)
    trainer = TuningTrainer(model, settings, arguments, data)
    train_and_save(trainer, settings.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        print(f"{settings.output_dir}: adapter {ending(trainer, settings)}")


def take_adapter(settings: LoraSettings) -> None:
    """Begin with an adapter's weights if ``resume_from_checkpoint`` names one without a Trainer's state; ValueError if
    it isn't like the one that the flags describe.
    """
    folder = Path(str(settings.resume_from_checkpoint))
    if not (folder / "adapter_config.json").is_file() or any(folder.glob("optimizer*")) or any(folder.glob("global_*")):
        return
    config = read_json(folder / "adapter_config.json")
    asked = {"r": settings.lora_r, "lora_alpha": settings.lora_alpha}
    for name, value in asked.items():
        if config.get(name) != value:
            raise ValueError(
                f"{folder}: its adapter has {name} {config.get(name)}, not {value}; give --lora_r and --lora_alpha so"
            )
    for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise ValueError(f"{folder}: its adapter has {name}, which no flag gives; merge it into its base instead")
    targets, own = config.get("target_modules"), names_in(settings.lora_target_modules)
    if own != ["all-linear"] and isinstance(targets, list) and set(targets) != set(own):
        raise ValueError(
            f"{folder}: its adapter is on {','.join(sorted(targets))}; name these as --lora_target_modules"
        )
    weights = [file for file in sorted(folder.glob("adapter_model.*")) if file.suffix in (".safetensors", ".bin")]
    if not weights:
        raise ValueError(f"{folder}: holds no adapter_model.safetensors or adapter_model.bin; download it again")
    settings.first_adapter, settings.resume_from_checkpoint = str(folder), None
    settings.first_adapter_sha256 = hashlib.sha256(weights[-1].read_bytes()).hexdigest()


def load_adapter(model, folder: str) -> None:
    """Put an adapter's weights into the model's; ValueError if they aren't all there."""
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        found = set_peft_model_state_dict(model, load_peft_weights(folder, device="cpu"))
        lacking = [*found.unexpected_keys, *(name for name in found.missing_keys if "lora_" in name)]
    except RuntimeError as error:  # other shapes
        lacking = str(error).splitlines()[-1:]
    if lacking:
        raise ValueError(
            f"{folder}: its adapter is not one of this base ({lacking[0].strip()}); name the one it was tuned on"
        )


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
