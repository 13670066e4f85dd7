"""A peft LoRA adapter as what it adds to each weight: W + scaling · B A (arXiv 2106.09685)."""

import re
from pathlib import Path

import torch

from knowlm.checkpoints import Checkpoint, load_pickle
from knowlm.files import read_json
from knowlm.models import check_adapter_folder, check_safetensors


class Adapter:
    """An adapter folder, read whole (it is small): ``adapter.delta(name)`` is what a base weight gains.

    Raises ValueError on an adapter that holds more than plain LoRA (DoRA, fully saved modules, biases).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        check_adapter_folder(str(folder))
        self.config = read_json(self.folder / "adapter_config.json")
        for option in ("use_dora", "modules_to_save"):
            if self.config.get(option):
                raise ValueError(f"{folder}: {option} is set; only plain LoRA can be merged")
        file = self.folder / "adapter_model.safetensors"
        if file.is_file():
            from safetensors.torch import load_file

            check_safetensors(file)
            tensors = load_file(file)
        else:
            tensors = load_pickle(self.folder / "adapter_model.bin")
        self.pairs: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", name)
            if not match:
                raise ValueError(f"{folder}: {name} is no plain LoRA weight; only those can be merged")
            self.pairs.setdefault(match[1] + ".weight", {})[match[2]] = tensor
        if not self.pairs or any(len(pair) != 2 for pair in self.pairs.values()):
            raise ValueError(f"{folder}: holds no whole pairs of LoRA weights; tune or download it again")

    def check_fits(self, base: Checkpoint) -> None:
        """Raise ValueError naming the first adapted weight that ``base`` lacks or has in another shape."""
        for name, pair in sorted(self.pairs.items()):
            if name not in base:
                raise ValueError(f"{self.folder}: adapts {name}, which {base.folder} lacks; it belongs to another base")
            gained = (pair["B"].shape[0], pair["A"].shape[1])
            gained = gained[::-1] if self.config.get("fan_in_fan_out") else gained
            if gained != base.spec(name)[1]:
                raise ValueError(
                    f"{self.folder}: {name} is {gained}, in {base.folder} it is {base.spec(name)[1]}; "
                    "the adapter belongs to another base"
                )

    def delta(self, name: str) -> torch.Tensor | None:
        """What ``name`` gains, (out, in) in fp32; None for a weight that the adapter leaves alone."""
        pair = self.pairs.get(name)
        if pair is None:
            return None
        delta = pair["B"].float() @ pair["A"].float() * self.scaling(name.removesuffix(".weight"))
        return delta.T if self.config.get("fan_in_fan_out") else delta

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA, with the patterns' own ranks and alphas."""

        def of(pattern: dict, default: float) -> float:
            return next((value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)

        rank = of(self.config.get("rank_pattern") or {}, self.config["r"])
        alpha = of(self.config.get("alpha_pattern") or {}, self.config["lora_alpha"])
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
