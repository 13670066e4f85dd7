"""Tune LoRA weights on instructions.

    python finetune/lora/finetune.py --base_model ./zhixi --data_path ./instructions/train.json --output_dir ./lora
    torchrun --nproc_per_node 8 finetune/lora/finetune.py --base_model ./zhixi \\
        --data_path ./instructions --output_dir ./lora

Data: JSON or JSONL of {"instruction", "input", "output"}, one file or a folder of them. The base is loaded in int8 on a
GPU. Output: a peft adapter folder with the tokenizer's files, checkpoint-N folders, trainer_state.json, loss.png.
A run that was stopped goes on from its last whole checkpoint (--resume_from_checkpoint False starts over).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout holds knowlm/

from knowlm.cli import run_fire
from knowlm.files import read_records
from knowlm.models import check_model_folder
from knowlm.prompts import Prompter
from knowlm.training import last_losses, train_and_save

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]


def main(
    base_model: Annotated[str, "folder (or hub name) of the model to tune"],
    data_path: Annotated[str, "JSON or JSONL file, or a folder of them"],
    output_dir: Annotated[str, "folder for the adapter"] = "./checkpoint",
    batch_size: Annotated[int, "examples in one step, over all devices"] = 128,
    micro_batch_size: Annotated[int, "examples that a device computes at once"] = 4,
    num_epochs: Annotated[float, "passes over the data"] = 3,
    learning_rate: Annotated[float, "peak learning rate"] = 3e-4,
    cutoff_len: Annotated[int, "most tokens of an example; more are cut off and counted"] = 512,
    val_set_size: Annotated[int, "examples held out for the validation loss, at most a tenth; 0: none"] = 2000,
    lora_r: Annotated[int, "rank"] = 16,
    lora_alpha: Annotated[int, "scale; the adapter counts alpha / r"] = 32,
    lora_dropout: Annotated[float, "dropout before the adapter"] = 0.05,
    lora_target_modules: Annotated[Sequence[str], "layers that get an adapter"] = TARGETS,
    train_on_inputs: Annotated[bool, "take the loss on the prompt too"] = False,
    group_by_length: Annotated[bool, "batches of like lengths: less padding, a bumpier loss"] = False,
    wandb_project: Annotated[str, "Weights & Biases project; needs the wandb package"] = "",
    wandb_run_name: Annotated[str, "name of the run there"] = "",
    wandb_watch: Annotated[str, "false, gradients or all"] = "",
    wandb_log_model: Annotated[str, "false or true"] = "",
    resume_from_checkpoint: Annotated[str | bool | None, "a checkpoint's folder, or False to start over"] = None,
    prompt_template_name: Annotated[str, "name in knowlm/templates, or a template's path"] = "alpaca",
    warmup_steps: Annotated[int, "steps until the peak learning rate"] = 10,
    logging_steps: Annotated[int, "steps between logged losses"] = 1,
    save_steps: Annotated[int, "steps between checkpoints"] = 10,
    save_total_limit: Annotated[int, "checkpoints kept"] = 5,
    eval_steps: Annotated[int, "steps between validation losses"] = 10,
    load_8bit: Annotated[bool | None, "base in int8; by default on a GPU"] = None,
    seed: Annotated[int, "of the split, the order and the adapter's start"] = 0,
) -> None:
    check_model_folder(str(base_model))
    rows = read_rows(str(data_path))
    if val_set_size < 0:
        raise ValueError(f"--val_set_size {val_set_size}: must be 0 (none) or more")
    if val_set_size > len(rows) // 10:
        print(
            f"--val_set_size {val_set_size} is over a tenth of {len(rows)} examples: {len(rows) // 10} held out",
            file=sys.stderr,
        )
        val_set_size = len(rows) // 10
    processes = int(os.environ.get("WORLD_SIZE", 1))
    accumulation = batch_size // (micro_batch_size * processes)
    if accumulation * micro_batch_size * processes != batch_size:
        raise ValueError(
            f"--batch_size {batch_size} is no multiple of --micro_batch_size {micro_batch_size} "
            f"× {processes} processes; choose another"
        )
    prompter = Prompter(prompt_template_name)
    if wandb_project:
        os.environ["WANDB_PROJECT"] = wandb_project
        os.environ |= {
            name: value for name, value in (("WANDB_WATCH", wandb_watch), ("WANDB_LOG_MODEL", wandb_log_model)) if value
        }

    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    from knowlm.models import cpu_multiplies_bf16, load_base, load_tokenizer

    set_seed(seed)
    tokenizer = load_tokenizer(str(base_model))
    examples = [encode_example(row, prompter, tokenizer, cutoff_len, train_on_inputs) for row in rows]
    report_cut(examples, cutoff_len)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    validation = [examples[i] for i in order[:val_set_size]]
    gpu = torch.cuda.is_available()
    load_8bit = gpu if load_8bit is None else load_8bit
    training = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=micro_batch_size,
        per_device_eval_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=num_epochs,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        logging_steps=logging_steps,
        save_steps=save_steps,
        save_total_limit=save_total_limit,
        eval_strategy="steps" if validation else "no",
        eval_steps=eval_steps,
        eval_on_start=bool(validation),
        train_sampling_strategy="group_by_length" if group_by_length else "random",
        fp16=gpu,
        bf16=not gpu and cpu_multiplies_bf16(),
        use_cpu=not gpu,
        seed=seed,
        report_to="wandb" if wandb_project else "none",
        run_name=wandb_run_name or None,
        disable_tqdm=not sys.stderr.isatty(),
        ddp_find_unused_parameters=False if processes > 1 else None,
    )
    model = load_base(str(base_model), load_8bit=load_8bit, training=True)
    if load_8bit:
        model = prepare_model_for_kbit_training(model)
    model.config.use_cache = False
    model = get_peft_model(
        model,
        LoraConfig(
            r=lora_r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=list(lora_target_modules),
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=[examples[i] for i in order[val_set_size:]],
        eval_dataset=validation or None,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True, pad_to_multiple_of=8),
        processing_class=tokenizer,
    )
    train_and_save(trainer, None if resume_from_checkpoint is None else str(resume_from_checkpoint))
    if trainer.is_world_process_zero():
        print(
            f"{output_dir}: adapter after {trainer.state.global_step} steps, {last_losses(trainer.state.log_history)}"
        )


def read_rows(data_path: str) -> list[dict]:
    """Instruction rows of a file, or of every .json and .jsonl file of a folder in order of name."""
    path = Path(data_path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    rows = []
    for file in files:
        records = read_records(file)
        for number, row in enumerate(records, 1):
            if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
                raise ValueError(f'{file}, record {number}: needs texts under "instruction" and "output"')
        rows += records
    if not rows:
        raise ValueError(f"{data_path}: holds no examples; a .json or .jsonl file of instruction rows is needed")
    return rows


def encode_example(
    row: dict, prompter: Prompter, tokenizer, cutoff_len: int, train_on_inputs: bool
) -> dict[str, list[int]]:
    """Ids and labels of one example, BOS first and EOS last, -100 where no loss is taken.

    Prompt and answer are tokenised together, once: a token belongs to the prompt if it begins there.
    """
    prompt = prompter.prompt(row["instruction"], row.get("input"))
    encoding = tokenizer(prompt + row["output"], add_special_tokens=False, return_offsets_mapping=True)
    ids = [*([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []), *encoding.input_ids]
    starts = [-1] * (len(ids) - len(encoding.input_ids)) + [start for start, _ in encoding.offset_mapping]
    labels = [
        token if train_on_inputs or start >= len(prompt) else -100 for token, start in zip(ids, starts, strict=True)
    ]
    if len(ids) < cutoff_len:  # an answer that was cut off has no end
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return {"input_ids": ids[:cutoff_len], "labels": labels[:cutoff_len], "attention_mask": [1] * len(ids[:cutoff_len])}


def report_cut(examples: list[dict], cutoff_len: int) -> None:
    """Say how many examples were cut; ValueError when one has lost its whole answer and so teaches nothing."""
    cut = sum(len(example["input_ids"]) >= cutoff_len for example in examples)
    if cut:
        print(f"{cut} of {len(examples)} examples reach --cutoff_len {cutoff_len} and may be cut", file=sys.stderr)
    lost = sum(all(label == -100 for label in example["labels"]) for example in examples)
    if lost == len(examples):
        raise ValueError(f"--cutoff_len {cutoff_len} cuts the answer off every example; choose a larger one")
    if lost:
        print(f"{lost} of them lose their whole answer and teach nothing", file=sys.stderr)


if __name__ == "__main__":
    run_fire(main, __doc__)
