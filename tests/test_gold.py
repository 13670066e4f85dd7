"""The hand-written gold set keeps what its guide promises, and no training data of ours holds any of it."""

import re
from collections import Counter
from pathlib import Path

import pytest

from knowlm.extraction.cases import schema_labels
from knowlm.extraction.forms import FORMS, TASKS, forms_of, write_answer
from knowlm.extraction.leakage import shared_text
from knowlm.extraction.scoring import score, scores_of
from knowlm.files import read_json, read_records

REPOSITORY = Path(__file__).resolve().parents[1]
GOLD = REPOSITORY / "finetune/data/gold"
LANGUAGES = ("english", "chinese")
CASES = [case for language in LANGUAGES for case in read_records(GOLD / f"{language}.jsonl")]
TRAINING_TEXTS = [
    *(REPOSITORY / "finetune/data/encyclopedia").glob("*.jsonl"),
    *(REPOSITORY / "pretrain/data").glob("*.jsonl"),
    *(REPOSITORY / "examples/cases").glob("*.json"),
]

SCORES = ("NER", "RE", "EE trigger", "EE argument")


def spans(case: dict):
    """(text, start, end) of everything that a case's gold points to."""
    for item in case["gold"]:
        if case["task"] == "NER":
            yield item["text"], item["start"], item["end"]
        elif case["task"] == "RE":
            yield item["head"], item["head_start"], item["head_end"]
            yield item["tail"], item["tail_start"], item["tail_end"]
        else:
            yield item["trigger"], item["trigger_start"], item["trigger_end"]
            yield from ((part["text"], part["start"], part["end"]) for part in item["arguments"])


@pytest.mark.parametrize("form", FORMS)
def test_gold_answers_score_one_in_every_form(form):
    answers = [
        write_answer(case["task"], case["gold"], form if form in forms_of(case["task"]) else "tuple", case["language"])
        for case in CASES
    ]
    metrics = score(CASES, answers, resamples=1)
    assert {name: figures["f1"] for name, figures in scores_of(metrics)} == dict.fromkeys(SCORES, 1)
    assert metrics["unparsable"] == 0


def test_every_span_is_where_its_offsets_say():
    wrong = [
        (case["id"], text, case["input"][start:end])
        for case in CASES
        for text, start, end in spans(case)
        if not text or case["input"][start:end] != text
    ]
    assert not wrong


def test_english_spans_are_whole_words():
    for case in CASES:
        for text, start, end in spans(case):
            if case["language"] == "english":
                around = case["input"][:start][-1:], case["input"][end:][:1]
                assert not any(mark.isalnum() for mark in around), (case["id"], text)


def test_spans_hold_no_outer_marks_that_the_guide_leaves_out():
    for case in CASES:
        for text, _, _ in spans(case):
            assert text.strip(" \"'“”‘’《》，。；、") == text, (case["id"], text)
            assert not re.match(r"(the|a|an) ", text), (case["id"], text)


def test_answers_use_the_labels_of_their_schema():
    for case in CASES:
        labels = schema_labels(case)
        assert len(set(labels)) == len(labels), case["id"]
        if case["task"] == "EE":
            roles = {entry["type"]: entry["roles"] for entry in case["schema"]}
            for event in case["gold"]:
                assert {argument["role"] for argument in event["arguments"]} <= set(roles[event["type"]]), case["id"]
        else:
            assert {item.get("type") or item.get("relation") for item in case["gold"]} <= set(labels), case["id"]


def test_nothing_is_listed_twice_and_no_entity_lies_in_another():
    for case in CASES:
        items = [tuple(sorted((k, str(v)) for k, v in item.items())) for item in case["gold"]]
        assert len(set(items)) == len(items), case["id"]
        if case["task"] == "NER":
            assert len({(item["text"], item["type"]) for item in case["gold"]}) == len(case["gold"])
            ordered = sorted((item["start"], item["end"]) for item in case["gold"])
            assert all(ordered[i][1] <= ordered[i + 1][0] for i in range(len(ordered) - 1)), case["id"]


