"""Convert LLaMA 1 or 2 as Meta published it to a Hugging Face folder.

    python tools/convert_llama_weights_to_hf.py --input_dir ./ --model_size 13B --output_dir ./converted

--input_dir holds the folder 13B and tokenizer.model, or is itself the folder of the consolidated.0N.pth files.
Writes fp16 in pieces of a few megabytes. The output folder appears when it is whole; a killed run, repeated, goes on
behind the shards that were. Meta's MD5 lists are checked first.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/
os.environ.setdefault("OMP_NUM_THREADS", "1")  # reading, arithmetic and writing have a thread each

from knowlm.checksums import hash_file, read_checksums
from knowlm.cli import ArgumentParser, run
from knowlm.files import read_json, require_file, require_new, write_json

NUM_SHARDS = {"7B": 1, "13B": 2, "30B": 4, "65B": 8, "70B": 8}
NEEDED = ("dim", "n_layers", "n_heads", "norm_eps")  # of params.json
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # ids 0, 1, 2
TENSORS = {  # Meta's name: Hugging Face's, shape, dimension on which the shards join (None: each holds all of it)
    "tok_embeddings": ("model.embed_tokens", ("vocabulary", "dim"), 1),
    "layers.N.attention_norm": ("model.layers.N.input_layernorm", ("dim",), None),
    "layers.N.attention.wq": ("model.layers.N.self_attn.q_proj", ("dim", "dim"), 0),
    "layers.N.attention.wk": ("model.layers.N.self_attn.k_proj", ("kv_dim", "dim"), 0),
    "layers.N.attention.wv": ("model.layers.N.self_attn.v_proj", ("kv_dim", "dim"), 0),
    "layers.N.attention.wo": ("model.layers.N.self_attn.o_proj", ("dim", "dim"), 1),
    "layers.N.ffn_norm": ("model.layers.N.post_attention_layernorm", ("dim",), None),
    "layers.N.feed_forward.w1": ("model.layers.N.mlp.gate_proj", ("hidden", "dim"), 0),
    "layers.N.feed_forward.w2": ("model.layers.N.mlp.down_proj", ("dim", "hidden"), 1),
    "layers.N.feed_forward.w3": ("model.layers.N.mlp.up_proj", ("hidden", "dim"), 0),
    "norm": ("model.norm", ("dim",), None),
    "output": ("lm_head", ("vocabulary", "dim"), 0),
}


def main() -> None:
    args = parse_args()
    require_new(args.output_dir)
    source = find_source(Path(args.input_dir), args.model_size)
    require_file(source / "params.json")
    files = find_shards(source, args.model_size)
    beside = source / "tokenizer.model"
    tokenizer = beside if beside.is_file() else require_file(source.absolute().parent / "tokenizer.model")
    if not args.skip_checks:
        check_md5s(source / "checklist.chk")
        check_md5s(tokenizer.with_name("tokenizer_checklist.chk"))

    from knowlm.checkpoint_writer import CheckpointWriter
    from knowlm.checkpoints import identity, load_pickle

    shards = {file: load_pickle(file) for file in files}
    llama2 = args.llama_version == 2 or args.model_size == "70B"  # LLaMA 1 has no 70B
    config = read_config(source / "params.json", shards[files[0]], max_positions=4096 if llama2 else 2048)
    parts = plan_parts(config)
    check_shapes(parts, shards)
    with tempfile.TemporaryDirectory() as settings:
        write_settings(Path(settings), config, tokenizer)
        specs = {name: ("F16", shape) for name, (_, shape, _) in parts.items()}
        job = {"convert": args.llama_version, "inputs": identity([source / "params.json", tokenizer, *files])}
        with CheckpointWriter(args.output_dir, Path(settings), specs, job) as out:
            for name in out.missing:
                for rows in join(*parts[name], list(shards.values()), config):
                    out.add(name, *rows)
                out.finish(name)
    out.tell_infinite("download the shards again, as published they fit")
    print(f"{args.output_dir}: LLaMA {args.model_size} in fp16, {len(parts)} tensors of {len(files)} shard(s)")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--input_dir", required=True, help="folder as downloaded from Meta")
    parser.add_argument("--model_size", required=True, choices=NUM_SHARDS, help="which model of that folder")
    parser.add_argument("--output_dir", required=True, help="folder to write the converted model to")
    parser.add_argument("--llama_version", type=int, default=1, choices=[1, 2], help="2: 4096 positions, 1: 2048")
    parser.add_argument("--skip_checks", action="store_true", help="convert without comparing MD5s")
    return parser.parse_args()


def find_source(input_dir: Path, size: str) -> Path:
    source = input_dir / size if (input_dir / size).is_dir() else input_dir
    if not any(source.glob("consolidated.*.pth")):
        fact = "holds no consolidated.*.pth" if source.is_dir() else "no such folder"
        raise ValueError(f"{source}: {fact}; --input_dir is the folder that holds {size}/, as downloaded from Meta")
    return source


def find_shards(source: Path, size: str) -> list[Path]:
    wanted = [source / f"consolidated.{number:02d}.pth" for number in range(NUM_SHARDS[size])]
    found = sorted(source.glob("consolidated.*.pth"))
    for file in sorted({*wanted} ^ {*found}):
        problem = "missing" if file in wanted else "too many"
        fact = f"{size} has {len(wanted)} shard(s), {len(found)} are here"
        raise ValueError(f"{file}: {problem}: {fact}; download it, or mend --model_size")
    return wanted


def check_md5s(checklist: Path) -> None:
    """Print OK or BAD for each file of a list in md5sum's format; ValueError names the first bad one."""
    if not checklist.is_file():
        print(f"{checklist}: not here, so no MD5 is compared with it")
        return
    bad = []
    for name, expected in read_checksums(checklist).items():
        digest = hash_file(require_file(checklist.parent / name), expected.algorithm)
        print(f"{checklist.parent / name}: {'OK' if digest == expected.hex else 'BAD'}", flush=True)
        if digest != expected.hex:
            bad.append(f"{checklist.parent / name}: MD5 is {digest}, {checklist.name} says {expected.hex}")
    if bad:
        raise ValueError(f"{bad[0]}; download it again (--skip_checks converts it all the same)")


