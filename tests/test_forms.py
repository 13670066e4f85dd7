import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowlm.extraction.cases import read_instruction
from knowlm.extraction.forms import (
    DATA,
    FORMS,
    INSTRUCTIONS,
    LANGUAGES,
    TASKS,
    WORDINGS,
    forms_of,
    render,
    write_answer,
)
from knowlm.extraction.parsing import parse

PAIRS = [(task, form) for task in TASKS for form in forms_of(task)]
SCHEMA = {"NER": ["place", "person"], "RE": ["country", "born in"], "EE": [{"type": "trip", "roles": ["who", "where"]}]}
MARKS = list(
    "(),[]{}<>#;:\"'\\\n\r\t `*.-1（），、［］【】｛｝＜＞《》：；＃“”‘’。"
    " \u3000\u200b\u200d\ufeff\u2028\x85\x00\ud83d\ude00🏝"
)
WORDS = [
    "NAN",
    "nan",
    "None",
    "null",
    "[]",
    "</s>",
    "```",
    "### Response:",
    "text",
    "head",
    "type",
    "trip",
    "place",
    "1. ",
]
# Any text at all, with the marks of the forms more often than chance would have them.
NAMES = (
    st.lists(
        st.one_of(
            st.sampled_from(MARKS + WORDS),
            st.sampled_from(["Paris", "李白", "a", "中"]),
            st.characters(exclude_categories=[]),
        ),
        min_size=1,
        max_size=8,
    )
    .map("".join)
    .map(str.strip)
    .filter(bool)
)
ARGUMENTS = st.lists(
    st.fixed_dictionaries({"text": NAMES.filter(lambda name: name != "NAN"), "role": NAMES}),
    max_size=3,
    unique_by=lambda argument: (argument["text"], argument["role"]),
)
ITEMS = {
    "NER": st.fixed_dictionaries({"text": NAMES, "type": NAMES}),
    "RE": st.fixed_dictionaries({"head": NAMES, "relation": NAMES, "tail": NAMES}),
    "EE": st.fixed_dictionaries({"type": NAMES, "trigger": NAMES, "arguments": ARGUMENTS}),
}
LABEL = {"NER": "type", "RE": "relation", "EE": "type"}


def grouped(task: str, items: list[dict]) -> list[dict]:
    """As an object keyed by label gives them back: those of a label together, and arguments of a role."""
    if task == "EE":
        items = [{**item, "arguments": first_together(item["arguments"], "role")} for item in items]
    return first_together(items, LABEL[task])


def first_together(rows: list[dict], key: str) -> list[dict]:
    order = list(dict.fromkeys(row[key] for row in rows))
    return sorted(rows, key=lambda row: order.index(row[key]))


@pytest.mark.parametrize(("task", "form"), PAIRS)
def test_any_names_come_back_from_every_form(task, form):
    @settings(max_examples=60)
    @given(
        st.lists(ITEMS[task], max_size=4, unique_by=lambda item: json.dumps(item, sort_keys=True)),
        st.sampled_from(LANGUAGES),
        st.lists(NAMES, max_size=2),
        st.booleans(),
    )
    def check(items, language, others, with_labels):
        answer = write_answer(task, items, form, language)
        labels = [item[LABEL[task]] for item in items] + others
        parsed = parse(task, answer, labels if with_labels or form == "hash-type-first" else [])
        expected = grouped(task, items) if form.startswith("iepile") else items
        assert (parsed.items, parsed.readable, parsed.repairs) == (expected, True, [])

    check()


@pytest.mark.parametrize(("task", "form"), PAIRS)
def test_repeated_items_come_back_and_are_told(task, form):
    label = SCHEMA["EE"][0]["type"] if task == "EE" else SCHEMA[task][0]
    item = {
        "NER": {"text": "Rome", "type": label},
        "RE": {"head": "Rome", "relation": label, "tail": "Italy"},
        "EE": {"type": label, "trigger": "went", "arguments": [{"text": "Ann", "role": "who"}] * 2},
    }[task]
    parsed = parse(task, write_answer(task, [item, item], form), [label])
    assert (parsed.items, parsed.repairs) == ([item, item], ["repeated"])


def test_a_name_is_quoted_only_where_a_mark_is_in_the_way():
    def written(name, form="tuple"):
        return write_answer("NER", [{"text": name, "type": "place"}], form)

    assert written("Baden-Baden") == "(Baden-Baden,place)"
    assert written("Georgia (country)") == "(Georgia (country),place)"
    assert written("2001: A Space Odyssey; part #2") == "(2001: A Space Odyssey; part #2,place)"
    assert written("《红楼梦》", "full-width") == "（《红楼梦》，place）"
    assert written("Washington, D.C.") == '("Washington, D.C.",place)'
    assert written("a) b") == '("a) b",place)'
    assert written("NAN") == '("NAN",place)'


EVENT = {
    "type": "旅行",
    "trigger": "去",
    "arguments": [{"text": "安娜", "role": "人员"}, {"text": "罗马", "role": "地点"}],
}


