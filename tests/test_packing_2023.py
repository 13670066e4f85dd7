"""Corpora of 2023 against a builder of few lines that follows what is known of the release."""

import json
import math
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from test_packing import PUNKT, PUNKT_2023

from knowlm.corpus import Corpus
from knowlm.corpus_builder import Recipe, encode_chunk
from knowlm.sources import Chunk
from knowlm.tokenization import CorpusTokenizer

ENGLISH = 'Dr. Li left.  (So did I.) He said: "No!" Really?\n\nIt was 5 p.m. yesterday. What now?! End.Begin. ' * 3
CHINESE = "你好。再见！“走吧？”他说；\n好。)对!n;  " * 4 + "长" * 90 + "。完"


def document_of_2023(text: str, chinese: bool, keep: bool, pieces, capacity: int) -> list[list[int]]:
    """The samples of a document, one loop after another as the release went."""
    sentences = split_of_2023(text, chinese, keep)
    encoded = []
    for number, sentence in enumerate(sentences):
        begin, end = [1] * (number == 0), [2] * (number == len(sentences) - 1)
        ids = [*begin, *pieces.encode(sentence), *end]
        if len(ids) <= capacity:
            encoded.append(ids)
        elif chinese:
            count = math.ceil(len(ids) / capacity) + (len(ids) % capacity >= capacity * 0.8)
            size = math.ceil(len(sentence) / count)
            for part in range(count):
                cut = pieces.encode(sentence[part * size : (part + 1) * size])
                first = begin if part == 0 else []
                if not first and cut[:1] == [pieces.piece_to_id("▁")]:
                    cut = cut[1:]
                encoded.append([*first, *cut, *(end if part == count - 1 else [])])
        else:
            encoded += [ids[start : start + capacity] for start in range(0, len(ids), capacity)]
    return join_of_2023(encoded, capacity)


def split_of_2023(text: str, chinese: bool, keep: bool) -> list[str]:
    if not chinese:
        return (PUNKT_2023 if keep else PUNKT).tokenize(text)
    marks = "[;!?；？。！\n]"
    if not keep:
        return re.split(marks, text)
    first, *others = re.split(f"({marks})", text)
    sentences = [first]
    for part in others:
        if part == "" or part in list("([;!?；？。！\\n])") or part in ("\n", "\\n"):
            sentences[-1] += part
        else:
            sentences.append(part)
    return sentences


def join_of_2023(encoded: list[list[int]], capacity: int) -> list[list[int]]:
    samples, start = [], 0
    while start < len(encoded):
        stop, total = start + 1, len(encoded[start])
        while stop < len(encoded) and total + len(encoded[stop]) <= capacity:
            total += len(encoded[stop])
            stop += 1
        first = start
        while first > 0 and total + len(encoded[first - 1]) <= capacity:
            first -= 1
            total += len(encoded[first])
        samples.append([token for ids in encoded[first:stop] for token in ids])
        start = stop
    return samples


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("language", "text"), [("english", ENGLISH), ("chinese", CHINESE)])
def test_a_corpus_has_the_bytes_of_2023(run_script, sentencepiece_model, tmp_path, language, text, keep):
    texts = [text, text[::-1], "   ", text[:7], "x" * 400, "\\n"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    flags = ["--mode", "write", "--file_path", tmp_path / "a.jsonl", "--language", language, "--do_split_sentences"]
    flags += ["--tokenizer_path", sentencepiece_model, "--save_path", tmp_path, "--save_prefix", "out"]
    flags += ["--seq_length", 64, "--tokenize", "sentence", *["--do_keep_newlines"] * keep]
    result = run_script("pretrain/preprocess.py", *flags)
    assert result.returncode == 0, result.stderr
    pieces = sentencepiece.SentencePieceProcessor(str(sentencepiece_model))
    samples = []
    for text in texts:
        if text.strip() and text != "\\n":
            samples += document_of_2023(text, language == "chinese", keep, pieces, 64)
    samples = [sample for sample in samples if len(sample) > 20]
    lengths = np.array([len(sample) for sample in samples])
    assert len(samples) > 10
    assert (tmp_path / "out.bin").read_bytes() == np.concatenate(samples).astype("<u2").tobytes()
    index = (np.cumsum(lengths) - lengths).astype("<u8").tobytes() + lengths.astype("<u2").tobytes()
    assert (tmp_path / "out.idx").read_bytes() == index


PARTS = [
    "你好。",
    "She left. ",
    "Dr. ",
    "x = 1\n",
    "!",
    "n",
    "(",
    "\\n",
    "；",
    "😀",
    "  ",
    "é!",
    "床前明月光",
    "a" * 30,
    "长" * 20,
]


@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=12).map("".join),
    st.integers(16, 40),
    st.booleans(),
    st.booleans(),
)
def test_any_document_is_packed_as_in_2023(sentencepiece_model, text, capacity, chinese, keep):
    if not text.strip() or text == "\\n":
        return
    pieces = sentencepiece.SentencePieceProcessor(str(sentencepiece_model))
    language = "chinese" if chinese else "english"
    recipe = Recipe(language, True, keep, capacity, min_sample_tokens=0, tokenize="sentence")
    data = json.dumps({"text": text}).encode() + b"\n"
    chunk = Chunk(0, True, 1, 2, len(data), len(data), data)
    encoded = encode_chunk(chunk, CorpusTokenizer(sentencepiece_model), recipe)
    samples = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])
    expected = [sample for sample in document_of_2023(text, chinese, keep, pieces, capacity) if sample]
    assert [sample.tolist() for sample in samples] == expected


def test_a_line_of_plain_text_keeps_its_end_as_in_2023(run_script, sentencepiece_model, tmp_path):
    (tmp_path / "a.txt").write_text("床前明月光。\n疑是地上霜。", encoding="utf-8")
    flags = ["--mode", "write", "--file_path", tmp_path / "a.txt", "--language", "chinese", "--do_split_sentences"]
    flags += ["--tokenizer_path", sentencepiece_model, "--save_path", tmp_path, "--save_prefix", "out"]
    result = run_script(
        "pretrain/preprocess.py", *flags, "--do_keep_newlines", "--tokenize", "sentence", "--min_sample_tokens", 0
    )
    assert result.returncode == 0, result.stderr
    corpus, pieces = Corpus(tmp_path / "out"), sentencepiece.SentencePieceProcessor(str(sentencepiece_model))
    assert [corpus[i].tolist() for i in (0, 1)] == [
        [1, *pieces.encode("床前明月光。\n"), 2],
        [1, *pieces.encode("疑是地上霜。"), 2],
    ]
