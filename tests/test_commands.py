"""Every command of the README, letter for letter and in its order, on a tiny model in a folder of its own."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from hub import LocalHub
from test_convert import MULTI_HEAD, write_meta_folder

from knowlm.manifest import MANIFEST

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in README.split("```shell\n")[1:]
    for line in block.split("```")[0].splitlines()
    if not line.startswith(("./quickstart.sh", "./run_tests.sh"))  # test_quickstart.py runs the one, the other runs us
]
# What one machine without GPUs can't do as written, and what is done instead.
INSTEAD = {
    "--checksums zhixi-13b-diff": "--checksums ./diff.md5",  # the tiny difference has other checksums
    "GPUS=8": "GPUS=2",
    "NODES=3 HOSTFILE=host.txt ": "",
    "./cluster-pretrained": "./cluster-pretrained --fp16 False --max_steps 1",
    "./cluster-lora": "./cluster-lora --num_epochs 0.01 --val_set_size 16 --batch_size 16",
    "--val_set_size 100": "--val_set_size 16 --num_epochs 0.01 --batch_size 16",
    "./cluster-tuned": "./cluster-tuned --num_epochs 0.01 --val_set_size 16 --batch_size 16",
    "--report ./report": "--report ./report --max_new_tokens 4",
    "--report ./gold-report": "--report ./gold-report --max_new_tokens 4",
}
LONG_ANSWERS = (
    "examples/generate_finetune.py",
    "examples/generate_lora.py",
    "examples/extract.py",
)  # a random model never ends by itself

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with Meta's files of a tiny LLaMA and the checkout's folders; a hub with its difference and adapter.

    Gives (folder, environment, servers that still run).
    """
    folder, scratch = tmp_path_factory.mktemp("house"), tmp_path_factory.mktemp("scratch")
    write_meta_folder(folder, "13B", MULTI_HEAD | {"n_heads": 2})
    for name in ("tools", "examples", "inference", "pretrain", "finetune"):
        (folder / name).symlink_to(REPOSITORY / name)
    repos = published(folder, scratch)
    shards = {name: content for name, content in repos["zjunlp/zhixi-13b-diff"].items() if name.endswith(".bin")}
    lines = [f"{hashlib.md5(content).hexdigest()}  {name}\n" for name, content in shards.items()]
    (folder / "diff.md5").write_text("".join(lines))
    with LocalHub(repos) as hub:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(scratch / "hub")}
        servers: list[subprocess.Popen] = []
        yield folder, environment, servers
        for server in servers:
            stop(server)


def published(folder: Path, scratch: Path) -> dict[str, dict[str, bytes]]:
    """The hub's three repositories for the tiny LLaMA: differences in pickled shards, and an adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    convert = [sys.executable, REPOSITORY / "tools/convert_llama_weights_to_hf.py", "--model_size", "13B"]
    subprocess.run([*convert, "--input_dir", folder, "--output_dir", scratch / "base"], check=True)
    model = AutoModelForCausalLM.from_pretrained(scratch / "base")
    settings = {
        file.name: file.read_bytes()
        for file in (scratch / "base").iterdir()
        if file.suffix in (".json", ".model") and file.name != MANIFEST  # those of 2023 have none
    }
    repos = {}
    for name, dtype, count in (("zhixi-13b-diff", torch.float32, 6), ("zhixi-13b-diff-fp16", torch.float16, 3)):
        difference = {
            key: (0.01 * torch.randn_like(value.float())).to(dtype) for key, value in model.state_dict().items()
        }
        repos[f"zjunlp/{name}"] = settings | {
            f"pytorch_model-{shard + 1:05d}-of-{count:05d}.bin": pickled(dict(list(difference.items())[shard::count]))
            for shard in range(count)
        }
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(scratch / "lora", safe_serialization=False)
    repos["zjunlp/zhixi-13b-lora"] = {file.name: file.read_bytes() for file in (scratch / "lora").iterdir()}
    return repos


def pickled(tensors: dict[str, torch.Tensor]) -> bytes:
    content = io.BytesIO()
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, content)
    return content.getvalue()


def stop(server: subprocess.Popen) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def start(command: str, url: str, answer: str, folder: Path, environment: dict) -> subprocess.Popen:
    """Start a server's command and wait until ``url`` gives ``answer``."""
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + 600
    while True:
        try:
            if answer in urllib.request.urlopen(url, timeout=5).read().decode():
                return server
        except OSError:
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            stop(server)
            pytest.fail(f"{command}\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_works_as_written(house, command):
    folder, environment, servers = house
    if "_web.py" in command:
        stop(start(command, "http://127.0.0.1:7860", "KnowLM", folder, environment))
        return
    if "launch_vllm.py" in command:
        servers.append(start(command, "http://127.0.0.1:8090/is_ready", "true", folder, environment))
        return
    for written, done in INSTEAD.items():
        command = command.replace(written, done)
    if any(script in command for script in LONG_ANSWERS):
        command += " --max_new_tokens 4"
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        input="Hello\n\n",
        text=True,
        capture_output=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    if command.startswith("curl"):
        answer = json.loads(result.stdout)
        assert answer["error"] is None and answer["num_output_tokens_cf"] > 0
        stop(servers.pop())
