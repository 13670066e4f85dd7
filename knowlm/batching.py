"""Which examples a step takes, which lie in one row, which rows a device computes at once."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from knowlm.instructions import Example

Row = list[int]  # numbers of the examples that lie in it, one after another
IGNORED = -100  # a label that the loss leaves out


@dataclass
class Batching:
    """Names and meanings are those of the tuning flags."""

    batch_size: int  # examples in a step, over all processes
    micro_batch_size: int  # rows that a process computes at once
    cutoff_len: int  # most tokens of a row
    pack: bool = False  # several examples in a row; else one
    group_by_length: bool = False
    processes: int = 1
    epochs: int = 1
    seed: int = 0


def pack_rows(lengths: Sequence[int], capacity: int, at_least: int = 1) -> list[Row]:
    """Few rows of about the same length, none over ``capacity`` tokens.

    Longest first, each into the shortest row so far (Graham's LPT rule): rows alike need no padding, and give every
    device the same work. One row more is tried until none is too long.

    >>> pack_rows([3, 5, 2, 4], capacity=8)
    [[1, 2], [3, 0]]
    """
    longest_first = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    alone = sum(2 * length > capacity for length in lengths)  # no two of these fit into one row
    count = max(at_least, alone, -(-sum(lengths) // capacity))
    while True:
        heap: list[tuple[int, int]] = [(0, row) for row in range(count)]
        rows: list[Row] = [[] for _ in range(count)]
        for number in longest_first:
            load, row = heap[0]
            if load and load + lengths[number] > capacity:
                break
            heapq.heapreplace(heap, (load + lengths[number], row))
            rows[row].append(number)
        else:
            return [row for row in rows if row]
        count += 1


class MicroBatches:
    """A sampler for torch: the micro-batches of an epoch, those of all processes by turns, as lists of rows.

    Every step takes exactly ``batch_size`` examples, the last of an epoch the rest; neither packing nor the number of
    processes changes which. Seed and epoch alone decide the order, so that a resumed run goes on with the same.
    lengths: (examples,) of tokens.
    """

    def __init__(self, lengths: Sequence[int], batching: Batching):
        self.lengths, self.batching, self.epoch = list(lengths), batching, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> list[int]:
        """Example numbers of an epoch."""
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self.batching.seed + epoch)
        if self.batching.group_by_length:
            return get_length_grouped_indices(self.lengths, self.batching.batch_size, generator=generator)
        return torch.randperm(len(self.lengths), generator=generator).tolist()

    def rows(self, numbers: Sequence[int], at_least: int = 1) -> list[Row]:
        """The rows of these examples, longest first, so that neighbours need little padding."""
        if self.batching.pack:
            lengths = [self.lengths[number] for number in numbers]
            packed = pack_rows(lengths, self.batching.cutoff_len, at_least)
            rows = [[numbers[place] for place in row] for row in packed]
        else:
            rows = [[number] for number in numbers]
        return sorted(rows, key=lambda row: -sum(self.lengths[number] for number in row))

    def deal(self, numbers: Sequence[int], rounds: int | None = None) -> list[list[Row]]:
        """Micro-batches of these examples, ``rounds`` for each process; without a number the fewest that hold them.

        Some are empty where there are fewer rows than that.
        """
        processes = self.batching.processes
        rounds = rounds or self._rounds_for(numbers)
        rows = self.rows(numbers, at_least=rounds * processes)
        count = rounds * processes
        return [rows[len(rows) * i // count : len(rows) * (i + 1) // count] for i in range(count)]

    def _rounds_for(self, numbers: Sequence[int]) -> int:
        return -(-len(self.rows(numbers)) // (self.batching.micro_batch_size * self.batching.processes))

    def steps(self, epoch: int) -> Iterator[list[int]]:
        order, size = self.order(epoch), self.batching.batch_size
        return (order[first : first + size] for first in range(0, len(order), size))

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batching.batch_size)

    @cached_property
    def _rounds(self) -> tuple[int, int]:
        """Micro-batches that a process takes in a step, and in the last one of an epoch; the same in all epochs."""
        full, last = 1, 1
        for epoch in range(self.batching.epochs if self.batching.pack else 1):
            *steps, rest = map(self._rounds_for, self.steps(epoch))
            full, last = max([full, *steps]), max(last, rest)
        return max(full, last), last

    @property
    def accumulation(self) -> int:
        """The Trainer's ``gradient_accumulation_steps``."""
        return self._rounds[0]

    def __len__(self) -> int:
        full, last = self._rounds
        return ((self.steps_per_epoch - 1) * full + last) * self.batching.processes

    def __iter__(self) -> Iterator[list[list[int]]]:
        full, last = self._rounds
        for step, numbers in enumerate(self.steps(self.epoch), 1):
            yield from self.deal(numbers, full if step < self.steps_per_epoch else last)


def collate(rows: Sequence[Sequence[Example]], pad_id: int, multiple: int = 1) -> dict:
    """Ids and labels of rows of examples, (rows, tokens), padded on the right to a multiple.

    No attention mask: a causal model doesn't look at what comes after. Where a row holds several examples there are
    ``position_ids``, which begin at 0 with each: by them transformers keeps attention within an example. The first
    token of an example is never predicted, as the one before belongs to another.
    """
    import torch

    longest = max((sum(len(example.ids) for example in row) for row in rows), default=1)
    shape = (max(len(rows), 1), -(-longest // multiple) * multiple)  # nothing to do is a row of padding
    ids, labels = np.full(shape, pad_id), np.full(shape, IGNORED)
    positions = np.zeros(shape, int)
    for number, row in enumerate(rows):
        start = 0
        for example in row:
            stop = start + len(example.ids)
            ids[number, start:stop] = example.ids
            labels[number, start + example.answer_start : stop] = example.ids[example.answer_start :]
            positions[number, start:stop] = np.arange(stop - start)
            start = stop
    batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    if any(len(row) > 1 for row in rows):
        batch["position_ids"] = torch.from_numpy(positions)
    return batch
