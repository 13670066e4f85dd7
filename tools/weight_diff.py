"""Publish a tuned model as its difference to the base, rebuild it, and merge LoRA weights.

    python tools/weight_diff.py make_diff --path_raw ./converted --path_tuned ./tuned --path_diff ./diff
    python tools/weight_diff.py recover --path_raw ./converted --path_diff ./zhixi-diff --path_tuned ./zhixi
    python tools/weight_diff.py merge --path_zhixi ./zhixi --path_lora ./lora --path_sfted ./zhixi-sft

Reads and writes Hugging Face folders of any size a few megabytes at a time. The output folder appears when it is whole;
a killed run, repeated, goes on behind the shards that were. tuned = raw + diff. With --exact the difference is one of
bit patterns, and recovery gives the tuned bits back; recover sees from the files which kind it has, and by a manifest
in the difference whether base and difference are the right ones and undamaged.
"""

import math
import os
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/
os.environ.setdefault("OMP_NUM_THREADS", "1")  # reading, arithmetic and writing have a thread each

from knowlm.cli import run_fire

ZHIXI_SUM, SUM_TOLERANCE = 94052.2891, 0.01  # over all fp32 weights of ZhiXi-13B, as published in 2023


def make_diff(
    path_raw: Annotated[str, "folder of the base model"],
    path_tuned: Annotated[str, "folder of the tuned model"],
    path_diff: Annotated[str, "folder to write the difference to"],
    exact: Annotated[bool, "difference of bit patterns: recovery is exact in any dtype"] = False,
) -> None:
    """Write tuned - raw, with the tuned model's config and tokenizer and a manifest."""
    from knowlm.checkpoint_writer import CheckpointWriter
    from knowlm.checkpoints import Checkpoint, check_same_tensors
    from knowlm.files import require_new
    from knowlm.manifest import require_model
    from knowlm.weight_deltas import EXACT, PLAIN, difference_specs, subtract, together

    require_new(path_diff)
    require_model(path_raw)
    require_model(path_tuned)
    with Checkpoint(path_raw) as raw, Checkpoint(path_tuned) as tuned:
        check_same_tensors(raw, tuned)
        specs, kind = difference_specs(tuned, exact), EXACT if exact else PLAIN
        job = {"make_diff": kind, "inputs": [raw.identity(), tuned.identity()]}
        with CheckpointWriter(path_diff, tuned.folder, specs, job, kind) as out:
            for old, new in together(out.missing, raw, tuned):
                out.add(new.name, *subtract(new, old, exact))
                if new.digest:
                    both = {"base": old, "tuned": new}
                    out.finish(new.name, {k: {"dtype": it.dtype, "blake3": it.digest} for k, it in both.items()})
    out.tell_infinite("use --exact")
    print(f"{path_diff}: the {kind} of {len(specs)} tensors")


def recover(
    path_raw: Annotated[str, "folder of the base model"],
    path_diff: Annotated[str, "folder of the difference"],
    path_tuned: Annotated[str, "folder to write the tuned model to"],
    is_fp16: Annotated[bool, "write fp16; by default the difference's own dtype"] = False,
    check_integrity_naively: Annotated[bool, "compare the sum of all weights with ZhiXi-13B's in fp32"] = False,
    expected_sum: Annotated[float | None, "compare the sum of all weights with this"] = None,
) -> None:
    """Write raw + diff, with the difference's config and tokenizer."""
    from knowlm.checkpoint_writer import CheckpointWriter, in_fp16
    from knowlm.checkpoints import Checkpoint
    from knowlm.dtypes import sum_of
    from knowlm.files import require_new
    from knowlm.weight_deltas import Difference, together

    require_new(path_tuned)
    if check_integrity_naively and expected_sum is None:
        expected_sum = ZHIXI_SUM
    with Checkpoint(path_raw) as raw, Checkpoint(path_diff) as diff:
        difference = Difference(raw, diff)
        specs = in_fp16(difference.tuned) if is_fp16 else difference.tuned
        job = {"recover": is_fp16, "inputs": [raw.identity(), diff.identity()]}
        with CheckpointWriter(path_tuned, diff.folder, specs, job, dtype="float16" if is_fp16 else None) as out:
            sums = dict.fromkeys(specs, 0.0)
            for old, change in together(out.missing, raw, diff):
                dtype = specs[change.name][0]
                new, infinite = difference.add_to(old, change, dtype)
                out.add(change.name, new, infinite)
                sums[change.name] += sum_of(new, dtype)
                if change.digest:
                    out.finish(change.name, {"sum": sums[change.name] if math.isfinite(sums[change.name]) else None})
            out.wait()
            told = [facts["sum"] for facts in out.tensors.values()]
            total = math.nan if None in told else math.fsum(told)
            if expected_sum is not None:
                check_sum(total, expected_sum, rotary_sum(diff.config), path_tuned)
            difference.check_tuned(out)
    out.tell_infinite("leave --is_fp16 away" if is_fp16 else "make the difference with --exact")
    checked = (
        "base and difference are as its manifest says" if difference.manifest else "it has no manifest to check by"
    )
    strange = next((name for name, facts in out.tensors.items() if facts["sum"] is None), None)
    if strange:
        print(f"{path_tuned}: {strange} holds numbers that are none (nan) or infinite", file=sys.stderr)
    print(f"{path_tuned}: {len(specs)} tensors recovered, their sum is {total:.4f}; {checked}")


