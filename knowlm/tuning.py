"""What tuning with LoRA and tuning all parameters share: data, whether it fits, and the Trainer's arguments."""

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowlm.batching import Batching, MicroBatches
from knowlm.extraction.cases import read_cases
from knowlm.extraction.leakage import shared_text
from knowlm.files import read_json, read_records
from knowlm.instructions import Example, describe_lengths, encode_rows, read_rows
from knowlm.models import load_tokenizer, small_model
from knowlm.prompts import Prompter
from knowlm.training import find_checkpoint, last_losses, require_same_shards
from knowlm.tuning_run import describe_run, is_over
from knowlm.tuning_settings import TuningSettings, check_settings

GOLD = Path(__file__).resolve().parents[1] / "finetune/data/gold"


@dataclass
class TuningData:
    tokenizer: Any
    prompter: Prompter
    examples: list[Example]
    held_out: list[Example]
    cases: list[dict]  # to extract from
    order: MicroBatches
    run: dict  # what decides it, see tuning_run
    is_over: bool  # an earlier start has already made the result

    @property
    def is_validated(self) -> bool:
        return bool(self.held_out or self.cases)


def refuse_gold(rows: list[dict], path: str) -> None:
    """Raise ValueError if a row holds a sentence of the gold set: a model that has seen it can't be measured by it."""
    for language in ("english", "chinese"):
        gold = read_records(GOLD / f"{language}.jsonl")
        for shared in shared_text(gold, rows):
            raise ValueError(
                f"{path}, record {shared.row}: holds {shared.text[:60]!r} of the gold set ({shared.case}); take it out"
            )


