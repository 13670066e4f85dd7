"""The Trainers of pretraining and of tuning. Importing this takes seconds: do it where a model is loaded."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from knowlm.batching import MicroBatches, collate
from knowlm.extraction.answering import question_of
from knowlm.instructions import Example
from knowlm.tuning import TuningData
from knowlm.tuning_run import note_run
from knowlm.tuning_settings import TuningSettings
from knowlm.validation import answers, mean_f1


class OrderedTrainer(Trainer):
    """A Trainer that takes its samples in the order of ``sampler``; without one in its own."""

    def __init__(self, *args, sampler=None, **more):
        self.sampler = sampler
        super().__init__(*args, **more)

    def _get_train_sampler(self, *args, **more):
        return super()._get_train_sampler(*args, **more) if self.sampler is None else self.sampler

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        if self.sampler is not None:
            loader.set_sampler(self.sampler)  # else set_epoch doesn't reach it where a resumed run skips batches
        return loader


class Rows(Dataset):
    """A micro-batch of examples for the numbers that MicroBatches gives."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, rows):
        return [[self.examples[number] for number in row] for row in rows]


class RunNote(TrainerCallback):
    """Keeps in the output folder which run it holds, once nobody else writes there; finds its best checkpoint, which
    the state names by the path of an earlier start, maybe from another working folder.
    """

    def __init__(self, settings: TuningSettings, data: TuningData):
        self.settings, self.data = settings, data

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            note_run(self.settings, self.data.run)
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)


class LossCheck(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        """Stop where the loss is no number any more: the weights are lost, and steps after it, too."""
        if not math.isfinite((logs or {}).get("loss", 0)):
            raise ValueError(
                f"{args.output_dir}: the loss became {logs['loss']} at step {state.global_step}; start over with a "
                f"lower --learning_rate than {args.learning_rate:g}, or more --warmup_steps"
            )


class TuningTrainer(OrderedTrainer):
    """Its steps are those of ``data.order``; its validation is the mean loss of a held-out token.

    The validation loss depends neither on batches nor on the number of processes; with cases there is ``eval_f1`` too.
    """

    def __init__(self, model, settings: TuningSettings, arguments, data: TuningData):
        self.settings, self.data, self.bare_model = settings, data, model
        self.multiple = 8 if torch.cuda.is_available() else 1  # tensor cores
        rows = Rows(data.examples)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows if data.is_validated else None,  # evaluate() knows better
            data_collator=lambda batches: self.collated(batches[0]),
            processing_class=data.tokenizer,
            callbacks=[RunNote(settings, data), LossCheck()],
            sampler=data.order,
        )

    def collated(self, rows) -> dict:
        return collate(rows, self.data.tokenizer.pad_token_id, self.multiple)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self.bare_model.eval()
        metrics = {"eval_loss": self.held_out_loss()} if self.data.held_out else {}
        if self.data.cases:
            metrics["eval_f1"] = self.f1()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def held_out_loss(self) -> float:
        held_out = MicroBatches([len(example.ids) for example in self.data.held_out], self.data.order.batching)
        tokens = torch.tensor(sum(len(example.ids) - example.answer_start for example in self.data.held_out))
        total = torch.zeros((), device=self.args.device)
        shares = held_out.deal(range(len(self.data.held_out)))[self.args.process_index :: self.args.world_size]
        with torch.no_grad(), self.compute_loss_context_manager():
            for share in shares:
                rows = [[self.data.held_out[number] for number in row] for row in share]
                inputs = self._prepare_inputs(self.collated(rows))
                total += self.compute_loss(self.bare_model, inputs, num_items_in_batch=tokens)  # type: ignore[arg-type]
        return self.accelerator.reduce(total, "mean").item()

    def f1(self) -> float:
        """Each process answers its share; all shares are of one size, as ZeRO-3 needs."""
        cases, processes = self.data.cases, self.args.world_size
        prompts = [self.data.prompter.prompt(**question_of(case, "tuple")) for case in cases]
        numbers = [n % len(prompts) for n in range(-(-len(prompts) // processes) * processes)]
        ours = numbers[self.args.process_index :: processes]
        with self.accelerator.autocast():
            said = answers(
                self.bare_model,
                self.data.tokenizer,
                [prompts[number] for number in ours],
                self.settings.micro_batch_size,
                self.settings.eval_max_new_tokens,
            )
            by_number = dict(gather_object(list(zip(ours, said, strict=True))))
        return mean_f1(cases, [by_number[number] for number in range(len(prompts))])
