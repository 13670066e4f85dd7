"""Load tokenizers and models: device, dtype, 8-bit, 4-bit, LoRA."""

import os
import re
from pathlib import Path

from knowlm.files import inner_name, read_json
from knowlm.manifest import check_files, require_model


def check_model_folder(path: str) -> None:
    """Raise ValueError, without loading anything, if ``path`` is no model folder and no name on the hub.

    Looks at what usually breaks: no config, no weights, an index that names a missing shard, a cut file, files that the
    folder's manifest names and that aren't there; and at a difference of two models, which is none.
    """
    check_weight_folder(path)
    require_model(path)


def check_weight_folder(path: str) -> None:
    """As ``check_model_folder``, for a folder that may hold a difference too."""
    folder = Path(path)
    if folder.is_file():
        raise ValueError(f"{path}: is a file; name the model's folder")
    if not folder.is_dir():
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
            return  # a hub name; the hub says whether it exists
        raise ValueError(
            f"{path}: no such model folder; name one, or get the default model with "
            "tools/download.py --default_model --download_path PATH"
        )
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder}: is a LoRA adapter, not a model; name its base here and the adapter with --lora_weights, "
            "or merge them with tools/weight_diff.py merge"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: no config.json, so not a Hugging Face model folder; convert or download the model first"
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{folder / 'config.json'}: names no model_type; download it again")
    for file in find_weights(folder)[0]:
        if file.suffix == ".safetensors":
            check_safetensors(file)
    check_files(folder)


def check_tokenizer_folder(path: str) -> None:
    """Raise ValueError if a model's folder holds no tokenizer."""
    folder = Path(path)
    if folder.is_dir() and not any(any(folder.glob(name)) for name in ("tokenizer.*", "*vocab*", "*.model", "tekken*")):
        raise ValueError(
            f"{folder}: holds no tokenizer (tokenizer.json or tokenizer.model); copy it from its base model"
        )


def find_weights(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """A model's weight files, and which of them an index says holds each tensor; found in transformers' order.

    Raises ValueError naming what is missing: a shard, or all weights.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name], {}
        if (folder / f"{name}.index.json").is_file():
            return read_index(folder / f"{name}.index.json")
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_"))
    files = [file for file in files or sorted(folder.glob("pytorch_model*.bin")) if file.is_file()]
    if not files:
        raise ValueError(f"{folder}: holds no weights (*.safetensors or pytorch_model*.bin); download it again")
    for file in files:
        if match := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\.\w+)", file.name):
            for number in range(1, int(match[2]) + 1):
                shard = folder / f"{match[1]}-{number:05d}-of-{match[2]}{match[3]}"
                if shard not in files:
                    fact = f"{file.name} is one of {int(match[2])}"
                    raise ValueError(f"{shard}: missing, though {fact}; download it again")
    return files, {}


def read_index(index: Path) -> tuple[list[Path], dict[str, str]]:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index}: not an index of a model's shards; download it again")
    files = [index.parent / inner_name(file, str(index)) for file in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: missing, though {index.name} names it; download it again")
    return files, places


def check_safetensors(file: Path) -> None:
    """Raise ValueError if a safetensors file is cut short or is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged ({error}); download or make it again") from None


def load_tokenizer(path: str):
    """The model's tokenizer with a pad token, padding on the left as generation needs."""
    check_tokenizer_folder(path)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    except Exception as error:  # of many kinds: a file is cut, or is something else
        if not Path(path).is_dir():
            raise
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path}: its tokenizer does not load ({said}); download its files again") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products; with them training takes a third of the time."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(errors="replace").split() if cpuinfo.is_file() else []
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def gpu_multiplies_bf16() -> bool:
    """Whether the GPU has instructions for bfloat16 (Ampere and later); fp16, which they all have, overflows."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def load_base(
    path: str, *, load_8bit: bool = False, load_4bit: bool = False, training: bool = False, frozen: bool = False
):
    """A causal language model on the process's GPU if there is one, else on the CPU.

    16-bit on a GPU and 32-bit on a CPU to generate; 32-bit to train (the Trainer casts), but 16-bit on a GPU where the
    weights are ``frozen`` and only an adapter learns. int8 with ``load_8bit``, nf4 (QLoRA, arXiv 2305.14314) with
    ``load_4bit``.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    gpu = torch.cuda.is_available()
    half = torch.bfloat16 if training and gpu_multiplies_bf16() else torch.float16
    settings: dict = {"dtype": half if gpu and (frozen or not training) else torch.float32}
    if load_8bit:
        settings["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    if load_4bit:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=settings["dtype"],
        )
    if training and not gpu and cpu_multiplies_bf16():
        settings["attn_implementation"] = "eager"  # PyTorch's own is slow backwards in bf16 there
    if load_8bit or load_4bit or frozen or not training:
        settings["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0)) if gpu else "cpu"}
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **settings)
    except (RuntimeError, KeyError, ImportError) as error:
        raise ValueError(f"{path}: the model does not load: {str(error).splitlines()[0]}") from error
    if load_4bit and training and not gpu:
        for module in model.modules():
            # Else a validation packs the weights for AVX512's bf16 kernel, which has no gradient, and they stay so.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def linear_layers(path: str) -> dict[str, int]:
    """Linear layers of a model without its output layer: how many there are of each name. No weights are read."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not model.get_output_embeddings():
            kind = name.rsplit(".", 1)[-1]
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def small_model(path: str, vocabulary: int = 64):
    """A model of that kind and width, with random weights and no more layers than show all kinds that it has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    kinds = list(getattr(config, "layer_types", None) or ())
    layers = max([1, *map(kinds.index, set(kinds))]) + 1
    changes = {"vocab_size": vocabulary, "num_hidden_layers": min(layers, config.num_hidden_layers)}
    changes |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kinds:
        changes["layer_types"] = kinds[:layers]
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config).float().eval()


def check_adapter_folder(path: str) -> None:
    """Raise ValueError if ``path`` holds no LoRA adapter."""
    folder = Path(path)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{path}: no adapter_config.json, so not a LoRA folder; tune one with finetune/lora/finetune.py"
        )
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise ValueError(f"{path}: holds no adapter_model.safetensors or .bin; tune or download it again")


def load_for_generation(base_model: str, lora_weights: str | None = None, load_8bit: bool = False):
    """(model, tokenizer), ready to generate; the folders are checked before anything is loaded."""
    check_model_folder(base_model)
    if lora_weights:
        check_adapter_folder(lora_weights)
    tokenizer = load_tokenizer(base_model)
    model = load_base(base_model, load_8bit=load_8bit)
    if lora_weights:
        import torch
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, lora_weights)
        except RuntimeError as error:
            told = str(error)[:300]
            raise ValueError(
                f"{lora_weights}: doesn't fit {base_model}; name the base it was tuned on ({told})"
            ) from None
        if model.dtype == torch.float32:  # no rounding to speak of, and half the time for a token on a CPU
            model = model.merge_and_unload()
    return model.eval(), tokenizer
