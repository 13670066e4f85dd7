"""The flags that LoRA tuning and tuning all parameters share, and what is wrong with them."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from knowlm.files import require_file
from knowlm.models import check_model_folder
from knowlm.training import find_checkpoint


@dataclass(kw_only=True)
class TuningSettings:
    """The flags; those of 2023 keep their names and meanings."""

    base_model: Annotated[str, "folder (or hub name) of the model to tune"]
    data_path: Annotated[str, "JSON or JSONL file of instruction rows, or a folder of them"]
    output_dir: Annotated[str, "folder for the result"] = "./checkpoint"
    batch_size: Annotated[int, "examples in one step, over all devices; with --pack too"] = 128
    micro_batch_size: Annotated[int, "examples that a device computes at once; with --pack rows of cutoff_len"] = 4
    num_epochs: Annotated[float, "passes over the data"] = 3
    learning_rate: Annotated[float, "peak learning rate"] = 3e-4
    cutoff_len: Annotated[int, "most tokens of an example; more are cut off and counted"] = 512
    val_set_size: Annotated[int, "examples held out for the validation loss, at most a tenth; 0: none"] = 2000
    train_on_inputs: Annotated[bool, "take the loss on the prompt too"] = False
    group_by_length: Annotated[bool, "steps of like lengths: less padding, a bumpier loss"] = False
    pack: Annotated[bool, "several examples in a row, unseen by each other: less padding, the same steps"] = False
    gradient_checkpointing: Annotated[bool | None, "compute activations twice: less memory, a third more time"] = None
    wandb_project: Annotated[str, "Weights & Biases project; needs the wandb package"] = ""
    wandb_run_name: Annotated[str, "name of the run there"] = ""
    wandb_watch: Annotated[str, "false, gradients or all"] = ""
    wandb_log_model: Annotated[str, "false or true"] = ""
    resume_from_checkpoint: Annotated[
        str | bool | None, "a checkpoint's folder; False starts over and drops the checkpoints in output_dir"
    ] = None
    prompt_template_name: Annotated[str, "name in knowlm/templates, or a template's path"] = "alpaca"
    warmup_steps: Annotated[int, "steps until the peak learning rate"] = 10
    logging_steps: Annotated[int, "steps between logged losses"] = 1
    save_steps: Annotated[int, "steps between checkpoints"] = 10
    save_total_limit: Annotated[int, "checkpoints kept; 0: all"] = 5
    eval_steps: Annotated[int, "steps between validations"] = 10
    best_by: Annotated[str, "loss or f1: the result is the checkpoint of the best; else the last"] = ""
    eval_cases: Annotated[str, "cases (as finetune/evaluate.py's) to extract from at each validation"] = ""
    num_eval_cases: Annotated[int, "the first so many of them"] = 100
    eval_max_new_tokens: Annotated[int, "most tokens of an answer to them"] = 128
    seed: Annotated[int, "of the split, the order and an adapter's start"] = 0
    dry_run: Annotated[bool, "check data and settings, say what would be done, and end"] = False


def taking(settings: type, main: Callable[[Any], None]) -> Callable[..., None]:
    """A function with the dataclass's fields as its parameters, for ``run_fire``."""

    def call(**flags) -> None:
        main(settings(**flags))

    call.__signature__ = inspect.signature(settings)  # type: ignore[attr-defined]
    return call


def check_settings(settings: TuningSettings) -> None:
    """Raise ValueError naming the flag that is wrong, before rows or weights are read."""
    check_model_folder(settings.base_model)
    if Path(settings.output_dir).is_file():
        raise ValueError(f"--output_dir {settings.output_dir}: is a file, a folder is needed")
    least = {"batch_size": 1, "micro_batch_size": 1, "cutoff_len": 2, "val_set_size": 0, "eval_steps": 1}
    least |= {"save_steps": 1, "logging_steps": 1, "num_eval_cases": 1, "eval_max_new_tokens": 1, "warmup_steps": 0}
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise ValueError(f"--{name} {getattr(settings, name)}: must be {value} or more")
    for name in ("num_epochs", "learning_rate"):
        if not 0 < getattr(settings, name) < math.inf:  # nor nan
            raise ValueError(f"--{name} {getattr(settings, name)}: must be above 0, and a finite number")
    if not 0 <= settings.seed < 1 << 32:
        raise ValueError(f"--seed {settings.seed}: must be from 0 to {(1 << 32) - 1}")
    if settings.best_by not in ("", "loss", "f1"):
        raise ValueError(f"--best_by {settings.best_by}: loss or f1 is needed")
    if settings.best_by == "f1" and not settings.eval_cases:
        raise ValueError("--best_by f1: needs cases to extract from; name a file of them with --eval_cases")
    if settings.best_by == "loss" and not settings.val_set_size:
        raise ValueError("--best_by loss: needs held-out examples; set --val_set_size above 0")
    if settings.best_by and settings.save_steps != settings.eval_steps:
        raise ValueError(
            f"--best_by {settings.best_by}: what is validated must be saved, for it may be the best; "
            f"make --save_steps {settings.save_steps} and --eval_steps {settings.eval_steps} equal"
        )
    if settings.eval_cases:
        require_file(settings.eval_cases)
    if settings.wandb_project and not find_spec("wandb"):
        raise ValueError(f"--wandb_project {settings.wandb_project}: needs the wandb package; pip install wandb")
    find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)