SYMMETRIC = ("spouse", "shares border with", "sibling", "配偶", "接壤", "兄弟姐妹")


def test_symmetric_relations_are_listed_both_ways():
    facts = {(c["id"], g["head"], g["relation"], g["tail"]) for c in CASES if c["task"] == "RE" for g in c["gold"]}
    both = [fact for fact in facts if fact[2] in SYMMETRIC]
    assert both
    assert all((case, tail, relation, head) in facts for case, head, relation, tail in both)


def test_sizes_are_those_promised():
    assert len({case["id"] for case in CASES}) == len(CASES)
    sentences = {language: {c["input"] for c in CASES if c["language"] == language} for language in LANGUAGES}
    assert all(len(texts) >= 80 for texts in sentences.values())
    counts = Counter(case["task"] for case in CASES)
    assert counts["NER"] >= 120 and counts["RE"] >= 100 and counts["EE"] >= 70
    assert 0.08 <= sum(not case["gold"] for case in CASES) / len(CASES) <= 0.10
    assert len({case["domain"] for case in CASES}) >= 14
    guide = (GOLD / "README.md").read_text(encoding="utf-8")
    for language in LANGUAGES:
        tasks = Counter(case["task"] for case in CASES if case["language"] == language)
        row = [len(sentences[language]), *(tasks[task] for task in TASKS)]
        assert f"| {language} | " + " | ".join(map(str, row)) + " |" in guide


@pytest.mark.parametrize("path", TRAINING_TEXTS, ids=lambda path: path.name)
def test_no_training_text_shares_a_long_run_with_a_case(path):
    rows = read_json(path) if path.suffix == ".json" else read_records(path)
    assert rows
    assert not list(shared_text(CASES, rows))


def test_the_training_texts_that_are_checked_are_there():
    assert len(TRAINING_TEXTS) >= 13


@pytest.mark.parametrize("number", [0, 50, len(CASES) - 1])
def test_a_case_that_leaks_is_found_in_a_row_of_any_shape(number):
    case = CASES[number]
    rows = [
        {"text": "Nothing of it. 这里没有。"},
        {"conversations": [{"from": "human", "value": f"Read this: {case['input'].upper()} Now answer."}]},
    ]
    found = list(shared_text(CASES, rows))
    assert {shared.row for shared in found} == {2}
    assert case["id"] in {shared.case for shared in found}


def test_a_leak_is_seen_through_width_case_and_punctuation():
    case = {"id": 7, "language": "chinese", "input": "港珠澳大桥2018年10月24日通车，连接香港、珠海和澳门。"}
    row = {"output": "港珠澳大桥２０１８年１０月２４日 通车；连接香港,珠海和澳门"}
    assert [(shared.case, shared.row) for shared in shared_text([case], [row])] == [(7, 1)]


def test_a_short_shared_name_is_no_leak_but_a_short_case_is():
    long = {"id": "long", "language": "english", "input": "The Supreme Court of the United States sat for three days."}
    short = {"id": "short", "language": "english", "input": "It rained."}
    rows = [{"text": "A case before the Supreme Court of the United States. It rained."}]
    assert [shared.case for shared in shared_text([long, short], rows)] == ["short"]
    assert {shared.case for shared in shared_text([long, short], rows, words=5)} == {"long", "short"}


def test_tuning_refuses_rows_of_the_gold_set():
    from knowlm.tuning import refuse_gold

    rows = [{"instruction": "x", "input": "", "output": ""}, {"instruction": "y", "input": CASES[-1]["input"].upper()}]
    refuse_gold(rows[:1], "train.json")
    with pytest.raises(ValueError, match=r"train.json, record 2: holds .* of the gold set \(gold-zh"):
        refuse_gold(rows, "train.json")