def read_config(file: Path, shard: dict, max_positions: int):
    """Meta's params.json as a LlamaConfig; the vocabulary is counted in the weights, where the file may say -1."""
    from transformers import LlamaConfig

    params = read_json(file)
    for name in NEEDED:
        number = params.get(name) if isinstance(params, dict) else None
        if not isinstance(number, int | float) or number <= 0:
            raise ValueError(f"{file}: {name} is {number}, a number over 0 is needed; download it again")
    multiple = params.get("multiple_of", 256)
    hidden = int(params.get("ffn_dim_multiplier", 1) * int(8 * params["dim"] / 3))
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(shard.get("tok_embeddings.weight", ())),
        hidden_size=params["dim"],
        intermediate_size=-(-hidden // multiple) * multiple,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
        rms_norm_eps=params["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": params.get("rope_theta", 10000.0)},
        max_position_embeddings=max_positions,
        dtype="float16",
    )


def plan_parts(config) -> dict[str, tuple[str, tuple[int, ...], int | None]]:
    """For every tensor of the converted model: Meta's name, the whole shape, the dimension on which shards join."""
    kv_dim = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    sizes = {"vocabulary": config.vocab_size, "dim": config.hidden_size, "hidden": config.intermediate_size}
    parts = {}
    for layer in range(config.num_hidden_layers):
        for meta, (name, shape, dim) in TENSORS.items():
            whole = tuple(sizes.get(size, kv_dim) for size in shape)
            meta, name = (f"{n}.weight".replace(".N.", f".{layer}.") for n in (meta, name))
            parts.setdefault(name, (meta, whole, dim))
    return parts


