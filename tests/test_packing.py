from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.packing import load_punkt, pack_sentences, sentence_ends, token_lengths

TEXTS = st.text(alphabet="ab .?!；。！？\n”中文😀é\r\t", max_size=80)


def fewest_blocks(lengths: list[int], capacity: int) -> int:
    """By trying every place for the first cut."""
    best = [0] * (len(lengths) + 1)
    for start in reversed(range(len(lengths))):
        options = [
            1 + best[stop] for stop in range(start + 1, len(lengths) + 1) if sum(lengths[start:stop]) <= capacity
        ]
        best[start] = min(options)
    return best[0]


@given(st.lists(st.integers(1, 9), max_size=12))
def test_packing_covers_all_sentences_in_the_fewest_blocks(lengths):
    spans = pack_sentences(lengths, capacity=10)
    assert len(spans) == fewest_blocks(lengths, 10)
    assert {i for first, stop in spans for i in range(first, stop)} == set(range(len(lengths)))
    assert all(sum(lengths[first:stop]) <= 10 for first, stop in spans)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_a_block_reaches_back_as_far_as_it_can(lengths):
    for first, stop in pack_sentences(lengths, capacity=10):
        assert first == 0 or sum(lengths[first - 1 : stop]) > 10


def test_the_published_example_packs_as_published():
    assert pack_sentences([700, 300, 500], 1024) == [(0, 2), (1, 3)]


def test_a_sentence_over_the_capacity_is_refused():
    with pytest.raises(ValueError, match="has 9 tokens, a sample holds 8"):
        pack_sentences([9], 8)


@given(TEXTS, st.sampled_from(["english", "chinese", "code"]))
def test_sentences_join_to_the_text(text, language):
    ends = sentence_ends(text, language)
    assert ends == sorted(set(ends))
    assert "".join(text[start:end] for start, end in pairwise([0, *ends])) == text


def test_abbreviations_end_no_sentence():
    text = "Dr. Li arrived at 5 p.m. yesterday. She left."
    assert [text[a:b] for a, b in pairwise([0, *sentence_ends(text, "english")])] == [
        "Dr. Li arrived at 5 p.m. yesterday.",
        " She left.",
    ]


def test_a_closing_quote_stays_with_its_chinese_sentence():
    text = "他说：“你好！”然后走了。"
    assert [text[a:b] for a, b in pairwise([0, *sentence_ends(text, "chinese")])] == ["他说：“你好！”", "然后走了。"]


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=30).map(sorted),
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
)
def test_token_lengths_lose_no_token_and_keep_to_the_capacity(starts, ends):
    lengths = token_lengths(np.array(sorted({*ends, 31})), np.array(starts), capacity=4)
    assert sum(lengths) == len(starts)
    assert all(0 < length <= 4 for length in lengths)


def test_a_long_sentence_is_cut_between_characters():
    starts = np.array([0, 1, 1, 1, 4, 4, 4, 7, 7, 7])  # three characters of three tokens each behind one
    lengths = token_lengths(np.array([10]), starts, capacity=5)
    assert lengths.tolist() == [4, 3, 3]


@given(st.lists(st.integers(1, 9), max_size=12))
def test_without_overlap_nothing_is_repeated(lengths):
    spans = pack_sentences(lengths, capacity=10, overlap=False)
    assert [i for first, stop in spans for i in range(first, stop)] == list(range(len(lengths)))


PUNKT = load_punkt()
WORDS = ["Dr.", "Li", "left.", "p.m.", "U.S.", "J.", "3.", "1990.", "Really?", "No!", "(So.)", "...", "ab.", "St."]


@given(st.lists(st.sampled_from([*WORDS, "\n"]) | st.text(alphabet="aB.?!('\" 1", max_size=5), max_size=14))
def test_english_ends_are_those_of_punkt(words):
    text = " ".join(words)
    ends = [end for _, end in PUNKT.span_tokenize(text) if 0 < end < len(text.rstrip())]
    assert sentence_ends(text, "english") == ([*ends, len(text)] if text else [])
