import json

import pytest

from knowlm.corpus import Corpus
from knowlm.tokenization import CorpusTokenizer, parse_document

TEXTS = [
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "Marie Curie was born in Warsaw. She won two prizes. Emoji 😀 too!",
    "def f(x):\n    return x * 2\n",
    "a literal </s> and <s> in the text",
    "长" * 300,
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS) + "\n", encoding="utf-8"
    )
    return path


def write(run_script, source, tokenizer, tmp_path, *flags):
    result = run_script(
        "pretrain/preprocess.py",
        "--mode",
        "write",
        "--file_path",
        source,
        "--language",
        "chinese",
        "--do_split_sentences",
        "--do_keep_newlines",
        "--tokenizer_path",
        tokenizer,
        "--save_path",
        tmp_path,
        "--save_prefix",
        "out",
        "--min_sample_tokens",
        0,
        *flags,
    )
    assert result.returncode == 0, result.stderr
    return Corpus(tmp_path / "out"), result


def test_no_text_is_lost_or_changed(run_script, source, tiny_llama, tmp_path):
    corpus, _ = write(run_script, source, tiny_llama, tmp_path)
    tokenizer = CorpusTokenizer(tiny_llama)
    assert [tokenizer.decode(corpus[i].tolist()) for i in range(len(corpus))] == TEXTS
    assert all(corpus[i][0] == 1 and corpus[i][-1] == 2 for i in range(len(corpus)))


def test_long_documents_are_cut_at_sentences(run_script, source, tiny_llama, tmp_path):
    corpus, _ = write(run_script, source, tiny_llama, tmp_path, "--seq_length", 24)
    assert corpus.lengths.max() <= 24
    tokenizer = CorpusTokenizer(tiny_llama)
    assert tokenizer.decode(corpus[0].tolist()) == "床前明月光，疑是地上霜。\n"


def test_workers_change_nothing(run_script, source, tiny_llama, tmp_path):
    write(run_script, source, tiny_llama, tmp_path)
    alone = {suffix: (tmp_path / f"out{suffix}").read_bytes() for suffix in (".bin", ".idx")}
    write(run_script, source, tiny_llama, tmp_path, "--num_workers", 2)
    assert alone == {suffix: (tmp_path / f"out{suffix}").read_bytes() for suffix in (".bin", ".idx")}


def test_bad_lines_are_counted_and_named(run_script, tiny_llama, tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_bytes(b'{"text": "good enough"}\n{"text": \n\xff\xfe\n\n{"other": "x"}\n')
    corpus, result = write(run_script, source, tiny_llama, tmp_path)
    assert len(corpus) == 1
    assert "3 bad lines skipped" in result.stdout
    assert "line 2" in result.stderr and "line 3" in result.stderr and "line 5" in result.stderr


def test_merge_refuses_what_is_no_list(run_script):
    result = run_script(
        "pretrain/preprocess.py",
        "--mode",
        "merge",
        "--merge_path_prefix",
        "__import__('os').getcwd()",
        "--new_path_prefix",
        "x",
    )
    assert result.returncode == 1
    assert "a list of str is needed" in result.stderr


def test_read_shows_texts(run_script, source, tiny_llama, tmp_path):
    write(run_script, source, tiny_llama, tmp_path)
    result = run_script(
        "pretrain/preprocess.py",
        "--mode",
        "read",
        "--read_path_prefix",
        tmp_path / "out",
        "--tokenizer_path",
        tiny_llama,
    )
    assert "床前明月光" in result.stdout


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("plain text", "plain text"),
        ('{"title": "a", "content": "b"}', "a\nb"),
        ('{"input": "a", "output": "b"}', "a\nb"),
        ('{"instruction": "a", "output": "b"}', "a\nb"),
    ],
)
def test_the_published_fields_are_known(line, text):
    assert parse_document(line) == text
