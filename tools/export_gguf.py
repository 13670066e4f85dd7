"""Export a LLaMA-like model to one GGUF file for llama.cpp, with a Modelfile for Ollama.

    python tools/export_gguf.py --model ./zhixi-sft --output ./zhixi-sft/zhixi.gguf --type q8_0
    ollama create zhixi -f ./zhixi-sft/zhixi.Modelfile

--model is a Hugging Face folder. Its tokenizer and chat template go into the file; the Modelfile has the Alpaca prompt
that this toolkit tunes with. Weights are written some rows at a time, memory stays under 1 GB at any model size; norms
stay in 32 bits.
"""

import json
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.files import locked, replacing, require_new, require_space, write_text
from knowlm.manifest import require_model

TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}  # llama.cpp's file types
MOST_CONTEXT = 8192  # of the Modelfile: Ollama sets memory aside for all of it


def main() -> None:
    args = parse_args()
    output = Path(args.output)
    modelfile = output.with_suffix(".Modelfile")
    require_new(output)
    require_model(args.model)

    from knowlm.checkpoints import Checkpoint
    from knowlm.gguf_vocabulary import read_vocabulary

    with Checkpoint(args.model) as checkpoint:
        config = read_config(checkpoint)
        plan = plan_tensors(checkpoint, config, args.type)
        vocabulary = read_vocabulary(args.model, config.vocab_size)
        size = sum(num_bytes for *_, num_bytes in plan.values())
        require_space(output, size)
        with locked(output), replacing(output) as partial:
            write_gguf(partial, args.type, checkpoint, config, vocabulary, plan)
            write_text(modelfile, modelfile_for(output, config, vocabulary.eos_token))
    print(f"{output}: {len(plan)} tensors in {args.type}, {size / 1e9:.2f} GB; for Ollama {modelfile}")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--output", required=True, help="file to write, NAME.gguf; NAME.Modelfile comes beside it")
    parser.add_argument("--type", required=True, choices=TYPES, help="how weights are stored; q8_0: 8.5 bits each")
    args = parser.parse_args()
    if not args.output.endswith(".gguf"):
        refuse(f"--output {args.output}: is no name of a GGUF file; name one that ends in .gguf")
    if Path(args.output).is_dir():
        refuse(f"--output {args.output}: is a folder; name a file")
    return args


def read_config(checkpoint):
    """The model's LlamaConfig; ValueError if the model isn't one that is computed as LLaMA is."""
    from transformers import LlamaConfig

    file, raw = checkpoint.folder / "config.json", checkpoint.config
    architecture = (raw.get("architectures") or ["LlamaForCausalLM"])[0]
    if raw["model_type"] != "llama" or architecture.lower() != "llamaforcausallm":  # LLaMAForCausalLM in early 2023
        fact = f"{architecture} of type {raw['model_type']}"
        raise ValueError(f"{file}: {fact} can't be exported, only LlamaForCausalLM; use llama.cpp's own converter")
    if "quantization_config" in raw:
        raise ValueError(f"{file}: the weights are quantized; export the model that they were made from")
    try:
        config = LlamaConfig.from_dict(raw)
    except Exception as error:  # the library has many
        raise ValueError(f"{file}: not the settings of a LLaMA ({error}); download it again") from None
    rope = config.rope_parameters["rope_type"]
    if rope not in ("default", "linear", "llama3") or config.hidden_act != "silu":
        fact = f"rope_type {rope}, hidden_act {config.hidden_act}"
        raise ValueError(
            f"{file}: {fact}; only rope_type default, linear or llama3 and hidden_act silu can be exported"
        )
    return config


