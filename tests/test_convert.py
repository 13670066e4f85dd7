"""Meta's layout is written here from scratch and its model computed as Meta's code does: nothing is shared."""

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import convert_llama_weights_to_hf as convert

pytestmark = pytest.mark.slow
VOCABULARY = 32000
MULTI_HEAD = {"dim": 64, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-6, "multiple_of": 32, "vocab_size": -1}
GROUPED = {"dim": 64, "n_layers": 2, "n_heads": 16, "n_kv_heads": 8, "norm_eps": 1e-5, "multiple_of": 32}
GROUPED |= {"ffn_dim_multiplier": 1.3, "vocab_size": VOCABULARY}
HIDDEN = {"multi-head": 192, "grouped": 224}  # 8/3 of 64 (times 1.3) rounded up to a multiple of 32
TEXTS = [
    "Marie Curie was born in Warsaw.",
    "知识图谱把事实存成三元组。床前明月光,疑是地上霜。",
    "John昨天在纽约的咖啡馆见到了他的朋友Merry, 2023年。\n🙂\t café",
    "def pack(lengths):\n    for length in lengths:\n        return  [length]\n",
]


def sentencepiece_file() -> Path:
    [package] = importlib.util.find_spec("mistral_common").submodule_search_locations
    return Path(package) / "data" / "tokenizer.model.v1"  # 32,000 pieces with byte fallback, like LLaMA's


def make_weights(params: dict, hidden: int) -> dict[str, torch.Tensor]:
    """A random model under Meta's names, fp16."""
    dim = params["dim"]
    kv_dim = dim // params["n_heads"] * params.get("n_kv_heads", params["n_heads"])
    shapes = {"tok_embeddings": (VOCABULARY, dim), "norm": (dim,), "output": (VOCABULARY, dim)}
    for layer in (f"layers.{i}." for i in range(params["n_layers"])):
        shapes |= {layer + "attention.wq": (dim, dim), layer + "attention.wk": (kv_dim, dim)}
        shapes |= {layer + "attention.wv": (kv_dim, dim), layer + "attention.wo": (dim, dim)}
        shapes |= {layer + "feed_forward.w1": (hidden, dim), layer + "feed_forward.w2": (dim, hidden)}
        shapes |= {
            layer + "feed_forward.w3": (hidden, dim),
            layer + "attention_norm": (dim,),
            layer + "ffn_norm": (dim,),
        }
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name}.weight": (torch.randn(shape, generator=generator) * 0.2 + ("norm" in name)).half()
        for name, shape in shapes.items()
    }


def split(weights: dict[str, torch.Tensor], num_shards: int) -> list[dict[str, torch.Tensor]]:
    """As fairscale's column-parallel, row-parallel and embedding layers hold them."""
    shards = [{"rope.freqs": torch.ones(8)} for _ in range(num_shards)]
    for name, tensor in weights.items():
        dim = 1 if name.split(".")[-2] in ("wo", "w2", "tok_embeddings") else 0
        pieces = [tensor] * num_shards if "norm" in name else tensor.chunk(num_shards, dim)
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece.clone()
    return shards


def meta_logits(weights: dict[str, torch.Tensor], params: dict, ids: list[int]) -> torch.Tensor:
    """Meta's forward pass in fp32: neighbouring numbers of a head are one complex number, which its position turns."""
    w = {name.removesuffix(".weight"): tensor.float() for name, tensor in weights.items()}
    heads, length = params["n_heads"], len(ids)
    repeats = heads // params.get("n_kv_heads", heads)
    head_dim = params["dim"] // heads
    angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim))
    turns_TC = torch.polar(torch.ones_like(angles), angles)
    future_TT = torch.full((length, length), float("-inf")).triu(1)

    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * w[name]

    def rotate(x_THD):
        pairs_THC = torch.view_as_complex(x_THD.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs_THC * turns_TC[:, None]).flatten(-2)

    x = w["tok_embeddings"][ids]
    for layer in (f"layers.{i}." for i in range(params["n_layers"])):
        y = norm(x, layer + "attention_norm")
        q, k, v = ((y @ w[layer + f"attention.w{n}"].T).unflatten(-1, (-1, head_dim)) for n in "qkv")
        q, k, v = rotate(q), rotate(k).repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores_HTT = torch.einsum("thd,shd->hts", q, k) / head_dim**0.5 + future_TT
        attended = torch.einsum("hts,shd->thd", scores_HTT.softmax(-1), v).flatten(1)
        x = x + attended @ w[layer + "attention.wo"].T
        y = norm(x, layer + "ffn_norm")
        gate = torch.nn.functional.silu(y @ w[layer + "feed_forward.w1"].T)
        x = x + (gate * (y @ w[layer + "feed_forward.w3"].T)) @ w[layer + "feed_forward.w2"].T
    return norm(x, "norm") @ w["output"].T


