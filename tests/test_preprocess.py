import gzip
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pytest
import zstandard
from conftest import peak_memory
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from knowlm.corpus import Corpus, merge_corpora
from knowlm.corpus_builder import Recipe, encode_chunk
from knowlm.sources import Chunk, parse_document, read_chunks
from knowlm.tokenization import CorpusTokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
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


def command(source, tokenizer, folder, *flags):
    return [
        "pretrain/preprocess.py",
        *["--mode", "write", "--file_path", source, "--language", "chinese", "--tokenizer_path", tokenizer],
        *["--do_split_sentences", "--do_keep_newlines", "--save_path", folder, "--save_prefix", "out"],
        *["--min_sample_tokens", 0, *flags],
    ]


def write(run_script, source, tokenizer, folder, *flags):
    result = run_script(*command(source, tokenizer, folder, *flags))
    assert result.returncode == 0, result.stderr
    return Corpus(folder / "out"), result


def texts_of(corpus, tokenizer):
    tokenizer = CorpusTokenizer(tokenizer)
    return [tokenizer.decode(corpus[i].tolist()) for i in range(len(corpus))]


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


def test_bad_lines_are_kept_with_what_is_wrong(run_script, tiny_llama, tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_bytes(b'{"text": "good enough"}\n{"text": \n\xff\xfe\n\n{"other": "x"}\n')
    corpus, result = write(run_script, source, tiny_llama, tmp_path)
    assert len(corpus) == 1
    assert f"3 bad lines skipped, see {tmp_path / 'out.rejected.jsonl'}" in result.stdout
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rejected] == [(str(source), line) for line in (2, 3, 5)]
    assert "none of the known text fields in ['other']" in rejected[2]["reason"]


def test_strict_stops_at_a_bad_line(run_script, tiny_llama, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "good"}\n{"text": \n')
    result = run_script(*command(tmp_path / "texts.jsonl", tiny_llama, tmp_path, "--strict"))
    assert result.returncode == 1
    assert f"{tmp_path / 'texts.jsonl'}, line 2: " in result.stderr
    assert not (tmp_path / "out.bin").exists()


def test_an_empty_file_is_told(run_script, tiny_llama, tmp_path):
    (tmp_path / "empty.txt").touch()
    result = run_script(*command(tmp_path / "empty.txt", tiny_llama, tmp_path))
    assert result.returncode == 1 and "no sample is left to write; the input holds no text" in result.stderr
    assert not [path.name for path in tmp_path.glob("out*")]


def test_every_kind_of_file_gives_the_same_corpus(run_script, source, tiny_llama, tmp_path):
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(source.read_bytes()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + source.read_bytes().replace(b"\n", b"\r\n"))
    plain, _ = write(run_script, source, tiny_llama, tmp_path / "plain")
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet", "b.jsonl"):
        other, _ = write(run_script, tmp_path / name, tiny_llama, tmp_path / name.replace(".", ""))
        assert np.array_equal(other.tokens, plain.tokens) and np.array_equal(other.lengths, plain.lengths)


@pytest.mark.parametrize("language", ["english", "code", "auto"])
def test_without_line_breaks_words_stay_apart(run_script, tiny_llama, tmp_path, language):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "It rained.\nShe left\n the house."}) + "\n")
    script, *flags = command(tmp_path / "a.jsonl", tiny_llama, tmp_path, "--language", language)
    result = run_script(script, *[flag for flag in flags if flag != "--do_keep_newlines"])
    assert result.returncode == 0, result.stderr
    assert texts_of(Corpus(tmp_path / "out"), tiny_llama) == ["It rained. She left the house."]


@pytest.mark.parametrize("suffix", [".jsonl", ".gz", ".zst", ".parquet"])
def test_any_kind_of_file_is_gone_on_with_behind_a_chunk(suffix, tmp_path):
    rows = [{"text": f"{number} " + "x" * 1000} for number in range(9000)]  # over two chunks
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(suffix, bytes)(content))
    first, *rest = read_chunks(path, 0, True)
    assert len(rest) > 1 and first.data + b"".join(chunk.data for chunk in rest) == content
    assert list(read_chunks(path, 0, True, first.stop, first.next_line)) == rest


def test_a_damaged_archive_is_named(run_script, source, tiny_llama, tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(source.read_bytes())[:-20])
    result = run_script(*command(tmp_path / "a.gz", tiny_llama, tmp_path))
    assert result.returncode == 1
    assert f"{tmp_path / 'a.gz'}: can't be read to its end" in result.stderr and "Traceback" not in result.stderr


def test_many_files_and_a_template(run_script, tiny_llama, tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"q": f"What is {name}?", "a": "A letter."}) + "\n")
    template = ["--text_template", r"Q: {q}\nA: {a}"]
    corpus, _ = write(run_script, tmp_path / "*.jsonl", tiny_llama, tmp_path, *template)
    assert texts_of(corpus, tiny_llama) == [f"Q: What is {name}?\nA: A letter." for name in "ab"]
    assert corpus.origin(1) == (str(tmp_path / "b.jsonl"), 1, 0, len("Q: What is b?\nA: A letter."))


def test_lines_of_a_text_file_stay_as_they_are(run_script, sentencepiece_model, tmp_path):
    lines = ["  indented", "a\ttab", '{"text": "json in it"}', "“引号”！"]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    corpus, _ = write(run_script, tmp_path / "a.txt", sentencepiece_model, tmp_path)
    assert texts_of(corpus, sentencepiece_model) == lines


