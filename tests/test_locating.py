"""Spans in texts, texts in windows, scores above thresholds."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_grounded import entities, event, triples

from knowlm.extraction.grammar import chunk_ends
from knowlm.extraction.grounded import read_freely
from knowlm.extraction.locating import Text, locate
from knowlm.extraction.thresholds import fit_threshold
from knowlm.extraction.windows import Ask, Extraction, join, windows


@pytest.mark.parametrize(
    ("text", "span", "places"),
    [
        ("Paris, not Parisian Paris", "Paris", [(0, 5), (20, 25)]),
        ("Parisian", "Paris", [(0, 5)]),  # nowhere as a word
        ("ＮＡＳＡ和NASA", "NASA", [(5, 9)]),  # as written, if it is
        ("ＮＡＳＡ（美国）", "nasa(美国)", [(0, 8)]),
        ("他在臺灣大學讀書", "台湾大学", [(2, 6)]),
        ("他在台湾大学读书", "臺灣大學", [(2, 6)]),
        ("New\n  York", "New York", [(0, 10)]),
        ("the “ﬁrst” cafe\u0301s", 'the "first" cafés', [(0, 17)]),
        ("㎏", "k", []),  # half of what one character stands for
        ("Straße", "STRASSE", [(0, 6)]),
        ("𠮷野家在東京", "东京", [(4, 6)]),
        ("aaaa", "aa", [(0, 2), (2, 4)]),
        ("abc", "x", []),
        ("abc", " ", []),
    ],
)
def test_a_span_is_found_in_any_width_case_form_and_script(text, span, places):
    assert Text(text).find(span) == places


@given(st.text(max_size=40), st.data())
def test_any_part_of_a_text_is_found_in_it(text, data):
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    span = text[start:stop].strip()
    found = Text(text).find(span)
    assert bool(found) == bool(span)
    assert all(text[a:b] == span for a, b in found)


ODD = ["Paris", "Ｐａｒｉｓ", "ﬁrst", "㎏", "发", "發", "髮", "头发", "頭髮", "臺灣", "台湾", "e\u0301", "é", "İ", "ß"]
ODD += ["SS", "👩\u200d👩\u200d👧", "👍🏽", "\r\n", "\t", "\u200b", "\ufeff"]
ODD += list('\u3000 ,(）"\\𠮷\x85Å')
PIECES = st.lists(st.sampled_from(ODD), max_size=12).map("".join)


@given(PIECES, PIECES)
def test_offsets_are_of_what_is_told_whatever_the_text_is_written_in(text, span):
    spans = Text(text).find(span)
    assert all(0 <= start < stop <= len(text) for start, stop in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    ask = Ask(0, "NER", ["x"], text, 0, "")
    items = [{"text": span, "type": "x"}] if span.strip() else []
    for record in read_freely(ask, json.dumps(items, ensure_ascii=False)).records:
        assert text[record["start"] : record["end"]] == record["text"] != ""
    if span.strip() and span.strip() in text:
        assert [text[start:stop] for start, stop in spans] == [span.strip()] * len(spans) != []


def test_every_mention_is_told_once_across_windows_and_within_their_overlap():
    for text, name in (
        ("Ann met Bo. Anna saw Ann. Ann, Ann and Ann left.", "Ann"),
        ("鲁迅来了。鲁迅写鲁迅。鲁迅、鲁迅。", "鲁迅"),
    ):
        item = {"text": name, "type": "person", "score": 0.5}
        parts = [
            (Ask(0, "NER", ["person"], text[start:stop], start, ""), Extraction([item], [], "", True))
            for start, stop in windows(text, 14, 8, "english")
        ]
        found = join("NER", text, parts)
        assert found.items == [item] and len(found.records) == 5
        assert len({r["start"] for r in found.records}) == 5 and {r["text"] for r in found.records} == {name}


def test_every_mention_of_an_entity_is_told_but_not_those_within_a_longer_one():
    text = "New York is in New York State. York is old."
    items = [
        item | {"score": 0.5}
        for item in entities(("New York", "place"), ("York", "place"), ("New York State", "place"))
    ]
    places = [(r["text"], r["start"], r["end"]) for r in locate("NER", items, text)]
    assert places == [("New York", 0, 8), ("York", 31, 35), ("New York State", 15, 29)]


def test_a_triple_is_told_of_the_mentions_nearest_to_each_other():
    text = "Paris is big. Lyon and Paris are in France. So is Nice."
    (record,) = locate("RE", triples(("Paris", "country", "France")), text)
    assert (record["head"]["start"], record["tail"]["start"]) == (23, 36)
    (record,) = locate("EE", [event("trip", "is", ("Nice", "where"), ("Rome", "where"))], text)
    assert record["trigger"]["start"] == 47 and record["arguments"] == [
        {"text": "Nice", "start": 50, "end": 54, "role": "where"}
    ]


def test_free_answers_are_kept_where_the_text_and_the_schema_hold_them():
    ask = Ask(0, "NER", ["地点"], "他在臺灣。", 0, "")
    found = read_freely(ask, "(台湾,地点)\n(日本,地点)\n(他,人物)")
    assert found.items == entities(("台湾", "地点"))
    assert found.records == [{"text": "臺灣", "type": "地点", "start": 2, "end": 4, "score": None}]
    assert found.not_found == entities(("日本", "地点"), ("他", "人物"))


@given(st.text(alphabet="ab 。，.!?\n中文", max_size=200), st.integers(2, 40), st.data())
def test_windows_cover_a_text_in_order_and_overlap(text, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = windows(text, size, overlap, data.draw(st.sampled_from(["english", "chinese"])))
    assert found[0][0] == 0 and found[-1][1] == len(text)
    assert all(0 < stop - start <= size for start, stop in found) or not text
    for (start, stop), (next_start, next_stop) in pairwise(found):
        assert start < next_start <= stop < next_stop and stop - next_start <= overlap


SCORED = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.1, 0.3, 0.5, 0.9])), max_size=5)
GOLD = st.sets(st.sampled_from("abcd"))


@given(st.lists(st.tuples(SCORED, GOLD), min_size=1, max_size=6))
def test_a_fitted_threshold_has_the_best_f1_that_any_has(cases):
    found = [[{"text": name, "type": "x", "score": score} for name, score in dict(pairs).items()] for pairs, _ in cases]
    gold = [[{"text": name, "type": "x"} for name in sorted(names)] for _, names in cases]

    def f1(threshold):
        kept = [{item["text"] for item in items if item["score"] >= threshold} for items in found]
        right = sum(len(names & wanted) for names, (_, wanted) in zip(kept, cases, strict=True))
        both = sum(map(len, kept)) + sum(map(len, gold))
        return 2 * right / both if both else 0

    threshold, best = fit_threshold("NER", found, gold)
    assert best == pytest.approx(max(map(f1, (0.1, 0.3, 0.5, 0.9))))
    assert f1(threshold) == pytest.approx(best)


def test_words_are_not_cut_where_spaces_part_them():
    assert chunk_ends("Zoë's 3km 你好é") == [0, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13]
