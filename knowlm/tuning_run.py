"""Which run an output folder holds: what decides its steps and result, whether it is over, who may go on with it."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knowlm.checkpoints import Checkpoint, as_bytes, shape_in_rows
from knowlm.dtypes import HELD
from knowlm.files import read_json, write_json
from knowlm.instructions import Example
from knowlm.training import checkpoints_of, last_whole_checkpoint
from knowlm.tuning_settings import TuningSettings

NOTE = "tuning_data.json"
RESULTS = ("adapter_config.json", "config.json")  # what is written last of an adapter or a model
# Settings that make another run of it. --pack, devices and micro-batches don't; more --num_epochs prolong a run.
DECISIVE = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "first_adapter_sha256"),  # LoRA's own
    *("batch_size", "group_by_length", "seed", "learning_rate", "warmup_steps", "best_by"),
)


def describe_run(settings: TuningSettings, examples: Sequence[Example]) -> dict:
    """What decides a run: settings, the examples as tokens (rows, template, cutoff, split), the base's weights."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.ids.tobytes() + str(example.answer_start).encode())
    run = {name: getattr(settings, name) for name in DECISIVE if hasattr(settings, name)}
    base = weights_sample(settings.base_model) if Path(settings.base_model).is_dir() else settings.base_model
    return run | {"examples_sha256": digest.hexdigest(), "base_sample_sha256": base}


def weights_sample(folder: str) -> str:
    """SHA256 of every weight's name, type, shape, and first, middle and last row; no others are read."""
    digest = hashlib.sha256()
    with Checkpoint(folder) as model:
        for name in model:
            stored = model.find(name)
            digest.update(f"{name} {stored.dtype} {stored.shape}".encode())
            total, *width = shape_in_rows(stored.shape)
            for first in sorted({0, total // 2, total - 1} if total else ()):
                row = np.empty((1, *width), HELD[stored.dtype])
                stored.read(first, row)
                digest.update(as_bytes(row))
    return digest.hexdigest()


def is_over(settings: TuningSettings, run: dict, steps: int) -> bool:
    """Whether ``output_dir`` holds the result of this run, after so many steps or more.

    Raises ValueError where it holds another run's result, or checkpoints that another run would go on from.
    """
    folder = Path(settings.output_dir)
    has_result = any((folder / name).is_file() for name in RESULTS)
    if has_result and not (folder / NOTE).is_file():
        raise ValueError(f"--output_dir {folder}: holds a model that was not tuned there; name another folder")
    if starts_over(settings):
        if has_result:
            raise ValueError(
                f"--resume_from_checkpoint False: {folder} holds a finished run; remove it, or name another "
                "--output_dir"
            )
        return False
    if has_result or last_whole_checkpoint(folder):
        require_same(settings, folder, run, has_result)
    if names_checkpoint(settings):
        require_same(settings, Path(str(settings.resume_from_checkpoint)).parent, run, has_result)
        return False
    done = steps_done(folder) if has_result else 0
    if 0 < done < steps and not last_whole_checkpoint(folder):
        raise ValueError(f"{folder}: holds a run of {done} steps and no checkpoint to go on from; name another folder")
    return done >= steps


def steps_done(folder: Path) -> int:
    """Steps behind the result in a folder; 0 where its writing was broken off."""
    try:
        return read_json(folder / "trainer_state.json")["global_step"]
    except (ValueError, KeyError, TypeError):
        return 0


def require_same(settings: TuningSettings, folder: Path, run: dict, is_finished: bool) -> None:
    """Raise ValueError where the run in ``folder`` is another one; checkpoints of old versions tell less of theirs."""
    old = read_json(folder / NOTE) if (folder / NOTE).is_file() else {}
    for name, value in run.items():
        if old.get(name, value) == value:
            continue
        if name == "lora_target_modules" and set(names_in(old[name])) == set(names_in(value)):
            continue
        said = f"--{name} {value}: the run in {folder} has {old[name]}"
        if name == "examples_sha256":
            said = f"--data_path {settings.data_path}: the run in {folder} has other examples (rows, cutoff, split)"
        elif name == "base_sample_sha256":
            said = f"--base_model {settings.base_model}: the run in {folder} tunes other weights"
        elif name == "first_adapter_sha256":
            said = f"--resume_from_checkpoint: the run in {folder} began with another adapter, or none"
        way_out = "" if is_finished else ", or start over with --resume_from_checkpoint False"
        raise ValueError(f"{said}; name another --output_dir{way_out}")


def names_in(text: str) -> list[str]:
    """The names of a list in any of the ways that it is written; one empty name where there are none.

    >>> names_in("['q_proj', v_proj]")
    ['q_proj', 'v_proj']
    """
    names = [name.strip("()[]'\" ") for name in text.split(",")]
    return [name for name in names if name] or [""]


def note_run(settings: TuningSettings, run: dict) -> None:
    """Keep in the output folder which run it holds. Starting over, the old one's checkpoints go first: a later start
    would go on from them.
    """
    for checkpoint in checkpoints_of(settings.output_dir) if starts_over(settings) else ():
        (checkpoint / "trainer_state.json").unlink(missing_ok=True)  # not whole from here on, whatever a kill leaves
        shutil.rmtree(checkpoint)
    write_json(Path(settings.output_dir) / NOTE, run)


def starts_over(settings: TuningSettings) -> bool:
    return str(settings.resume_from_checkpoint) in ("False", "false")


def names_checkpoint(settings: TuningSettings) -> bool:
    return str(settings.resume_from_checkpoint).lower() not in ("", "none", "true", "false")
