"""Which samples each step of a training run took: the order of transformers' Trainer, and that of 2023.

A run notes what decides the order in ``training_data.json`` of its output folder (``note_order``): a list, one entry
for each start that changed something, which holds for the steps after ``from_step``.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from knowlm.corpus import Corpus
from knowlm.files import read_json, read_records, write_json
from knowlm.sampling import LengthGroupedSampler, proportional_order

RECORD = "training_data.json"
SAMPLERS = ("accelerate", "distributed")
STRATEGIES = ("random", "sequential", "group_by_length")


@dataclasses.dataclass
class OrderSettings:
    """Names and meanings are those of the training's flags."""

    data_path: str
    num_samples: int  # in the corpus
    seed: int  # data_seed, if that was given
    world_size: int  # processes that take different samples
    per_device_train_batch_size: int  # samples that a process takes at once
    gradient_accumulation_steps: int
    max_steps: int  # the last step of the run
    from_step: int = 0
    corpus_blake3: str = ""  # of what Corpus.digest tells, to know the corpus again
    sampler: str = "accelerate"  # or distributed
    train_sampling_strategy: str = "random"
    global_batch_distributed: list[int] | None = None
    fill_mode: int = 3
    model_max_length: int = 1024
    dataloader_drop_last: bool = False
    ignore_data_skip: bool = False


class Visit(NamedTuple):
    """A sample on its way into the model: epochs and steps count from 1, ranks and micro-batches of a step from 0."""

    sample: int
    epoch: int
    step: int
    rank: int
    micro_batch: int


def note_order(output_dir: str | Path, settings: OrderSettings) -> None:
    """Keep the settings in ``output_dir``; what a stopped run noted for steps that are trained again goes."""
    path, new = Path(output_dir) / RECORD, dataclasses.asdict(settings)
    earlier = read_json(path) if settings.from_step and path.is_file() else []
    earlier = [entry for entry in earlier if entry["from_step"] < settings.from_step]
    goes_on = earlier and not settings.ignore_data_skip and {**earlier[-1], "from_step": settings.from_step} == new
    write_json(path, earlier if goes_on else [*earlier, new])