def check_sum(total: float, expected: float, rotary: float, path: str) -> None:
    """Raise OSError, which keeps the work for a run without the flag, unless the sum is the expected one.

    rotary: sum of the rotary frequencies, which transformers counted among the weights until 2023. Sums of that time
    were taken one tensor after another in 32 bits, so a large one is off by its rounding.
    """
    tolerance = max(SUM_TOLERANCE, 1e-6 * abs(expected))
    if not any(math.isclose(found, expected, rel_tol=0, abs_tol=tolerance) for found in (total, total + rotary)):
        raise OSError(
            f"{path}: not written: the weights sum to {total:.4f}, {expected} is expected; the base or the difference "
            "isn't the right one, or is damaged (--expected_sum for other models; without it the work is kept)"
        )


def rotary_sum(config: dict) -> float:
    """Of all layers of a LLaMA of 2023."""
    if not {"num_hidden_layers", "hidden_size", "num_attention_heads"} <= config.keys():
        return 0.0
    head = config["hidden_size"] // config["num_attention_heads"]
    return config["num_hidden_layers"] * math.fsum(10_000.0 ** (-i / head) for i in range(0, head, 2))


def merge(
    path_zhixi: Annotated[str, "folder of the base model"],
    path_lora: Annotated[str, "folder of the LoRA adapter"],
    path_sfted: Annotated[str, "folder to write the merged model to"],
    is_fp16: Annotated[bool, "write fp16; by default the base's own dtype"] = False,
) -> None:
    """Add a LoRA adapter into the base model."""
    from knowlm.checkpoint_writer import CheckpointWriter, in_fp16
    from knowlm.checkpoints import Checkpoint, in_file_order
    from knowlm.dtypes import fit
    from knowlm.files import require_new
    from knowlm.lora import Adapter
    from knowlm.manifest import require_model

    require_new(path_sfted)
    require_model(path_zhixi)
    adapter = Adapter(path_lora)
    with Checkpoint(path_zhixi) as base:
        adapter.check_fits(base)
        specs = {name: base.spec(name) for name in in_file_order(base)}
        specs = in_fp16(specs) if is_fp16 else specs
        job = {"merge": is_fp16, "inputs": [base.identity(), adapter.identity()]}
        with CheckpointWriter(path_sfted, base.folder, specs, job, dtype="float16" if is_fp16 else None) as out:
            for piece in base.pieces(out.missing):
                out.add(piece.name, *fit(*adapter.merged(piece, base), specs[piece.name][0]))
                if piece.digest:
                    out.finish(piece.name)
    out.tell_infinite("leave --is_fp16 away" if is_fp16 else "merge into the base in fp32 or bf16")
    changed = {*adapter.parts, *adapter.saved}
    print(f"{path_sfted}: {len(changed)} of {len(specs)} tensors changed by the adapter")


if __name__ == "__main__":
    run_fire({"make_diff": make_diff, "recover": recover, "merge": merge}, __doc__)