@pytest.mark.parametrize(
    ("task", "form", "answer"),
    [
        ("NER", "full-width", "（罗马，地点）\n（安娜，人物）"),
        ("NER", "angle", "<罗马, 地点>\n<安娜, 人物>"),
        ("NER", "iepile", '{"地点": ["罗马"], "人物": ["安娜"]}'),
        ("RE", "square", "[罗马,位于,意大利]\n[米兰,位于,意大利]"),
        ("RE", "curly-joined", "{罗马,位于,意大利}{米兰,位于,意大利}"),
        ("RE", "labelled", "位于：罗马,意大利\n位于：米兰,意大利"),
        ("RE", "sentence", "输入中包含的关系三元组是：位于：罗马，意大利；位于：米兰，意大利"),
        (
            "RE",
            "iepile",
            '{"位于": [{"subject": "罗马", "object": "意大利"}, {"subject": "米兰", "object": "意大利"}]}',
        ),
        ("EE", "tuple", "(去,旅行,[(安娜,人员),(罗马,地点)])"),
        ("EE", "angle", "<旅行, 去, 人员#安娜; 地点#罗马>"),
        ("EE", "hash", "(去,旅行,安娜#人员;罗马#地点)"),
        ("EE", "hash-type-first", "(旅行, 去, 安娜#人员; 罗马#地点)"),
        ("EE", "iepile", '{"旅行": [{"trigger": "去", "arguments": {"人员": "安娜", "地点": "罗马"}}]}'),
    ],
)
def test_forms_look_as_the_released_models_were_taught(task, form, answer):
    items = {
        "NER": [{"text": "罗马", "type": "地点"}, {"text": "安娜", "type": "人物"}],
        "RE": [{"head": head, "relation": "位于", "tail": "意大利"} for head in ("罗马", "米兰")],
        "EE": [EVENT],
    }[task]
    assert write_answer(task, items, form, "chinese") == answer


def test_iepile_answers_name_every_label_of_the_schema():
    schema = [{"type": "旅行", "roles": ["人员", "地点", "时间"]}, {"type": "结婚", "roles": ["人员"]}]
    written = json.loads(write_answer("EE", [EVENT], "iepile", schema=schema))
    assert written["旅行"][0]["arguments"] == {"人员": "安娜", "地点": "罗马", "时间": "NAN"}
    assert written["结婚"] == []
    assert parse("EE", json.dumps(written)).items == [EVENT]


@pytest.mark.parametrize(("task", "form"), PAIRS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_an_instruction_names_every_label_and_the_form(task, form, language):
    labels = ["trip", "who", "where"] if task == "EE" else SCHEMA[task]
    for variant, wording in enumerate(WORDINGS):
        text = render(task, SCHEMA[task], form, language, variant)
        assert all(label in text for label in labels), wording
        assert DATA["asked"][language][task][form] in text
        assert not any(f"{{{gap}}}" in text for gap in ("schema", "form", "example", "nothing"))


@pytest.mark.parametrize(("task", "form"), PAIRS)
def test_the_example_in_an_instruction_parses_without_repair(task, form):
    text = render(task, SCHEMA[task], form, "english", WORDINGS.index("example"))
    parsed = parse(task, text.split("for example:\n")[1], SCHEMA[task])
    assert len(parsed.items) == len(SCHEMA[task]) and not parsed.repairs


@pytest.mark.parametrize(("task", "form"), PAIRS)
def test_the_words_for_nothing_parse_as_nothing(task, form):
    text = render(task, SCHEMA[task], form, "english", WORDINGS.index("nothing"))
    parsed = parse(task, text.rsplit(" ", 1)[1].removesuffix("."), SCHEMA[task])
    assert parsed.readable and not parsed.items


def test_every_task_and_language_has_every_wording_once():
    for task in TASKS:
        for language in LANGUAGES:
            assert tuple(DATA["wordings"][language][task]) == WORDINGS
            assert len(set(INSTRUCTIONS[task, language])) == len(WORDINGS)
            assert set(DATA["asked"][language][task]) == set(forms_of(task))


def test_a_label_with_a_mark_of_the_list_is_quoted_in_it():
    assert ': "works, novels", person (real). ' in render("NER", ["works, novels", "person (real)"])
    assert '"省、市"、人物' in render("NER", ["省、市", "人物"], language="chinese")
    for schema in (["works, novels", 'so-called "novels"', '"'], [{"type": "a, b", "roles": ["c, d", "e"]}]):
        assert read_instruction(render("NER" if schema[1:] else "EE", schema))["schema"] == schema


def test_the_first_wordings_stay_as_models_were_tuned_on_them():
    assert render("NER", ["person"]) == (
        "Find the entities of these types in the input: person. Answer as (entity,type), one a line."
    )
    assert render("RE", ["位于"], "tuple", "chinese", 1) == (
        "关系：位于。列出输入陈述的这些关系的全部三元组。每行一个，写成(头实体,关系,尾实体)。"
    )
    assert (
        render("NER", ["地点"], "json", "chinese", 2) == '输入里哪些词语属于地点？写成由{"text","type"}组成的JSON列表。'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("XY", ["a"]), "no task XY; tasks are NER, RE, EE"),
        (("NER", ["a"], "sentence"), "NER answers have no form sentence; their forms are tuple, json"),
        (("NER", ["a"], "tuple", "latin"), "languages are english, chinese"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        render(*arguments)


def test_every_form_belongs_to_a_task():
    assert set(FORMS) == {form for _, form in PAIRS}