class TrainingOrder:
    """The order from ``from_step`` on. ``last_step`` is the last one that it holds for.

    Micro-batches are counted through all epochs, those of all ranks at one time as one: such a round holds
    ``round_size`` samples, neighbours in the epoch's order.
    """

    def __init__(self, settings: OrderSettings, corpus: Corpus, last_step: int):
        self.settings, self.corpus, self.last_step = settings, corpus, last_step
        self.first_step = settings.from_step + 1
        self.accumulation = settings.gradient_accumulation_steps
        self.round_size = settings.world_size * settings.per_device_train_batch_size
        self.rounds = -(-self.epoch_size // self.round_size)
        if not self.rounds:
            raise ValueError(f"{corpus.prefix}: an epoch has no whole batch of {self.round_size} samples")
        self.steps_per_epoch = -(-self.rounds // self.accumulation)
        self._epoch_base = settings.from_step // self.steps_per_epoch
        self._step_base = settings.from_step if settings.ignore_data_skip else self._epoch_base * self.steps_per_epoch

    @cached_property
    def _proportional(self) -> np.ndarray:
        assert self.settings.global_batch_distributed is not None
        return proportional_order(
            self.corpus.type_counts, self.settings.global_batch_distributed, self.settings.fill_mode, self.settings.seed
        )

    @property
    def _order_size(self) -> int:
        return len(self.corpus) if self.settings.global_batch_distributed is None else len(self._proportional)

    @cached_property
    def epoch_size(self) -> int:
        """Samples that all ranks take in an epoch, those repeated for want of others included.

        accelerate's BatchSamplerShard fills up a round, torch's DistributedSampler gives each rank the same number.
        """
        size, world_size = self._order_size, self.settings.world_size
        is_distributed = self.settings.sampler == "distributed"
        if world_size > 1 and (is_distributed or not self.settings.dataloader_drop_last):
            unit = world_size if is_distributed else self.round_size
            size = -(-size // unit) * unit
        return size // self.round_size * self.round_size if self.settings.dataloader_drop_last else size

    def order(self, epoch: int) -> np.ndarray:
        """Sample numbers of an epoch, counted from 0, as its sampler gives them."""
        strategy, seed = self.settings.train_sampling_strategy, self.settings.seed
        if self.settings.global_batch_distributed is not None:
            return self._proportional
        if strategy == "sequential":
            return np.arange(len(self.corpus))
        if strategy == "group_by_length":
            batch_size = self.settings.per_device_train_batch_size * self.accumulation
            sampler = LengthGroupedSampler(self.corpus.lengths, self.settings.model_max_length, batch_size, seed)
            sampler.set_epoch(epoch)
            return np.array(list(sampler))
        import torch

        # what accelerate's SeedableRandomSampler and torch's DistributedSampler give, without 100M Python numbers
        return torch.randperm(len(self.corpus), generator=torch.Generator().manual_seed(seed + epoch)).numpy()

    def steps_of(self, epochs: float) -> int:
        """Steps of a run of so many epochs."""
        if self.settings.sampler == "distributed":
            return int(epochs * self.rounds) // self.accumulation
        return math.ceil(epochs * self.steps_per_epoch)

    def begin(self, step: int) -> int:
        """The first micro-batch of a step.

        The Trainer ends a step with its epoch; in 2023 DeepSpeed went on accumulating through it.
        """
        if self.settings.sampler == "distributed":
            return (step - 1) * self.accumulation
        epoch, step_of_epoch = divmod(step - 1 - self._step_base, self.steps_per_epoch)
        return (self._epoch_base + epoch) * self.rounds + step_of_epoch * self.accumulation

    def parts(self, first_step: int, last_step: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """What all ranks take in these steps: (epoch from 0, place of the part in the epoch, (samples,) numbers)."""
        start, stop = self.begin(first_step), self.begin(last_step + 1)
        for epoch in range(start // self.rounds, -(-stop // self.rounds)):
            first = max(start - epoch * self.rounds, 0) * self.round_size
            last = min((stop - epoch * self.rounds) * self.round_size, self.epoch_size)
            order = self.order(epoch)
            rest = last - len(order)  # then it begins anew
            yield epoch, first, order[first:last] if rest <= 0 else np.append(order[first:], np.resize(order, rest))

    def visits(self, first_step: int, last_step: int, wanted: np.ndarray | None = None) -> Iterator[Visit]:
        """In order of time. wanted: (all samples,) of bool, None for all."""
        world_size, batch_size = self.settings.world_size, self.settings.per_device_train_batch_size
        is_distributed = self.settings.sampler == "distributed"
        for epoch, first, samples in self.parts(first_step, last_step):
            found = np.arange(len(samples)) if wanted is None else np.flatnonzero(wanted[samples])
            places = first + found
            ranks = places % world_size if is_distributed else places // batch_size % world_size
            micro_batches = epoch * self.rounds + places // self.round_size
            for sample, rank, micro_batch in zip(
                samples[found].tolist(), ranks.tolist(), micro_batches.tolist(), strict=True
            ):
                step = self._step_of(micro_batch)
                yield Visit(sample, epoch + 1, step, rank, micro_batch - self.begin(step))

    def _step_of(self, micro_batch: int) -> int:
        if self.settings.sampler == "distributed":
            return micro_batch // self.accumulation + 1
        epoch, of_epoch = divmod(micro_batch, self.rounds)
        return self._step_base + 1 + (epoch - self._epoch_base) * self.steps_per_epoch + of_epoch // self.accumulation


def open_orders(entries: Sequence[OrderSettings], corpus: Corpus) -> list[TrainingOrder]:
    """One order for each entry that was trained on this corpus, in the order of time.

    Raises ValueError where there is none.
    """
    stops = [entry.from_step for entry in entries[1:]] + [entries[-1].max_steps]
    orders = [
        TrainingOrder(entry, corpus, stop)
        for entry, stop in zip(entries, stops, strict=True)
        if entry.data_path == corpus.prefix and entry.num_samples == len(corpus)
    ]
    if any(order.settings.corpus_blake3 not in ("", corpus.digest) for order in orders):
        raise ValueError(
            f"{corpus.prefix}: was written anew since the run took its samples from it; name a copy of the corpus of "
            "that time with --data_path, or build that one again"
        )
    if not orders:
        raise ValueError(
            f"{corpus.prefix}: has {len(corpus)} samples, {entries[-1].num_samples} when it was trained on; "
            "name that corpus with --data_path"
        )
    return orders


def order_of_step(orders: Sequence[TrainingOrder], step: int, flag: str) -> TrainingOrder:
    for order in orders:
        if order.first_step <= step <= order.last_step:
            return order
    steps = ", ".join(f"{order.first_step} to {order.last_step}" for order in orders)
    raise ValueError(f"{flag} {step}: the run has steps {steps} on {orders[0].corpus.prefix}")


def visits_of_samples(orders: Sequence[TrainingOrder], numbers: np.ndarray) -> Iterator[Visit]:
    wanted = np.zeros(len(orders[0].corpus), bool)
    wanted[numbers] = True
    for order in orders:
        yield from order.visits(order.first_step, order.last_step, wanted)


def samples_until(orders: Sequence[TrainingOrder], last_step: int, flag: str) -> np.ndarray:
    """(samples,) of bool: which were seen up to a step, that one included."""
    order_of_step(orders, last_step, flag)
    seen = np.zeros(len(orders[0].corpus), bool)
    for order in orders:
        if order.first_step <= last_step:
            for _, _, samples in order.parts(order.first_step, min(order.last_step, last_step)):
                seen[samples] = True
    return seen


def read_record(output_dir: str | Path) -> list[dict]:
    """What ``note_order`` kept; else what of it ``trainer_state.json`` tells; an empty list if there is neither."""
    folder = Path(output_dir)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the run's --output_dir")
    if (folder / RECORD).is_file():
        return read_records(folder / RECORD)
    states = [*folder.glob("trainer_state.json"), *folder.glob("checkpoint-*/trainer_state.json")]
    if not states:
        return []
    state = json.loads(max(states, key=lambda path: path.stat().st_mtime).read_text(encoding="utf-8"))
    known = {"per_device_train_batch_size": state.get("train_batch_size"), "max_steps": state.get("max_steps")}
    return [{name: value for name, value in known.items() if value}]
