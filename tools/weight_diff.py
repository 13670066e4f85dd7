"""Publish a tuned model as its difference to the base, rebuild it, and merge LoRA weights.

    python tools/weight_diff.py make_diff --path_raw ./converted --path_tuned ./tuned --path_diff ./diff
    python tools/weight_diff.py recover --path_raw ./converted --path_diff ./zhixi-diff --path_tuned ./zhixi
    python tools/weight_diff.py merge --path_zhixi ./zhixi --path_lora ./lora --path_sfted ./zhixi-sft

Reads and writes Hugging Face folders a tensor at a time; the output folder appears when it is whole.
tuned = raw + diff. With --exact the difference is one of bit patterns, and recovery gives the tuned bits back;
recover sees from the files which kind it has.
"""

import math
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import run_fire

ZHIXI_SUM, SUM_TOLERANCE = 94052.2891, 0.01  # over all fp32 weights of ZhiXi-13B, as published in 2023


def make_diff(
    path_raw: Annotated[str, "folder of the base model"],
    path_tuned: Annotated[str, "folder of the tuned model"],
    path_diff: Annotated[str, "folder to write the difference to"],
    exact: Annotated[bool, "difference of bit patterns: recovery is exact in any dtype"] = False,
) -> None:
    """Write tuned - raw, with the tuned model's config and tokenizer."""
    from knowlm.checkpoints import Checkpoint, check_same_tensors, write_checkpoint
    from knowlm.files import require_new

    require_new(path_diff)
    with Checkpoint(path_raw) as raw, Checkpoint(path_tuned) as tuned:
        check_same_tensors(raw, tuned)
        specs = {name: tuned.spec(name) for name in tuned}
        if exact:
            specs = {name: (integer_like(dtype), shape) for name, (dtype, shape) in specs.items()}

        def difference(name):
            new = tuned[name]
            old = raw[name].to(new.dtype)
            return new.view(integer_like(new.dtype)) - old.view(integer_like(new.dtype)) if exact else new - old

        write_checkpoint(path_diff, tuned, specs, ((name, difference(name)) for name in specs))
    print(f"{path_diff}: the {'exact ' * exact}difference of {len(specs)} tensors")


def recover(
    path_raw: Annotated[str, "folder of the base model"],
    path_diff: Annotated[str, "folder of the difference"],
    path_tuned: Annotated[str, "folder to write the tuned model to"],
    is_fp16: Annotated[bool | None, "write fp16; by default the difference's own dtype"] = None,
    check_integrity_naively: Annotated[bool, "compare the sum of all weights with --expected_sum"] = False,
    expected_sum: Annotated[float, "published sum; ZhiXi-13B's in fp32"] = ZHIXI_SUM,
) -> None:
    """Write raw + diff, with the difference's config and tokenizer."""
    import torch

    from knowlm.checkpoints import Checkpoint, check_same_tensors, write_checkpoint
    from knowlm.files import require_new

    require_new(path_tuned)
    total = 0.0
    with Checkpoint(path_raw) as raw, Checkpoint(path_diff) as diff:
        check_same_tensors(raw, diff)

        def tuned_dtype(name):
            dtype = diff.spec(name)[0]
            if not dtype.is_floating_point:
                return {4: torch.float32, 2: half_of(diff.config)}[dtype.itemsize]
            return torch.float16 if is_fp16 else dtype

        def recovered(name):
            nonlocal total
            change, dtype = diff[name], tuned_dtype(name)
            old = raw[name].to(dtype)
            if change.dtype.is_floating_point:
                new = old + change.to(dtype)
            else:
                new = (old.view(change.dtype) + change).view(dtype)
            total += new.sum(dtype=torch.float64).item()
            return new

        specs = {name: (tuned_dtype(name), diff.spec(name)[1]) for name in diff}
        write_checkpoint(path_tuned, diff, specs, ((name, recovered(name)) for name in specs))
    print(f"{path_tuned}: {len(specs)} tensors recovered, their sum is {total:.4f}")
    if check_integrity_naively and not math.isclose(total, expected_sum, abs_tol=SUM_TOLERANCE):
        raise ValueError(
            f"{path_tuned}: the weights sum to {total:.4f}, {expected_sum} is expected; "
            "the base or the difference isn't the right one, or is damaged (--expected_sum for other models)"
        )


def merge(
    path_zhixi: Annotated[str, "folder of the base model"],
    path_lora: Annotated[str, "folder of the LoRA adapter"],
    path_sfted: Annotated[str, "folder to write the merged model to"],
    is_fp16: Annotated[bool, "write fp16; by default the base's own dtype"] = False,
) -> None:
    """Add a LoRA adapter into the base model."""
    import torch

    from knowlm.checkpoints import Checkpoint, write_checkpoint
    from knowlm.files import require_new
    from knowlm.lora import Adapter

    require_new(path_sfted)
    adapter = Adapter(path_lora)
    with Checkpoint(path_zhixi) as base:
        adapter.check_fits(base)
        specs = {name: (torch.float16 if is_fp16 else base.spec(name)[0], base.spec(name)[1]) for name in base}

        def merged(name):
            weight, delta = base[name], adapter.delta(name)
            return (weight if delta is None else weight.float() + delta).to(specs[name][0])

        write_checkpoint(path_sfted, base, specs, ((name, merged(name)) for name in specs))
    print(f"{path_sfted}: {len(adapter.pairs)} of {len(specs)} tensors gained LoRA weights")


def integer_like(dtype):
    """The integer type of the same width, whose sums wrap around."""
    import torch

    return {4: torch.int32, 2: torch.int16}[dtype.itemsize]


def half_of(config: dict):
    """Which 16-bit float an exact difference stands for: the one its config names."""
    import torch

    return torch.bfloat16 if "bfloat16" in (config.get("dtype"), config.get("torch_dtype")) else torch.float16


if __name__ == "__main__":
    run_fire({"make_diff": make_diff, "recover": recover, "merge": merge}, __doc__)
