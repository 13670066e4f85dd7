from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer

from knowlm.packing import SentenceEnds, pack_document, pack_sentences
from knowlm.sentences import load_punkt, sentence_ends, sentences_of_2023
from knowlm.tokenization import byte_offsets

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


def test_a_sentence_over_the_capacity_stands_alone():
    assert pack_sentences([3, 9, 2, 0], 8) == [(0, 1), (1, 2), (2, 4)]


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


WORDS_AND_MARKS = ["ab", "c.", "D", "Dr.", "e!", "\n", "  ", "中", "文。", "😀", "”", "?", "def f():", "x" * 40]


def cut_all(starts: list[int], ends: list[int], capacity: int) -> list[int]:
    """Where the sentences of an encoded text end, in tokens, one over ``capacity`` in full pieces."""
    edges = [0]
    for stop in [*sorted({starts.index(end) for end in ends if end in starts}), len(starts)]:
        while stop - edges[-1] > capacity:
            edges.append(edges[-1] + capacity)
        edges.append(stop)
    return sorted(set(edges))


@given(
    st.lists(st.sampled_from(WORDS_AND_MARKS), min_size=1, max_size=60),
    st.integers(3, 12),
    st.booleans(),
    st.sampled_from(["english", "chinese", "code", ""]),
    st.randoms(),
)
def test_a_document_is_packed_as_if_all_its_sentences_were_looked_for(words, capacity, overlap, language, random):
    text = " ".join(words)
    content = text.encode()
    starts = sorted({len(text[: random.randrange(len(text))].encode()) for _ in range(random.randrange(1, 90))})
    ids, starts = np.arange(len(starts) + 2), [0, 0, *starts[1:], len(content)]
    cuts = random.choices(range(len(ids)), k=2)
    parts = [(ids[a:b], np.array(starts[a:b])) for a, b in pairwise([0, *sorted(cuts), len(ids)])]
    ends = byte_offsets(text, np.array(sentence_ends(text, language)[:-1], int)).tolist() if language else []
    edges = cut_all(starts, ends, capacity)
    expected = pack_sentences(np.diff(edges), capacity, overlap)
    samples = list(pack_document(parts, content, language, capacity, overlap))
    assert [(s.ids[0], s.ids[-1] + 1) for s in samples] == [(edges[first], edges[stop]) for first, stop in expected]
    assert [s.start for s in samples] == [starts[s.ids[0]] for s in samples]
    assert [s.stop for s in samples] == [[*starts, len(content)][s.ids[-1] + 1] for s in samples]
    assert sum(len(s.ids) - s.repeated for s in samples) == len(ids)


def test_a_long_sentence_is_cut_between_characters():
    starts = np.array([0, 0, 3, 3, 3, 6, 6, 6, 9])  # BOS, three characters of 1, 3 and 3 tokens, EOS
    samples = pack_document([(np.arange(9), starts)], "一二三".encode(), "chinese", capacity=4)
    assert [(s.ids.tolist(), s.start, s.stop) for s in samples] == [
        ([0, 1], 0, 3),
        ([2, 3, 4], 3, 6),
        ([5, 6, 7, 8], 6, 9),
    ]


@given(
    st.text(alphabet="ab .?!；。！？\n”中😀", max_size=40),
    st.sampled_from([" ", "x" * 300, f" Dr.{'/y' * 150}. ", " " * 500, f".){' ' * 200}U.S.{' ' * 300}"]),
    st.sampled_from(["english", "chinese", "code"]),
)
def test_ends_found_in_blocks_are_those_of_the_whole_text(part, filling, language):
    text = f"{part} It rains here.{filling}下雨了。" * 60  # several blocks
    expected = byte_offsets(text, np.array(sentence_ends(text, language)[:-1], int)).tolist()
    assert list(SentenceEnds(text.encode(), language).between(0, len(text.encode()))) == expected
    assert list(SentenceEnds(text.encode(), language).between(400, 900, backwards=True)) == [
        end for end in reversed(expected) if 400 <= end <= 900
    ]


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


class Vars2023(PunktLanguageVars):
    """Punkt's own pattern with optional white space, which then belongs to the sentence before."""

    _period_context_fmt = r"""
        \S*
        %(SentEndChars)s
        \s*
        (?=(?P<after_tok>
            %(NonWord)s
            |
            (?P<next_tok>\S+)
        ))"""


PUNKT_2023 = PunktSentenceTokenizer(PUNKT._params, lang_vars=Vars2023())


@given(
    st.lists(
        st.sampled_from([*WORDS, "\n", " "]) | st.text(alphabet="aB.?!('\" 1\u00a0\u3000\x1c", max_size=5), max_size=14
    )
)
def test_english_sentences_of_2023_are_those_of_punkt_with_its_pattern(words):
    text = "".join(words)
    assert sentences_of_2023(text, "english", keep_newlines=False) == list(PUNKT.span_tokenize(text))
    assert sentences_of_2023(text, "english", keep_newlines=True) == list(PUNKT_2023.span_tokenize(text))