def write_meta_folder(
    root: Path, size: str, params: dict = MULTI_HEAD, hidden: int = HIDDEN["multi-head"], dtype=torch.float16
) -> dict[str, torch.Tensor]:
    """Write a random model in Meta's layout into ``root``; returns its weights."""
    (root / size).mkdir(parents=True)
    weights = make_weights(params, hidden)
    for number, shard in enumerate(split(weights, {"7B": 1, "13B": 2, "70B": 8}[size])):
        content = {name: tensor.to(dtype) for name, tensor in shard.items()}
        torch.save(content, root / size / f"consolidated.{number:02d}.pth")
    (root / size / "params.json").write_text(json.dumps(params))
    shutil.copyfile(sentencepiece_file(), root / "tokenizer.model")
    for checklist, folder in (("checklist.chk", root / size), ("tokenizer_checklist.chk", root)):
        lines = [f"{md5(file)}  {file.name}\n" for file in sorted(folder.iterdir()) if file.is_file()]
        (folder / checklist).write_text("".join(lines))
    return weights


@pytest.fixture
def write_meta(tmp_path):
    """``write_meta("13B", params, hidden)`` writes Meta's folder; returns it and the weights."""

    def write(*settings, **more):
        return tmp_path / "llama", write_meta_folder(tmp_path / "llama", *settings, **more)

    return write


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def run_convert(tmp_path, monkeypatch):
    def run(*flags) -> Path:
        output = tmp_path / "converted"
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, flags), "--output_dir", str(output)])
        convert.main()
        return output

    return run


