"""Pretrain all parameters of a LLaMA-like model on a packed corpus.

    python pretrain/train.py --model_name_or_path ./converted --data_path ./data/merged --output_dir ./out
    deepspeed --num_gpus 8 pretrain/train.py --deepspeed pretrain/configs/zero3.json --fp16 True \\
        --gradient_checkpointing True --model_name_or_path ./converted --data_path ./data/merged --output_dir ./out

Takes every flag of transformers' TrainingArguments besides its own. A run that was stopped goes on from the last whole
checkpoint in --output_dir (--resume_from_checkpoint False starts over). Output: the model as a Hugging Face folder,
checkpoint-N folders, trainer_state.json with every logged loss, loss.png, training_data.json (pretrain/tools/trace.py
reads it). Without a GPU it multiplies in bfloat16 where the CPU has instructions for that (--bf16 False: never); the
weights stay 32-bit.
"""

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import refuse, run
from knowlm.corpus import Corpus
from knowlm.models import check_model_folder, cpu_multiplies_bf16, load_base, load_tokenizer
from knowlm.sampling import LengthGroupedSampler, proportional_order
from knowlm.trained_data import OrderSettings, note_order
from knowlm.training import last_losses, start_processes_on_cpu, train_and_save, translate_flags


@dataclass
class PretrainingArguments:
    model_name_or_path: str = field(metadata={"help": "folder of the model to train on"})
    data_path: str = field(metadata={"help": "prefix of a packed corpus (pretrain/preprocess.py)"})
    eval_data_path: str | None = field(
        default=None,
        metadata={"help": "prefix of a held-out corpus; its loss is taken before, by --eval_strategy, and after"},
    )
    model_max_length: int = field(default=1024, metadata={"help": "samples are cut to so many tokens"})
    global_batch_distributed: str | None = field(
        default=None,
        metadata={"help": 'samples of each data type in a global batch, before gradient accumulation: "[424,80]"'},
    )
    fill_mode: int = field(
        default=3,
        metadata={
            "choices": [0, 1, 2, 3],
            "help": "as types run out: 0 drop rests, stop at the shortest; 1 fill last batches, stop at the shortest; "
            "2 drop, repeat to the longest; 3 fill and repeat",
        },
    )


