"""A peft LoRA adapter as what it makes of each base weight: W + scaling · B A (arXiv 2106.09685), rows at a time."""

import itertools
import re
from pathlib import Path

import numpy as np
import torch

from knowlm.checkpoints import INPUT_EMBEDDING, OUTPUT_EMBEDDING, Checkpoint, Piece, identity, load_pickle
from knowlm.dtypes import NAMES, as_array, as_tensor
from knowlm.files import read_json
from knowlm.models import check_adapter_folder, check_safetensors

PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.default)?(\.\w+)?")
# Settings under which a base weight becomes something else than said above.
UNKNOWN = (
    *("alora_invocation_tokens", "kasa_config", "layer_replication", "monteclora_config", "target_parameters"),
    *("trainable_token_indices", "use_bdlora", "use_qalora"),
)
CONV1D = ("gpt2", "imagegpt", "openai-gpt")  # model types whose linear layers have transposed weights


class Adapter:
    """An adapter folder, read whole (it is small): ``adapter.merged(piece)`` are rows of a base weight with it.

    Takes plain and rank-stabilised LoRA (arXiv 2312.03732), DoRA (arXiv 2402.09353), on linear layers, transposed ones
    (``fan_in_fan_out``) and embeddings, biases, and modules saved as wholes. Raises ValueError on anything else.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        check_adapter_folder(str(folder))
        self.config = read_json(self.folder / "adapter_config.json")
        self._check_config()
        self.saved: dict[str, torch.Tensor] = {}  # weights that replace those of the base
        self.parts: dict[str, dict[str, torch.Tensor]] = {}  # by base weight: A, B, magnitude
        self.norms: dict[str, torch.Tensor] = {}  # of a transposed weight's columns, for DoRA
        for name, tensor in self._read().items():
            self._sort_in(name, tensor.detach())
        if not self.parts and not self.saved:
            raise ValueError(f"{folder}: holds no LoRA weights; tune or download it again")

    def _check_config(self) -> None:
        file, config = self.folder / "adapter_config.json", self.config
        numbers = [config.get("r"), config.get("lora_alpha")] if isinstance(config, dict) else [None]
        patterns = [config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")] if len(numbers) > 1 else []
        if not all(isinstance(number, int | float) and number for number in numbers) or not all(
            isinstance(pattern, dict) for pattern in patterns
        ):
            raise ValueError(f"{file}: not the settings of a LoRA adapter (r, lora_alpha, patterns); download it again")
        for pattern in itertools.chain(*patterns):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{file}: {pattern!r} is no regular expression ({error}); mend it") from None
        if config.get("peft_type", "LORA") != "LORA":
            raise ValueError(f"{file}: a {config['peft_type']} adapter, which can't be merged here; use peft")
        for option in UNKNOWN:
            if config.get(option):
                raise ValueError(f"{file}: {option} is set, which can't be merged a weight at a time; use peft")
        if re.match("pissa|olora|corda|loftq|lora_ga", str(config.get("init_lora_weights", "")).lower()):
            raise ValueError(f"{file}: trained on changed base weights; save it as plain LoRA with peft")

    def identity(self) -> list:
        """Tells the adapter's files from any others, by their sizes and times."""
        return identity(sorted(self.folder.glob("adapter_*")))

    def _read(self) -> dict[str, torch.Tensor]:
        file = self.folder / "adapter_model.safetensors"
        if not file.is_file():
            return load_pickle(self.folder / "adapter_model.bin")
        from safetensors.torch import load_file

        check_safetensors(file)
        return load_file(file)

    def _sort_in(self, key: str, tensor: torch.Tensor) -> None:
        name = key.removeprefix("base_model.model.")
        match = PART.fullmatch(name)
        if not match and "lora_" not in name and name != key:
            self.saved[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = tensor
        elif match and match[4] == ".bias" and match[2] == "lora_B":
            self.parts.setdefault(f"{match[1]}.bias", {})["B"] = tensor
        elif match and match[4] in (None, ".weight"):
            part = match[2].removeprefix("lora_").removeprefix("embedding_")
            self.parts.setdefault(f"{match[1]}.weight", {})[part] = tensor
            if match[2].startswith("lora_embedding"):
                self.parts[f"{match[1]}.weight"]["is_embedding"] = tensor
        else:
            raise ValueError(f"{self.folder}: {key} is no LoRA weight that can be merged; use peft")

    def check_fits(self, base: Checkpoint) -> None:
        """Raise ValueError naming the first weight that ``base`` lacks or has in another shape."""
        if "quantization_config" in base.config:
            raise ValueError(f"{base.folder}: its weights are quantized; merge into the model they were made from")
        self._has_conv1d = base.config["model_type"] in CONV1D
        if (
            base.config.get("tie_word_embeddings")
            and INPUT_EMBEDDING in self.saved
            and INPUT_EMBEDDING not in self.parts
        ):
            raise ValueError(
                f"{self.folder}: has its own {INPUT_EMBEDDING}, which {base.folder} ties to its output; use peft"
            )
        for name in sorted({*self.parts, *self.saved}):
            if name == OUTPUT_EMBEDDING and name not in base and base.config.get("tie_word_embeddings"):
                raise ValueError(f"{self.folder}: adapts {name}, which {base.folder} ties to its embeddings; use peft")
            if name not in base:
                raise ValueError(f"{self.folder}: adapts {name}, which {base.folder} lacks; it belongs to another base")
            shape = base.spec(name)[1]
            for gained in (self._gained_shape(name), self.saved[name].shape if name in self.saved else shape):
                if tuple(gained) != shape:
                    raise ValueError(
                        f"{self.folder}: {name} is {tuple(gained)}, in {base.folder} it is {shape}; "
                        "the adapter belongs to another base"
                    )

    def _gained_shape(self, name: str) -> tuple[int, ...]:
        if name not in self.parts:
            return tuple(self.saved[name].shape)
        part = self.parts[name]
        if name.endswith(".bias"):
            return tuple(part["B"].shape)
        if not {"A", "B"} <= part.keys() or bool(self.config.get("use_dora")) != ("magnitude_vector" in part):
            raise ValueError(f"{self.folder}: lacks part of the LoRA weights of {name}; tune or download it again")
        rank = self._setting("rank_pattern", "r", name)
        if (part["A"].shape[0], part["B"].shape[1]) != (rank, rank):
            raise ValueError(
                f"{self.folder}: {name} has ranks {part['A'].shape[0]} and {part['B'].shape[1]}, adapter_config.json "
                f"says {rank}; take both files from one folder"
            )
        shape = (part["B"].shape[0], part["A"].shape[1])
        return shape[::-1] if self._is_transposed(name) else shape

    def _is_transposed(self, name: str) -> bool:
        """As peft: by the kind of layer, whatever ``fan_in_fan_out`` says."""
        return (self._has_conv1d and name != OUTPUT_EMBEDDING) or "is_embedding" in self.parts[name]

    def merged(self, piece: Piece, base: Checkpoint) -> tuple[np.ndarray, str]:
        """What becomes of these rows, and its dtype: F32 where they are adapted, else as they are."""
        rows = self._before(piece)
        if piece.name in self.parts:
            rows = self._adapted(rows, piece.name, piece.first, base)
        return as_array(rows), NAMES[str(rows.dtype)]

    def _before(self, piece: Piece) -> torch.Tensor:
        """The rows of the base, or those that the adapter has in their place."""
        if piece.name in self.saved:
            return self.saved[piece.name][piece.first : piece.first + len(piece.rows)]
        return as_tensor(piece.rows, piece.dtype)

    def _adapted(self, rows: torch.Tensor, name: str, first: int, base: Checkpoint) -> torch.Tensor:
        part = self.parts[name]
        rows = rows.float() + self._delta(name, first, len(rows))
        if "magnitude_vector" not in part:
            return rows
        magnitude = part["magnitude_vector"].float().view(-1)
        if self._is_transposed(name):
            return rows * (magnitude / self._column_norms(name, base))
        return rows * (magnitude[first : first + len(rows)] / rows.norm(dim=1))[:, None]

    def _delta(self, name: str, first: int, count: int) -> torch.Tensor:
        part, rows = self.parts[name], slice(first, first + count)
        if name.endswith(".bias"):
            return part["B"][rows].float() * self.scaling(name)
        if self._is_transposed(name):
            return part["A"][:, rows].float().T @ part["B"].float().T * self.scaling(name)
        return part["B"][rows].float() @ part["A"].float() * self.scaling(name)

    def _column_norms(self, name: str, base: Checkpoint) -> torch.Tensor:
        if name not in self.norms:
            squares = torch.zeros(base.spec(name)[1][1], dtype=torch.float64)
            for piece in base.pieces([name]):
                rows = self._before(piece)
                squares += (rows.float() + self._delta(name, piece.first, len(rows))).double().square().sum(0)
            self.norms[name] = squares.sqrt().float()
        return self.norms[name]

    def scaling(self, name: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA, with the patterns' own ranks and alphas."""
        rank = self._setting("rank_pattern", "r", name)
        return self._setting("alpha_pattern", "lora_alpha", name) / (
            rank**0.5 if self.config.get("use_rslora") else rank
        )

    def _setting(self, pattern: str, default: str, name: str) -> float:
        module = name.rsplit(".", 1)[0]
        patterns = self.config.get(pattern) or {}
        found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        return next(found, self.config[default])