def flip_a_byte(file: Path) -> None:
    """In the middle, where the embeddings lie."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("size", "params", "hidden", "positions"),
    [
        ("7B", MULTI_HEAD, HIDDEN["multi-head"], 2048),
        ("13B", MULTI_HEAD, HIDDEN["multi-head"], 2048),
        ("70B", GROUPED, HIDDEN["grouped"], 4096),
    ],
    ids=["one shard", "two shards", "eight shards with grouped queries"],
)
def test_the_converted_model_computes_what_metas_does(write_meta, run_convert, size, params, hidden, positions):
    from transformers import AutoModelForCausalLM

    root, weights = write_meta(size, params, hidden)
    output = run_convert("--input_dir", root, "--model_size", size)
    config = json.loads((output / "config.json").read_text())
    assert (config["max_position_embeddings"], config["dtype"], config["vocab_size"]) == (positions, "float16", 32000)
    assert (config["rms_norm_eps"], config["bos_token_id"], config["eos_token_id"]) == (params["norm_eps"], 1, 2)
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    ids = [1, *torch.randint(VOCABULARY, (40,), generator=torch.Generator().manual_seed(1)).tolist()]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    expected = meta_logits(weights, params, ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert torch.equal(model.lm_head.weight, weights["output.weight"].float())


def test_the_published_command_converts_and_prints_its_checks(write_meta, run_warm):
    root, _ = write_meta("13B")
    flags = ["--input_dir", "./", "--model_size", "13B", "--output_dir", "./converted"]
    result = run_warm("tools/convert_llama_weights_to_hf.py", *flags, cwd=root)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(": OK") == 4 and "BAD" not in result.stdout
    from knowlm.checkpoints import Checkpoint

    with Checkpoint(root / "converted") as converted:
        assert len(converted) == 21
        assert {converted.spec(name)[0] for name in converted} == {"F16"}


def test_the_folder_of_the_shards_may_be_named_and_bf16_becomes_fp16(write_meta, run_convert):
    from knowlm.checkpoints import Checkpoint

    root, weights = write_meta("13B", dtype=torch.bfloat16)
    output = run_convert("--input_dir", root / "13B", "--model_size", "13B", "--llama_version", "2")
    with Checkpoint(output) as converted:
        assert torch.equal(converted["model.embed_tokens.weight"], weights["tok_embeddings.weight"].bfloat16().half())
        assert converted.config["max_position_embeddings"] == 4096


def test_a_number_too_large_for_fp16_is_told(write_meta, run_convert, capsys):
    root, _ = write_meta("7B", dtype=torch.bfloat16)
    shard = torch.load(root / "7B/consolidated.00.pth", weights_only=True)
    shard["layers.1.ffn_norm.weight"][3] = 1e6
    torch.save(shard, root / "7B/consolidated.00.pth")
    run_convert("--input_dir", root, "--model_size", "7B", "--skip_checks")
    fact = "1 number(s) too large for fp16 became infinite, the first in model.layers.1.post_attention_layernorm.weight"
    assert fact in capsys.readouterr().err


def test_the_tokenizer_cuts_text_as_sentencepiece_does(write_meta, run_convert):
    import sentencepiece
    from transformers import AutoTokenizer

    from knowlm.tokenization import CorpusTokenizer

    root, _ = write_meta("7B")
    output = run_convert("--input_dir", root, "--model_size", "7B")
    tokenizer, reference = (
        AutoTokenizer.from_pretrained(output),
        sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file())),
    )
    for text in TEXTS:
        ids = reference.encode(text)
        assert tokenizer(text).input_ids == [1, *ids], text
        assert tokenizer.decode([1, *ids], skip_special_tokens=True) == text
    for text in [*TEXTS, "  two spaces lead", "a" + " " * 37 + "b", "a literal </s> and <0x0A>"]:
        assert CorpusTokenizer(output).encode(text)[0] == reference.encode(text), text
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (output / "tokenizer.model").read_bytes() == sentencepiece_file().read_bytes()


def test_a_flipped_byte_is_named_and_nothing_is_written(write_meta, run_warm, tmp_path):
    root, _ = write_meta("13B")
    flip_a_byte(root / "13B/consolidated.01.pth")
    flags = ["--input_dir", root, "--model_size", "13B", "--output_dir", tmp_path / "converted"]
    result = run_warm("tools/convert_llama_weights_to_hf.py", *flags)
    assert result.returncode == 1
    assert "consolidated.00.pth: OK" in result.stdout and "consolidated.01.pth: BAD" in result.stdout
    assert "consolidated.01.pth: MD5 is" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "converted").exists()


def test_skip_checks_converts_all_the_same(write_meta, run_convert, capsys):
    root, _ = write_meta("7B")
    flip_a_byte(root / "7B/consolidated.00.pth")
    output = run_convert("--input_dir", root, "--model_size", "7B", "--skip_checks")
    assert (output / "model.safetensors").is_file()
    assert "BAD" not in capsys.readouterr().out


def test_a_missing_shard_is_named(write_meta, run_convert):
    root, _ = write_meta("13B")
    (root / "13B/consolidated.01.pth").unlink()
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth: missing: 13B has 2 shard\(s\), 1 are here"):
        run_convert("--input_dir", root, "--model_size", "13B", "--skip_checks")


def test_shards_of_another_size_are_refused(write_meta, run_convert):
    root, _ = write_meta("13B")
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth: too many: 7B has 1"):
        run_convert("--input_dir", root / "13B", "--model_size", "7B")


def test_missing_files_and_folders_are_named(write_meta, run_convert, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        run_convert("--input_dir", tmp_path / "nowhere", "--model_size", "13B")
    root, _ = write_meta("13B")
    with pytest.raises(ValueError, match=r"holds no consolidated\.\*\.pth"):
        run_convert("--input_dir", root, "--model_size", "7B")
    (root / "13B/params.json").unlink()
    with pytest.raises(ValueError, match=r"params\.json: no such file"):
        run_convert("--input_dir", root, "--model_size", "13B")


def test_params_of_another_model_are_refused(write_meta, run_convert):
    root, _ = write_meta("7B", {**MULTI_HEAD, "multiple_of": 64}, hidden=160)
    with pytest.raises(
        ValueError, match=r"feed_forward\.w1\.weight has shape \(160, 64\), by params\.json it is \(192"
    ):
        run_convert("--input_dir", root, "--model_size", "7B")


def test_a_pickle_that_holds_code_is_refused(write_meta, run_convert):
    root, _ = write_meta("7B")
    torch.save({"tok_embeddings.weight": Path("x")}, root / "7B/consolidated.00.pth")
    with pytest.raises(ValueError, match="nothing of it was run"):
        run_convert("--input_dir", root, "--model_size", "7B", "--skip_checks")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dim": "64"}, "params.json: dim is 64, a number over 0"),
        ({"n_heads": 0}, "params.json: n_heads is 0"),
        ({"n_layers": 1}, r"consolidated.00.pth: holds layers.1.\S+, which the model of params.json hasn't"),
    ],
)
def test_params_that_cannot_be_are_named(write_meta, run_convert, params, message):
    root, _ = write_meta("7B")
    file = root / "7B/params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | params))
    with pytest.raises(ValueError, match=message):
        run_convert("--input_dir", root, "--model_size", "7B", "--skip_checks")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "line 1: not a checksum and a file name"),
        (b"\xbc\x00\xff", "not a text file"),
        (b"d41d8cd98f00b204e9800998ecf8427e  ../params.json", "lies outside the folder"),
    ],
)
def test_a_list_of_md5s_that_is_none_is_named(write_meta, run_convert, content, message):
    root, _ = write_meta("7B")
    (root / "7B/checklist.chk").write_bytes(content)
    with pytest.raises(ValueError, match=f"checklist.chk.*{message}"):
        run_convert("--input_dir", root, "--model_size", "7B")