def load_data(settings: TuningSettings) -> TuningData:
    """Check the settings, read and tokenise the rows, say on stderr how they fit; no model is loaded.

    Raises ValueError on what could not be trained.
    """
    check_settings(settings)
    prompter = Prompter(settings.prompt_template_name or "alpaca")
    cases = read_cases(settings.eval_cases)[: settings.num_eval_cases] if settings.eval_cases else []
    rows = read_rows(settings.data_path)
    refuse_gold(rows, settings.data_path)
    tokenizer = load_tokenizer(settings.base_model)
    examples = list(encode_rows(rows, prompter, tokenizer, settings.cutoff_len, settings.train_on_inputs))
    say(f"{settings.data_path}: {describe_lengths(examples, settings.cutoff_len)}")
    check_fits(settings, examples)
    training, held_out = split([example for example in examples if example.has_answer], settings)
    batching = Batching(
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        cutoff_len=settings.cutoff_len,
        pack=settings.pack,
        group_by_length=settings.group_by_length,
        processes=int(os.environ.get("WORLD_SIZE", 1)),
        epochs=max(1, -int(-settings.num_epochs // 1)),
        seed=settings.seed,
    )
    order = MicroBatches([len(example.ids) for example in training], batching)
    first = order.deal(next(order.steps(0)), order.accumulation)
    say(
        f"{len(training)} to train on, {len(held_out)} held out: {order.steps_per_epoch} steps an epoch of up to "
        f"{settings.batch_size} examples; the first has {sum(map(len, first))} rows in {len(first)} micro-batches"
    )
    steps = math.ceil(settings.num_epochs * order.steps_per_epoch)
    run = describe_run(settings, training)
    over = is_over(settings, run, steps)
    if over:
        say(f"{settings.output_dir}: this run is over, its result lies there; more --num_epochs would prolong it")
    else:
        checkpoint = find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)
        require_same_shards(
            checkpoint, bool(getattr(settings, "deepspeed", os.environ.get("ACCELERATE_USE_DEEPSPEED")))
        )
        if settings.pack:
            check_packing(small_model(settings.base_model))
    return TuningData(tokenizer, prompter, training, held_out, cases, order, run, over)


def say(message: str) -> None:
    """On stderr, once among several processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(message, file=sys.stderr)


def check_fits(settings: TuningSettings, examples: list[Example]) -> None:
    """Raise ValueError where the model has no place for a token or for a row's length."""
    config_file = Path(settings.base_model) / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    most, vocabulary = config.get("max_position_embeddings"), config.get("vocab_size")
    longest = max(len(example.ids) for example in examples)
    if most and longest > most:
        raise ValueError(f"--cutoff_len {settings.cutoff_len}: {config_file} allows {most} tokens; choose that or less")
    largest = max(int(example.ids.max()) for example in examples)
    if vocabulary and largest >= vocabulary:
        raise ValueError(
            f"{settings.base_model}: its tokenizer gives id {largest}, its model has {vocabulary}; "
            "take both from one folder"
        )


def split(examples: list[Example], settings: TuningSettings) -> tuple[list[Example], list[Example]]:
    """(to train on, held out), drawn by the seed."""
    import torch

    size = min(settings.val_set_size, len(examples) // 10)
    if size < settings.val_set_size:
        say(f"--val_set_size {settings.val_set_size} is over a tenth of {len(examples)} examples: {size} held out")
    if settings.best_by == "loss" and not size:
        raise ValueError(f"--best_by loss: {len(examples)} examples are too few to hold any out; ten are needed")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    return [examples[i] for i in order[size:]], [examples[i] for i in order[:size]]


def training_arguments(settings: TuningSettings, data: TuningData, gradient_checkpointing: bool, **more):
    """transformers' TrainingArguments for these settings; on a GPU in 16 bits."""
    import torch
    from transformers import TrainingArguments

    from knowlm.models import cpu_multiplies_bf16, gpu_multiplies_bf16

    for name in ("wandb_project", "wandb_watch", "wandb_log_model"):
        if settings.wandb_project and getattr(settings, name):
            os.environ[name.upper()] = getattr(settings, name)
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=settings.output_dir,
        per_device_train_batch_size=1,  # a micro-batch, see MicroBatches
        gradient_accumulation_steps=data.order.accumulation,
        num_train_epochs=settings.num_epochs,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,  # it would log the mean loss before instead
        save_steps=settings.save_steps,
        save_total_limit=settings.save_total_limit,
        eval_strategy="steps" if data.is_validated else "no",
        eval_steps=settings.eval_steps,
        eval_on_start=data.is_validated and not find_checkpoint(settings.output_dir, settings.resume_from_checkpoint),
        load_best_model_at_end=bool(settings.best_by),
        metric_for_best_model=f"eval_{settings.best_by}" if settings.best_by else None,
        greater_is_better=settings.best_by == "f1",
        bf16=gpu_multiplies_bf16() if gpu else cpu_multiplies_bf16(),
        fp16=gpu and not gpu_multiplies_bf16(),
        use_cpu=not gpu,
        gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if gradient_checkpointing else None,
        seed=settings.seed,
        report_to="wandb" if settings.wandb_project else "none",
        run_name=settings.wandb_run_name or None,
        disable_tqdm=not sys.stderr.isatty(),
        ddp_find_unused_parameters=False if data.order.batching.processes > 1 else None,
        remove_unused_columns=False,
        **more,
    )


def ending(trainer, settings: TuningSettings) -> str:
    """``after 60 steps, held-out loss 3.60 → 0.26``, or which step it is of, where the best was asked for."""
    state = trainer.state
    if settings.best_by and state.best_model_checkpoint:  # none where all losses were nan, or it was removed
        step = f"of step {state.best_global_step} of {state.global_step}"
        return f"{step}, the best by {settings.best_by}: {state.best_metric:.3f}"
    return f"after {state.global_step} steps, {last_losses(state.log_history)}"


def check_packing(model) -> None:
    """Raise ValueError if an example's logits depend on the one before it in the row as if both were one text."""
    import torch

    draw = torch.Generator().manual_seed(0)
    one, other, last = torch.randint(0, model.config.vocab_size, (3, 8), generator=draw)
    ids = torch.stack([torch.cat([one, last]), torch.cat([other, last])])

    def difference(positions) -> float:
        logits = model(input_ids=ids, position_ids=positions.expand(2, -1), use_cache=False).logits[:, 8:].float()
        return (logits[0] - logits[1]).abs().mean().item()  # logits: (2, 8, vocabulary)

    with torch.no_grad():
        apart, as_one = difference(torch.arange(8).repeat(2)), difference(torch.arange(16))
    if apart > 0.01 * as_one:
        raise ValueError(f"--pack: {model.config.model_type} lets examples of a row see each other; leave it out")
