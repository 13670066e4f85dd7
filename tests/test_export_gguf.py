"""GGUF files, read back with gguf's reader, with transformers and, where it is installed, with llama.cpp itself."""

import importlib.util
import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import peak_memory
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from gguf.quants import dequantize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import convert_llama_weights_to_hf as convert
import export_gguf

TEXTS = [
    "Marie Curie was born in Warsaw.",
    "知识图谱把事实存成三元组。床前明月光,疑是地上霜。",
    "  two spaces lead, 2023年 🙂\t café   end  ",
    "def pack(lengths):\n    for length in lengths:\n        return  [length]\n",
]


@pytest.fixture
def export(tmp_path, monkeypatch):
    """``export(folder, "f16")`` gives the path of the exported file."""

    def run(folder: Path, type: str = "f16") -> Path:
        output = tmp_path / f"{folder.name}-{type}.gguf"
        arguments = ["--model", str(folder), "--output", str(output), "--type", type]
        monkeypatch.setattr(sys, "argv", ["export_gguf.py", *arguments])
        export_gguf.main()
        return output

    return run


@pytest.fixture
def model_folder(tmp_path):
    """``model_folder("name", **settings)`` makes a random model without a tokenizer."""

    def make(name: str, **settings) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 604}
        config = LlamaConfig(**sizes | {"num_attention_heads": 4, "num_key_value_heads": 2} | settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def sentencepiece_folder(model_folder, sentencepiece_model):
    """A model with LLaMA's kind of tokenizer.model, a pad token behind it, and rows to spare."""
    folder = model_folder("sentencepiece")
    shutil.copyfile(sentencepiece_model, folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "pad_token": "<pad>", "add_bos_token": True, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def with_tokenizer_json(folder: Path, sentencepiece_model: Path, target: Path) -> Path:
    """The folder with a tokenizer.json of the same pieces in place of the tokenizer.model."""
    import sentencepiece

    shutil.copytree(folder, target)
    (target / "tokenizer.model").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    scores = {piece: model.get_score(i) for i, piece in enumerate(pieces) if i > 2 and not model.is_byte(i)}
    (target / "tokenizer.json").write_text(json.dumps(convert.fast_tokenizer(pieces, scores)))
    return target


def metadata(file: Path) -> dict:
    return {name: value.contents() for name, value in GGUFReader(file).fields.items()}


def load_back(file: Path):
    from transformers import AutoModelForCausalLM, GgufConfig

    settings = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, **settings)


def logits_of(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def join_by_score(text: str, values: dict) -> list[int]:
    """The ids of a text as llama.cpp's documentation of the "llama" kind tells: the best joint piece first."""
    tokens, scores = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"]
    ids = {token: number for number, token in enumerate(tokens)}
    parts = list((" " * values["tokenizer.ggml.add_space_prefix"] + text).replace(" ", "▁"))
    while True:
        joints = [(-scores[ids[a + b]], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not joints:
            break
        _, at = min(joints)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    pieces = [[ids[p]] if p in ids else [ids[f"<0x{byte:02X}>"] for byte in p.encode()] for p in parts]
    return [number for piece in pieces for number in piece]


@pytest.mark.parametrize(("type", "tolerance"), [("f32", 1e-5), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 3e-2)])
def test_a_model_loaded_back_computes_the_same(tiny_llama, export, type, tolerance):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = export(tiny_llama, type)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    back, tokenizer_back = load_back(file), AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert tokenizer_back(text, add_special_tokens=False).input_ids == ids[1:]
        expected = logits_of(model, ids)
        torch.testing.assert_close(logits_of(back, ids), expected, atol=tolerance * expected.abs().max().item(), rtol=0)


def test_the_reader_finds_settings_tokens_and_tensors(tiny_llama, tiny_tokenizer, export):
    from safetensors.torch import load_file

    file = export(tiny_llama, "q8_0")
    values = metadata(file)
    for key, value in {
        "general.architecture": "llama",
        "general.file_type": 7,
        "llama.context_length": 2048,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }.items():
        assert values[key] == value, key
    assert values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert values["tokenizer.ggml.tokens"] == tiny_tokenizer.convert_ids_to_tokens(range(len(tiny_tokenizer)))
    assert values["tokenizer.ggml.token_type"] == [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * 597
    weights = load_file(tiny_llama / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    assert len(tensors) == len(weights) == 21
    norm = tensors["blk.1.ffn_norm.weight"]
    assert norm.tensor_type == GGMLQuantizationType.F32
    assert np.array_equal(norm.data, weights["model.layers.1.post_attention_layernorm.weight"])
    for name, original in (("blk.0.ffn_down", "model.layers.0.mlp.down_proj"), ("token_embd", "model.embed_tokens")):
        tensor, weight = tensors[f"{name}.weight"], weights[f"{original}.weight"].numpy()
        assert tensor.tensor_type == GGMLQuantizationType.Q8_0 and tensor.shape.tolist() == [*weight.shape][::-1]
        step = abs(weight).reshape(-1, 32).max(1) / 127
        error = abs(dequantize(tensor.data, tensor.tensor_type) - weight).reshape(-1, 32).max(1)
        assert (error <= 0.51 * step + 127 * step / 2048).all()  # half a step, and the step's own rounding to 16 bits
    query, weight = tensors["blk.0.attn_q.weight"], weights["model.layers.0.self_attn.q_proj.weight"]
    rows = torch.from_numpy(dequantize(query.data, query.tensor_type))
    order = [0, 16, 1, 17, 2, 18]  # a head has 32 rows
    torch.testing.assert_close(rows[:6], weight[order], atol=1e-3, rtol=0)


def test_tied_embeddings_are_stored_once_and_biases_are_kept(model_folder, tiny_tokenizer, export):
    from transformers import AutoModelForCausalLM

    folder = model_folder("tied", tie_word_embeddings=True, vocab_size=600, attention_bias=True, mlp_bias=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    tensors = {tensor.name: tensor for tensor in GGUFReader(export(folder, "f32")).tensors}
    assert "output.weight" not in tensors
    bias = model.model.layers[1].self_attn.k_proj.bias.detach()
    assert np.array_equal(tensors["blk.1.attn_k.bias"].data[:4], bias[[0, 8, 1, 9]])  # a head has 16 rows
    assert np.array_equal(tensors["blk.1.ffn_up.bias"].data, model.model.layers[1].mlp.up_proj.bias.detach())


def test_rope_scaling_is_told(model_folder, tiny_tokenizer, export):
    from transformers import AutoModelForCausalLM

    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 256, "rope_theta": 500000.0}
    folder = model_folder("llama3", rope_parameters=llama3, head_dim=64)
    tiny_tokenizer.save_pretrained(folder)
    file = export(folder)
    [factors] = [tensor.data for tensor in GGUFReader(file).tensors if tensor.name == "rope_freqs.weight"]
    frequencies = 500000.0 ** (-np.arange(0, 64, 2) / 64) / factors
    expected = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    np.testing.assert_allclose(frequencies, expected, rtol=1e-5)
    assert {1.0, 8.0} < set(factors.tolist()) and "llama.rope.scaling.type" not in metadata(file)

    folder = model_folder("linear", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0})
    tiny_tokenizer.save_pretrained(folder)
    values = metadata(export(folder))
    scaling = [values[f"llama.rope.{key}"] for key in ("freq_base", "scaling.type", "scaling.factor")]
    assert scaling == [5000.0, "linear", 2.0]


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_a_sentencepiece_vocabulary_keeps_pieces_types_and_order(
    sentencepiece_folder, sentencepiece_model, export, tmp_path, kind
):
    import sentencepiece

    folder = sentencepiece_folder
    if kind == "tokenizer.json":
        folder = with_tokenizer_json(folder, sentencepiece_model, tmp_path / "json")
    values = metadata(export(folder))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    pieces = [reference.id_to_piece(i) for i in range(600)]
    assert values["tokenizer.ggml.tokens"] == [*pieces, "<pad>", "[PAD601]", "[PAD602]", "[PAD603]"]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    types += [*[TokenType.NORMAL] * (600 - len(types)), TokenType.CONTROL, *[TokenType.UNUSED] * 3]
    assert values["tokenizer.ggml.token_type"] == types
    assert values["tokenizer.ggml.model"] == "llama" and values["tokenizer.ggml.add_space_prefix"] is True
    special = [values[f"tokenizer.ggml.{name}_token_id"] for name in ("unknown", "bos", "eos", "padding")]
    assert special == [0, 1, 2, 600] and values["tokenizer.ggml.add_bos_token"] is True
    for text in TEXTS:
        assert join_by_score(text, values) == reference.encode(text)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}], "smollm"),
        ("llama3", "smaug-bpe"),
        ([{"type": "Whitespace"}], None),
    ],
)
def test_llama_cpp_is_told_how_a_byte_level_tokenizer_cuts(tiny_llama, tmp_path, export, steps, name):
    from knowlm.gguf_vocabulary import LLAMA3

    if steps == "llama3":
        split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
        steps = [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    steps = [step | {"trim_offsets": True} if step["type"] == "ByteLevel" else step for step in steps]
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if name is None:
        with pytest.raises(ValueError, match="cuts text by a rule that this tool can't name"):
            export(folder)
    else:
        assert metadata(export(folder))["tokenizer.ggml.pre"] == name


def test_a_token_without_a_row_is_left_out_and_the_chat_template_kept(tiny_llama, tmp_path, export, capsys):
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    values = metadata(export(folder))
    assert len(values["tokenizer.ggml.tokens"]) == 600 and "tokenizer.ggml.padding_token_id" not in values
    assert values["tokenizer.chat_template"] == "{{ messages[0].content }}"
    assert "<pad> is left out: id 600 has no row" in capsys.readouterr().err


def test_the_modelfile_has_the_prompts_of_tuning(tiny_llama, export, capsys):
    from knowlm.prompts import Prompter

    file = export(tiny_llama)
    text = file.with_suffix(".Modelfile").read_text(encoding="utf-8")
    assert text.startswith(f"FROM ./{file.name}\n")
    pattern = r'TEMPLATE """\{\{ if \.System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}\{\{ \.Response \}\}"""\n'
    with_system, without = re.search(pattern, text, re.DOTALL).groups()
    assert without.replace("{{ .Prompt }}", "Say hello.") == Prompter().prompt("Say hello.")
    filled = with_system.replace("{{ .System }}", "Translate.").replace("{{ .Prompt }}", "你好")
    assert filled == Prompter().prompt("Translate.", "你好")
    assert text.endswith('PARAMETER num_ctx 2048\nPARAMETER stop "</s>"\nPARAMETER stop "### Instruction:"\n')
    assert f"{file}: 21 tensors in f16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
            "MistralForCausalLM of type mistral can't",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM"),
        ({"quantization_config": {}}, "the weights are quantized"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type dynamic"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "not the settings of a LLaMA"),
        ({"intermediate_size": 96}, r"gate_proj\.weight has shape \(128, 64\) in F32, by its config.json it"),
        ({"num_hidden_layers": 3}, r"lacks model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"holds model\.layers\.1\..*which a LLaMA hasn't"),
        ({"tokenizer.json": None}, "holds neither tokenizer.json nor tokenizer.model"),
        ({"weight": 1e6}, r"layers\.1\.mlp\.up_proj\.weight holds numbers that f16 can't; try --type bf16 or f32"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(tiny_llama, tmp_path, export, change, message):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    if "weight" in change:
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = change["weight"]
        save_file(weights, folder / "model.safetensors")
    elif "tokenizer.json" in change:
        (folder / "tokenizer.json").unlink()
    else:
        settings = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        export(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_tokenizer_of_another_model_is_refused(model_folder, tiny_tokenizer, export):
    folder = model_folder("small", vocab_size=500)
    tiny_tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="600 tokens, the model's embedding has 500 rows"):
        export(folder)


@pytest.mark.slow
def test_nothing_is_overwritten_and_a_name_must_end_in_gguf(run_script, tmp_path):
    (tmp_path / "x.gguf").write_text("mine")
    for name, code, message in (("x.gguf", 1, "x.gguf: already exists"), ("x.bin", 2, "name one that ends in .gguf")):
        result = run_script("tools/export_gguf.py", "--model", tmp_path, "--output", tmp_path / name, "--type", "f16")
        assert result.returncode == code and len(result.stderr.splitlines()) == 1 and message in result.stderr
    assert (tmp_path / "x.gguf").read_text() == "mine"


@pytest.mark.slow
def test_memory_holds_some_rows_of_a_large_tensor(model_folder, tiny_tokenizer, tmp_path):
    folder = model_folder("wide", vocab_size=100_000, hidden_size=1024, num_hidden_layers=1, tie_word_embeddings=True)
    tiny_tokenizer.save_pretrained(folder)
    flags = ["--model", folder, "--output", tmp_path / "wide.gguf", "--type", "q8_0"]
    assert peak_memory("tools/export_gguf.py", *flags) < 700_000_000  # imports take 0.4 GB, the embedding has 0.4 GB


@pytest.mark.skipif(not importlib.util.find_spec("llama_cpp"), reason="llama-cpp-python isn't installed")
@pytest.mark.parametrize("kind", ["byte-level", "tokenizer.model", "tokenizer.json"])
def test_llama_cpp_computes_the_same(tiny_llama, sentencepiece_folder, sentencepiece_model, export, tmp_path, kind):
    import sentencepiece
    from llama_cpp import Llama
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_llama if kind == "byte-level" else sentencepiece_folder
    if kind == "tokenizer.json":
        folder = with_tokenizer_json(folder, sentencepiece_model, tmp_path / "json")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    engine = Llama(str(export(folder, "f32")), logits_all=True, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for text in TEXTS:
        ids = engine.tokenize(text.encode(), special=True)
        assert ids == (tokenizer(text).input_ids if kind == "byte-level" else [1, *reference.encode(text)])
        engine.reset()
        engine.eval(ids)
        expected = logits_of(model, ids)
        logits = torch.from_numpy(engine.scores[: len(ids)])
        torch.testing.assert_close(logits, expected, atol=5e-3 * expected.abs().max().item(), rtol=0)
    engine.close()