def main() -> None:
    arguments = translate_flags(sys.argv[1:])
    start_processes_on_cpu(any(a.split("=")[0] == "--deepspeed" for a in arguments) and "--help" not in arguments)
    ours, training = parse_args(arguments)
    corpus = Corpus(ours.data_path)
    held_out = Corpus(ours.eval_data_path) if ours.eval_data_path else None

    import transformers

    check_model_folder(ours.model_name_or_path)
    tokenizer = load_tokenizer(ours.model_name_or_path)
    check_vocabulary(corpus, len(tokenizer))
    order = batch_order(ours, training, corpus)
    transformers.set_seed(training.seed)
    model = load_base(ours.model_name_or_path, training=True)
    model.config.use_cache = False
    trainer = make_trainer(model, tokenizer, ours, training, corpus, held_out, order)
    train_and_save(trainer, training.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        print(f"{training.output_dir}: {trainer.state.global_step} steps, {last_losses(trainer.state.log_history)}")


def parse_args(arguments: list[str]):
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser([PretrainingArguments, TrainingArguments], description=__doc__, allow_abbrev=False)
    parser.set_defaults(logging_steps=1)  # 500 is more than a short run has
    parser.error = lambda message: refuse(f"{message} (see --help)")
    given = {argument.split("=")[0] for argument in arguments}
    if "--disable_tqdm" not in given and not sys.stderr.isatty():
        arguments = [*arguments, "--disable_tqdm", "True"]
    if not has_gpu():
        if "--use_cpu" not in given:
            arguments = [*arguments, "--use_cpu", "True"]
        if "--deepspeed" in given:
            arguments = [*arguments, "--accelerator_config", '{"use_configured_state": true}']
        elif not given & {"--bf16", "--fp16"} and cpu_multiplies_bf16():
            arguments = [*arguments, "--bf16", "True"]
    ours, training, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        refuse(f"unrecognized arguments: {' '.join(unknown)} (see --help)")
    training.remove_unused_columns = False
    return ours, training


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def check_vocabulary(corpus: Corpus, vocab_size: int) -> None:
    made_with = corpus.settings.get("vocab_size", vocab_size)
    if made_with > vocab_size:
        raise ValueError(
            f"{corpus.prefix}: made with a tokenizer of {made_with} pieces, the model's has {vocab_size}; "
            "write the corpus again with the model's tokenizer"
        )


def batch_order(ours: PretrainingArguments, training, corpus: Corpus):
    """Sample numbers in the order of training, or None where a sampler draws them."""
    per_batch = samples_per_batch(ours, training)
    if per_batch is None:
        return None
    return proportional_order(corpus.type_counts, per_batch, ours.fill_mode, training.seed)


def samples_per_batch(ours: PretrainingArguments, training) -> list[int] | None:
    """Samples of each data type in a global batch, or None for any."""
    if ours.global_batch_distributed is None:
        return None
    try:
        per_batch = ast.literal_eval(ours.global_batch_distributed)
        assert isinstance(per_batch, list) and all(type(n) is int and n >= 0 for n in per_batch)
    except (ValueError, SyntaxError, AssertionError):
        raise ValueError(
            f"--global_batch_distributed {ours.global_batch_distributed}: a list such as [424,80] is needed"
        ) from None
    devices = training.world_size * training.train_batch_size
    if sum(per_batch) != devices:
        raise ValueError(
            f"--global_batch_distributed {per_batch} sums to {sum(per_batch)}; "
            f"devices × per-device batch is {devices}: make them equal"
        )
    return per_batch


def make_trainer(
    model, tokenizer, ours: PretrainingArguments, training, corpus: Corpus, held_out: Corpus | None, order
):
    import torch
    from torch.utils.data import Dataset, SequentialSampler
    from transformers import TrainerCallback

    from knowlm.trainers import OrderedTrainer

    max_length, sampler = ours.model_max_length, None
    if order is not None:
        sampler = SequentialSampler(order)
    elif training.train_sampling_strategy == "group_by_length":
        batch_size = training.train_batch_size * training.gradient_accumulation_steps
        sampler = LengthGroupedSampler(corpus.lengths, max_length, batch_size, data_seed(training))

    class Samples(Dataset):
        def __init__(self, corpus: Corpus, order=None):
            self.corpus, self.order = corpus, order

        def __len__(self):
            return len(self.corpus if self.order is None else self.order)

        def __getitem__(self, i):
            number = i if self.order is None else int(self.order[i])
            return {"input_ids": torch.from_numpy(self.corpus[number][:max_length].astype("int64"))}

    def collate(samples):
        """Pad ids with EOS and labels with -100 to the longest sample of the batch."""
        pad, samples = torch.nn.utils.rnn.pad_sequence, [sample["input_ids"] for sample in samples]
        return {
            "input_ids": pad(samples, batch_first=True, padding_value=tokenizer.eos_token_id),  # (batch, seq)
            "attention_mask": pad([torch.ones_like(s) for s in samples], batch_first=True),
            "labels": pad(samples, batch_first=True, padding_value=-100),
        }

    class OrderNote(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **_):
            if state.is_world_process_zero:
                note_order(args.output_dir, order_settings(ours, args, corpus, state, train_dataloader))

    if held_out is not None:
        training.eval_on_start = True
    return OrderedTrainer(
        model=model,
        args=training,
        train_dataset=Samples(corpus, order),
        data_collator=collate,
        eval_dataset=None if held_out is None else Samples(held_out),
        processing_class=tokenizer,
        callbacks=[OrderNote()],
        sampler=sampler,
    )


def data_seed(training) -> int:
    return training.seed if training.data_seed is None else training.data_seed


def order_settings(ours: PretrainingArguments, training, corpus: Corpus, state, loader) -> OrderSettings:
    """What trace.py needs to find out later which samples a step took."""
    from transformers.trainer_pt_utils import AcceleratorConfig

    usual, sampler, per_batch = AcceleratorConfig(), "accelerate", samples_per_batch(ours, training)
    for name in ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler"):
        if getattr(training.accelerator_config, name) != getattr(usual, name):
            sampler = f"accelerate with another {name}"
    if training.auto_find_batch_size:
        sampler = "accelerate with auto_find_batch_size"
    return OrderSettings(
        data_path=str(Path(ours.data_path).absolute()),
        num_samples=len(corpus),
        corpus_blake3=corpus.digest,
        seed=data_seed(training) if per_batch is None else training.seed,
        world_size=getattr(loader.batch_sampler, "num_processes", 1),
        per_device_train_batch_size=training.train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_steps=state.max_steps,
        from_step=state.global_step,
        sampler=sampler,
        train_sampling_strategy=str(training.train_sampling_strategy),
        global_batch_distributed=per_batch,
        fill_mode=ours.fill_mode,
        model_max_length=ours.model_max_length,
        dataloader_drop_last=training.dataloader_drop_last,
        ignore_data_skip=training.ignore_data_skip,
    )


if __name__ == "__main__":
    run(main)