def check_shapes(parts: dict, shards: dict) -> None:
    """Raise ValueError naming file and tensor unless the shards are the model that params.json describes."""
    for file, shard in shards.items():
        for meta, shape, dim in parts.values():
            expected = tuple(size // len(shards) if i == dim else size for i, size in enumerate(shape))
            found = tuple(shard[meta].shape) if meta in shard else None
            if found != expected:
                fact = f"{meta} has shape {found}, by params.json it is {expected}"
                raise ValueError(f"{file}: {fact}; the two aren't one model's, download both again")
        if unknown := sorted({*shard} - {meta for meta, *_ in parts.values()} - {"rope.freqs"}):
            fact = f"holds {unknown[0]}, which the model of params.json hasn't"
            raise ValueError(f"{file}: {fact}; the two aren't one model's, download both again")


def join(meta: str, shape: tuple[int, ...], dim: int | None, shards: list[dict], config) -> Iterator:
    """Some rows of the whole tensor at a time, in fp16, and how many of their numbers became infinite."""
    import torch

    from knowlm.checkpoints import rows_at_once
    from knowlm.dtypes import NAMES, as_array, fit

    tensors = [shard[meta] for shard in (shards[:1] if dim is None else shards)]
    heads = {"wq": config.num_attention_heads, "wk": config.num_key_value_heads}.get(meta.split(".")[-2])
    size = shape[0] // heads if heads else 1  # of what stays together
    step = rows_at_once(shape, size)
    for side_by_side in [tensors] if dim == 1 else [[tensor] for tensor in tensors]:
        for first in range(0, len(side_by_side[0]), step):
            rows = torch.cat([tensor[first : first + step] for tensor in side_by_side], -1)
            if heads:  # rotary: Meta turns neighbouring rows of a head together, Hugging Face rows half a head apart
                rows = rows.view(-1, size // 2, 2, shape[1]).transpose(1, 2).reshape(rows.shape)
            yield fit(as_array(rows), NAMES[str(rows.dtype)], "F16")


def write_settings(folder: Path, config, tokenizer: Path) -> None:
    """config.json, generation_config.json, tokenizer.model, tokenizer_config.json and tokenizer.json."""
    import sentencepiece
    from transformers import GenerationConfig

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    except RuntimeError:
        raise ValueError(f"{tokenizer}: not a SentencePiece model, as LLaMA 1 and 2 have; download it again") from None
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    if len(pieces) > config.vocab_size or pieces[:3] != list(SPECIAL.values()):
        raise ValueError(f"{tokenizer}: {len(pieces)} pieces, the model has {config.vocab_size}; not its tokenizer")
    config.save_pretrained(folder)
    GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2).save_pretrained(folder)
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    settings = {"add_bos_token": True, "add_eos_token": False, "legacy": True, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"} | SPECIAL | settings)
    scores = {piece: model.get_score(i) for i, piece in enumerate(pieces) if i >= len(SPECIAL) and not model.is_byte(i)}
    write_json(folder / "tokenizer.json", fast_tokenizer(pieces, scores))


def fast_tokenizer(pieces: list[str], scores: dict[str, float]) -> dict:
    """The content of a tokenizer.json that cuts text as SentencePiece does; scores: of what may come from merging.

    Without the file, transformers 5 orders the merges by id, not by score: runs of spaces (low ids, lowest score)
    then take the space of the next word, and indented code gets other ids than LLaMA was trained on.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    # Among equal scores, those of runs of spaces, the longest left piece goes first: a run grows from its left.
    cuts = [(score, at, piece) for piece, score in scores.items() for at in range(1, len(piece))]
    merges = [(p[:at], p[at:]) for _, at, p in sorted(cuts, reverse=True) if p[:at] in scores and p[at:] in scores]
    ids = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces, no_first_space = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), no_first_space])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", ids["<s>"])])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL.values()])
    content = json.loads(backend.to_str())
    content["model"]["merges"] = [f"{left} {right}" for left, right in merges]  # libraries of 2023 read no pairs
    return content


if __name__ == "__main__":
    run(main)
