"""Which samples go into a batch: a share of each type of data, or samples of like lengths."""

from collections.abc import Iterator, Sequence

import numpy as np

FILL_MODES = {0: (False, False), 1: (True, False), 2: (False, True), 3: (True, True)}


def proportional_order(type_counts: Sequence[int], per_batch: Sequence[int], mode: int, seed: int) -> np.ndarray:
    """Sample numbers of one epoch, so that each global batch holds ``per_batch[t]`` samples of type t.

    type_counts: samples of each type, types lying one after another in the corpus.
    per_batch: samples of each type in one global batch (before gradient accumulation).
    mode: what happens as types run out at different times:
        0 drop the rest of each type, stop at the shortest; 1 fill each type's last batch, stop at the shortest;
        2 drop, then repeat the shorter types up to the longest; 3 fill, then repeat (the default of 2023).
    Returns (batches * sum(per_batch),) ids. Raises ValueError when a type can't fill its share.
    """
    if len(per_batch) != len(type_counts):
        raise ValueError(
            f"--global_batch_distributed has {len(per_batch)} numbers, the corpus has {len(type_counts)} types"
        )
    fill, repeat = FILL_MODES[mode]
    generator = np.random.default_rng(seed)
    first = np.concatenate([[0], np.cumsum(type_counts)[:-1]])
    batches = []
    for count, share in zip(type_counts, per_batch, strict=True):
        if share > 0 and (count == 0 or (count < share and not fill)):
            raise ValueError(
                f"a type of {count} samples can't give {share} to a batch; use mode 1 or 3, or a smaller share"
            )
        batches.append(0 if share == 0 else -(-count // share) if fill else count // share)
    used = [b for b, share in zip(batches, per_batch, strict=True) if share > 0]
    if not used:
        raise ValueError("--global_batch_distributed: at least one number must be above zero")
    num_batches = max(used) if repeat else min(used)
    columns = []
    for start, count, share in zip(first, type_counts, per_batch, strict=True):
        rounds = -(-num_batches * share // max(count, 1)) or 1
        ids = np.concatenate([generator.permutation(count) for _ in range(rounds)])[: num_batches * share]
        columns.append((start + ids).reshape(num_batches, share))
    order = np.concatenate(columns, axis=1)
    generator.permuted(order, axis=1, out=order)  # every device sees every type
    return order.reshape(-1)


class LengthGroupedSampler:
    """Samples of like lengths together, in an order that seed and epoch alone decide.

    transformers' sampler of this name draws from the process's generator: a resumed run then draws another order, and
    skips other samples than those that were trained on.
    lengths: (samples,) of tokens, cut to ``max_length``. batch_size: samples that a process takes for one step.
    """

    def __init__(self, lengths: np.ndarray, max_length: int, batch_size: int, seed: int):
        self.lengths = np.minimum(lengths.astype(int), max_length).tolist()
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
