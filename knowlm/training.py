"""What pretraining and tuning share around the Hugging Face Trainer."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from uuid import uuid4

from knowlm.files import locked, read_json, replacing, sync

# Flags of 2023 that transformers 5 dropped: their new name, or None for one that no longer changes anything.
RENAMED_FLAGS = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": None,
    "logging_dir": None,
    "save_safetensors": None,
}


def translate_flags(arguments: Sequence[str]) -> list[str]:
    """Rewrite published TrainingArguments flags that transformers 5 renamed or dropped; says so on stderr.

    >>> translate_flags(["--evaluation_strategy", "steps", "--overwrite_output_dir", "True", "--seed", "1"])
    ['--eval_strategy', 'steps', '--seed', '1']
    """
    translated: list[str] = []
    dropping = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            if not dropping:
                translated.append(argument)
            dropping = False
            continue
        dropping = False
        if name == "group_by_length":
            translated += ["--train_sampling_strategy", "group_by_length"]
            dropping = not equals
        elif name in RENAMED_FLAGS:
            new = RENAMED_FLAGS[name]
            print(f"--{name} is now {'--' + new if new else 'without effect'}", file=sys.stderr)
            if new:
                translated.append(f"--{new}{equals}{value}")
            dropping = new is None and not equals
        else:
            translated.append(argument)
    return translated


def start_processes_on_cpu(uses_deepspeed: bool) -> None:
    """Where there is no GPU, let DeepSpeed's processes talk over gloo; call before TrainingArguments are made.

    Without it accelerate counts one process per batch and DeepSpeed refuses the batch size.
    """
    import torch

    if uses_deepspeed and not torch.cuda.is_available():
        if "WORLD_SIZE" not in os.environ:
            raise ValueError(
                "--deepspeed needs its launcher: start with `deepspeed --num_gpus N` or "
                "`torchrun --nproc_per_node N` instead of `python`"
            )
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        from accelerate import PartialState

        PartialState(backend="gloo")


def use_one_gpu_per_process() -> None:
    """Where a launcher started no processes, leave one GPU in sight; call before CUDA is used.

    With several, the Trainer would share each batch among them in threads (DataParallel): slower, and another loss.
    """
    import torch

    count = torch.cuda.device_count()
    if "WORLD_SIZE" not in os.environ and count > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        print(
            f"one of {count} GPUs is used; for all: torchrun --nproc_per_node {count} {' '.join(sys.argv)}",
            file=sys.stderr,
        )


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest ``checkpoint-N`` that was saved to its end: the Trainer writes ``trainer_state.json`` last."""
    whole = [path for path in checkpoints_of(output_dir) if is_whole_checkpoint(path)]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def checkpoints_of(output_dir: str | Path) -> list[Path]:
    return [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-", 1)[1].isdecimal()]


def is_whole_checkpoint(folder: str | Path) -> bool:
    try:
        read_json(Path(folder) / "trainer_state.json")
    except ValueError:  # it isn't there, or a kill cut it
        return False
    return True


def find_checkpoint(output_dir: str | Path, resume_from_checkpoint: str | bool | None) -> str | None:
    """The checkpoint to go on from, or None to begin at the first step.

    resume_from_checkpoint: a checkpoint's folder, which must be whole (else ValueError); None takes the last whole one
    of ``output_dir``; ``"False"`` starts over.
    """
    if str(resume_from_checkpoint).lower() in ("", "none", "true"):
        return last_whole_checkpoint(output_dir)
    if str(resume_from_checkpoint).lower() == "false":
        return None
    folder = Path(str(resume_from_checkpoint))
    if not any(any(folder.glob(name)) for name in ("optimizer*", "global_step*")) and any(folder.glob("*config.json")):
        raise ValueError(
            f"{folder}: holds no optimizer's state, so it is a result and not a checkpoint; to tune it further, name "
            "it as the base model (an adapter: after tools/weight_diff.py merge)"
        )
    if not is_whole_checkpoint(folder):
        raise ValueError(
            f"{folder}: not a whole checkpoint (trainer_state.json is missing or cut); "
            "name another or leave the flag out"
        )
    return str(folder)


def require_same_shards(checkpoint: str | None, uses_deepspeed: bool) -> None:
    """Raise ValueError where a checkpoint's optimizer is dealt out by ZeRO to other processes than there are now."""
    shards = len(list(Path(checkpoint).glob("global_step*/*optim_states.pt"))) if checkpoint else 0
    if shards and not (uses_deepspeed and shards == int(os.environ.get("WORLD_SIZE", 1))):
        raise ValueError(
            f"{checkpoint}: holds the optimizer's state of {shards} processes of DeepSpeed; go on with --deepspeed and "
            "as many processes, or start over with --resume_from_checkpoint False"
        )


def train_and_save(trainer, resume_from_checkpoint: str | bool | None) -> None:
    """Train, save model, tokenizer, state and loss picture into ``output_dir``, from ``find_checkpoint``'s on."""
    output_dir = Path(trainer.args.output_dir)
    checkpoint = find_checkpoint(output_dir, resume_from_checkpoint)
    require_same_shards(checkpoint, trainer.is_deepspeed_enabled)
    if checkpoint and trainer.is_world_process_zero():
        print(f"going on from {checkpoint}", file=sys.stderr)
    with locked(output_dir) if trainer.is_world_process_zero() else nullcontext():
        if trainer.args.world_size > 1 and not trainer.args.save_on_each_node:
            require_shared(output_dir, checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        partial = output_dir / "final.partial"
        trainer.save_model(str(partial))  # every process takes part under ZeRO-3
        if trainer.is_world_process_zero():
            files = sorted(partial.iterdir(), key=lambda path: path.name.endswith("config.json"))  # the configs last
            for file in files:
                if file.name == "README.md":  # peft's blank model card
                    file.unlink()
                    continue
                sync(file)
                os.replace(file, output_dir / file.name)
            partial.rmdir()
        trainer.save_state()  # last: it tells of how many steps the result is
        if trainer.is_world_process_zero():
            draw_loss(trainer.state.log_history, output_dir / "loss.png")
        trainer.accelerator.end_training()


def require_shared(output_dir: Path, checkpoint: str | None) -> None:
    """Raise ValueError in every process where one of them sees another folder than the first, or another checkpoint to
    go on from: they would wait for each other for ever.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object

    state = PartialState()
    mark = output_dir / broadcast_object_list([f"{uuid4().hex}.partial"])[0]
    if state.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        mark.touch()
    state.wait_for_everyone()
    deadline = time.monotonic() + 10  # a network's disk tells late of new files
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    seen = gather_object([(mark.exists(), checkpoint and Path(checkpoint).name)])
    if state.is_main_process:
        mark.unlink()
    if len(set(seen)) > 1:
        with suppress(OSError):
            output_dir.rmdir()  # if it was made for this
        raise ValueError(
            f"--output_dir {output_dir}: the processes don't see the same files there; name one folder for all, "
            "on a disk that the machines share"
        )


def draw_loss(history: Sequence[dict], path: Path) -> None:
    """A picture of the Trainer's log: training and held-out loss over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not any(key in entry for entry in history for key in ("loss", "eval_loss")):
        return
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)


def last_losses(history: Sequence[dict]) -> str:
    """``held-out loss 3.60 → 0.26``, or the last training loss where nothing was held out."""
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    if held_out:
        return f"held-out loss {held_out[0]:.3f} → {held_out[-1]:.3f}"
    training = [entry["loss"] for entry in history if "loss" in entry]
    return f"training loss {training[0]:.3f} → {training[-1]:.3f}" if training else "no loss logged"
