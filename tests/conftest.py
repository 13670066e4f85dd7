"""A random model small enough for every test, and a way to run the scripts as a user does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST_FIRST = ["commands", "serving", "quickstart", "clean", "pretrain", "trace", "web", "preprocess", "corpus_tasks"]
LONGEST_FIRST += ["lora", "full", "weight_kills", "weight_memory"]
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2, as in LLaMA
VOCABULARY = 600  # 3 special tokens, 256 bytes, 341 merges
TEXT = """
Below is an instruction that describes a task, paired with an input that provides further context.
Write a response that appropriately completes the request. The quick brown fox jumps over the lazy dog.
Knowledge graphs store facts as triples of a head, a relation and a tail: Marie Curie was born in Warsaw.
Extract the entities and the relations from the sentence, and answer with a list of tuples and nothing else.
def pack(lengths, capacity): return [length for length in lengths if length <= capacity]
白日依山尽,黄河入海流。欲穷千里目,更上一层楼。床前明月光,疑是地上霜。举头望明月,低头思故乡。
知识图谱把事实存成三元组:头实体、关系、尾实体。请从句子中抽取实体和关系,并以列表回答。你好,世界!
北京是中华人民共和国的首都。鲁迅出生于浙江省绍兴市,代表作有《狂人日记》和《阿Q正传》。
"""


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, lest one of them is left for a single core at the end."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer: any text has ids and comes back from them; BOS is added as LLaMA's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXT.splitlines(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL_TOKENS,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory) -> Path:
    """A SentencePiece BPE model with byte fallback and LLaMA's special ids and settings."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer, tmp_path_factory) -> Path:
    """The folder of a random two-layer Llama of 0.2 million weights, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # vLLM has no CPU kernel for heads of 16
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("tiny_llama")
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def local_hub(monkeypatch):
    """A hub that this process can reach, whatever its environment says, and whose failures it does not wait for."""
    from hub import MODEL, LocalHub, make_files
    from huggingface_hub import close_session, constants

    from knowlm import hub as client

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(client, "PAUSES", (0, 0, 0, 0))
    close_session()
    with LocalHub({repo: make_files(repo) for repo in (MODEL, f"{MODEL}@v1")}) as hub:
        yield hub
    close_session()


@pytest.fixture
def run_script(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """``run_script("tools/x.py", *arguments)`` runs a script from another folder than the checkout."""

    def run(
        script: str, *arguments, env: dict[str, str] | None = None, cwd: str | Path | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(REPOSITORY / script), *map(str, arguments)],
            cwd=cwd or tmp_path,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


def peak_memory(script: str, *arguments) -> int:
    """Run a script to its good end; the most bytes that its largest process had for itself alone. Pages of mapped files
    don't count: they can be dropped at any time.
    """
    process = psutil.Popen([sys.executable, str(REPOSITORY / script), *map(str, arguments)])
    peak = 0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            for one in (process, *process.children(recursive=True)):
                status = Path(f"/proc/{one.pid}/status").read_text()
                anonymous = [int(line.split()[1]) * 1024 for line in status.splitlines() if "RssAnon" in line]
                peak = max([peak, *anonymous])
        time.sleep(0.005)
    assert process.returncode == 0
    return peak


@pytest.fixture
def run_warm(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """As ``run_script``, but with torch and transformers imported already (see warm.py)."""
    from warm import run_warm

    return lambda script, *arguments, **options: run_warm(
        REPOSITORY / script, *arguments, **({"cwd": tmp_path} | options)
    )