PARTS = ["你好。", "She left. ", "x = 1\n", "\r\n", "😀", "𠮷", "  ", "é!", "床前明月光，", "</s>", "▁"]


@given(
    st.lists(st.lists(st.sampled_from(PARTS), min_size=1).map("".join), min_size=1, max_size=6),
    st.integers(10, 30),
    st.booleans(),
)
def test_nothing_is_lost_whatever_the_text(sentencepiece_model, texts, seq_length, overlap):
    tokenizer = CorpusTokenizer(sentencepiece_model)
    recipe = Recipe("chinese", True, True, seq_length, overlap, min_sample_tokens=0)
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    encoded = encode_chunk(Chunk(0, True, 1, 1 + len(texts), len(data), len(data), data), tokenizer, recipe)
    covered = {}
    stops = np.cumsum(encoded.lengths)
    for stop, length, (_, line, first, last) in zip(stops, encoded.lengths, encoded.ledger.tolist(), strict=True):
        assert length <= seq_length
        content = texts[line - 1].encode()[first:last].decode()
        # SentencePiece itself can't tell ▁ from a space
        assert tokenizer.decode(encoded.ids[stop - length : stop].tolist()) == content.replace("▁", " ")
        assert first <= covered.get(line, 0) and (overlap or first == covered.get(line, 0))
        covered[line] = last
    assert covered == {line: len(text.encode()) for line, text in enumerate(texts, 1) if text.strip()}


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_next_run_goes_on(source, tiny_llama, tmp_path, run_script):
    source.write_bytes(source.read_bytes() * 20_000)
    write(run_script, source, tiny_llama, tmp_path / "whole")
    words = " ".join(map(shlex.quote, map(str, command(source, tiny_llama, tmp_path / "full"))))
    limited = f"ulimit -f 20000 && exec {sys.executable} {words}"  # no file over 20 MB
    result = subprocess.run(["bash", "-c", limited], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 1
    assert "mend that, then run the same command again" in result.stderr and len(result.stderr.splitlines()) == 1
    _, result = write(run_script, source, tiny_llama, tmp_path / "full")
    assert "going on behind" in result.stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "full").iterdir()} == files


@pytest.mark.slow
def test_a_killed_worker_is_told(source, tiny_llama, tmp_path):
    source.write_bytes(source.read_bytes() * 20_000)
    arguments = [sys.executable, *map(str, command(source, tiny_llama, tmp_path, "--num_workers", 2))]
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    workers = []
    while len(workers) < 2:
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "preprocess.py" in " ".join(child.cmdline())]
        time.sleep(0.05)
    workers[0].kill()
    _, words = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker was killed" in words and "it goes on" in words


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


def test_stats_counts_sources_and_draws_lengths(run_script, source, tiny_llama, tmp_path):
    write(run_script, source, tiny_llama, tmp_path)
    result = run_script("pretrain/preprocess.py", "--mode", "stats", "--read_path_prefix", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert f"{source}: 5 samples" in result.stdout
    assert (tmp_path / "out.lengths.png").read_bytes().startswith(b"\x89PNG")


def test_stats_counts_sources_of_joined_corpora(run_script, source, tiny_llama, tmp_path):
    corpus, _ = write(run_script, source, tiny_llama, tmp_path)
    merge_corpora([corpus.prefix, corpus.prefix], [0, 1], str(tmp_path / "both"))
    result = run_script("pretrain/preprocess.py", "--mode", "stats", "--read_path_prefix", tmp_path / "both")
    assert result.stdout.count(f"{source}: {len(corpus)} samples, {len(corpus.tokens)} tokens\n") == 2


def test_a_json_list_is_told(run_script, source, tiny_llama, tmp_path):
    (tmp_path / "list.json").write_text('[\n{"text": "a"}\n]\n')
    result = run_script(*command(tmp_path / "list.json", tiny_llama, tmp_path))
    assert result.returncode == 1 and "list.json: a JSON list; write it as JSON lines" in result.stderr


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
    assert parse_document(line.encode(), line.startswith("{")) == text


@pytest.mark.parametrize(("pieces", "dtype"), [(65_536, "<u2"), (65_537, "<u4")])
def test_ids_take_four_bytes_above_65536_pieces(run_script, tmp_path, pieces, dtype):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text(f"w3 w{pieces - 1} w5\n")
    corpus, _ = write(run_script, tmp_path / "a.txt", tmp_path / "tokenizer.json", tmp_path)
    assert corpus.tokens.dtype == np.dtype(dtype)
    assert corpus[0].tolist() == [1, 3, pieces - 1, 5, 2]


@pytest.mark.slow
def test_a_line_of_50_megabytes_is_packed_like_any_other_in_little_memory(sentencepiece_model, tmp_path):
    text = (
        "".join(f"第{number}回。床前明月光，疑是地上霜。\nIt rained in {number}. " for number in range(720_000)) + "😀"
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")
    assert (tmp_path / "a.jsonl").stat().st_size > 50_000_000
    assert peak_memory(*command(tmp_path / "a.jsonl", sentencepiece_model, tmp_path, "--no-overlap")) < 500_000_000
    corpus = Corpus(tmp_path / "out")
    expected = CorpusTokenizer(sentencepiece_model).encode_batch([text], edges=True)[0]
    assert np.array_equal(corpus.tokens, expected)  # encoded part by part, yet as a whole
    ends = corpus.ledger["stop"].tolist()
    content = text.encode()
    assert {content[end - 3 : end].decode(errors="replace")[-1] for end in ends[:-1]} <= set("。\n.")