def plan_tensors(checkpoint, config, type: str) -> dict:
    """Of every tensor in the file's order: GGUF name, shape, GGML type, bytes, by its Hugging Face name.

    Raises ValueError unless the checkpoint's tensors are those of ``config``.
    """
    import torch
    from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
    from transformers import LlamaForCausalLM

    from knowlm.dtypes import FLOATS

    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    plan = {}
    for name, shape in expected.items():
        if name not in checkpoint:
            raise ValueError(f"{checkpoint.folder}: lacks {name}, which its config.json asks for; download it again")
        dtype, found = checkpoint.spec(name)
        if found != shape or dtype not in FLOATS:
            fact = f"{name} has shape {found} in {dtype}, by its config.json it is {shape} in floating point"
            raise ValueError(f"{checkpoint.folder}: {fact}; download it again (recover a difference first)")
        stored = GGMLQuantizationType["F32" if len(shape) == 1 else type.upper()]
        if shape[-1] % GGML_QUANT_SIZES[stored][0]:
            stored = GGMLQuantizationType.F16  # as llama.cpp does where rows aren't whole blocks of 32
        numbers, num_bytes = GGML_QUANT_SIZES[stored]
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        plan[name] = (gguf_name, shape, stored, math.prod(shape) // numbers * num_bytes)
    if unknown := [name for name in checkpoint if name not in expected and name != "lm_head.weight"]:
        raise ValueError(f"{checkpoint.folder}: holds {unknown[0]}, which a LLaMA hasn't; this model can't be exported")
    return plan


def write_gguf(path: Path, type: str, checkpoint, config, vocabulary, plan: dict) -> None:
    import numpy as np
    from gguf import GGUFWriter
    from tqdm import tqdm

    writer = GGUFWriter(path, "llama")
    add_settings(writer, checkpoint.folder.resolve().name, type, config)
    vocabulary.add_to(writer)
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for gguf_name, shape, stored, num_bytes in plan.values():
        writer.add_tensor_info(gguf_name, shape, np.dtype(np.float32), num_bytes, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    [file] = writer.fout  # past the writer's own write_tensor_data, which takes whole tensors
    total = sum(num_bytes for *_, num_bytes in plan.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=str(path.with_suffix("")), disable=None) as bar:
        if factors is not None:
            writer.write_padding(file, file.tell())
            file.write(factors.data)
        for name, (_, _, stored, _) in plan.items():
            writer.write_padding(file, file.tell())
            for rows in rows_of(checkpoint, name, config):
                content = encode(rows, stored)
                if content is None:
                    fact = f"{name} holds numbers that {stored.name.lower()} can't"
                    raise ValueError(f"{checkpoint.folder}: {fact}; try --type bf16 or f32")
                file.write(content.data)
                bar.update(content.nbytes)
        writer.write_padding(file, file.tell())
    writer.close()


def add_settings(writer, name: str, type: str, config) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType, RopeScalingType

    rope = config.rope_parameters
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[TYPES[type]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def rope_factors(config):
    """By what LLaMA 3.1 divides each rotary frequency, (head_dim / 2,); None for other kinds.

    1 where a wave turns often within the context of pretraining, ``factor`` where seldom, and between them in between
    (arXiv 2407.21783 and its code).
    """
    import numpy as np

    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    frequencies = rope["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32)


def rows_of(checkpoint, name: str, config):
    """The rows of a tensor in GGUF's order, some at a time.

    Rotary: llama.cpp turns neighbouring rows of a query's or key's head together, Hugging Face rows half a head apart.
    """
    from knowlm.dtypes import as_tensor

    turned = {"q_proj", "k_proj"} & set(name.split("."))
    for piece in checkpoint.pieces([name], config.head_dim if turned else 1):
        halves = (-1, 2, config.head_dim // 2)
        rows = as_tensor(piece.rows, piece.dtype)
        yield rows.unflatten(0, halves).transpose(1, 2).flatten(0, 2) if turned else rows


def encode(rows, stored):
    """The bytes of ``rows`` in a GGML type as an array; None if they aren't finite there."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if stored == GGMLQuantizationType.Q8_0:
        return quantize(rows.float().numpy(), stored) if rows.isfinite().all() else None
    rows = rows.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[stored.name])
    return rows.contiguous().view(torch.uint8).numpy() if rows.isfinite().all() else None


def modelfile_for(output: Path, config, eos_token: str) -> str:
    """Ollama's Modelfile, with the prompt of tuning: a system message is its instruction, the user's text its input."""
    from knowlm.prompts import Prompter

    with_input = Prompter().prompt("{{ .System }}", "{{ .Prompt }}")
    without = Prompter().prompt("{{ .Prompt }}")
    stops = [eos_token, *re.findall("^###.*", without, re.MULTILINE)[:1]]  # where a next instruction would begin
    return "\n".join(
        [
            f"FROM ./{output.name}",
            f'TEMPLATE """{{{{ if .System }}}}{with_input}{{{{ else }}}}{without}{{{{ end }}}}{{{{ .Response }}}}"""',
            f"PARAMETER num_ctx {min(config.max_position_embeddings, MOST_CONTEXT)}",
            *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
            "",
        ]
    )


if __name__ == "__main__":
    run(main)
