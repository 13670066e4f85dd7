import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.extraction.forms import FORMS, INSTRUCTIONS, TASKS, render, write_answer
from knowlm.extraction.parsing import parse

NAMES = st.text(alphabet="abAB 12.·中文李白’-", min_size=1, max_size=12).filter(lambda s: s.strip("\"'’ ") == s)
LABELS = st.sampled_from(["place", "人物", "located in", "出生地"])
ITEMS = {
    "NER": st.fixed_dictionaries({"text": NAMES, "type": LABELS}),
    "RE": st.fixed_dictionaries({"head": NAMES, "relation": LABELS, "tail": NAMES}),
    "EE": st.fixed_dictionaries(
        {
            "type": LABELS,
            "trigger": NAMES,
            "arguments": st.lists(
                st.fixed_dictionaries({"text": NAMES.filter(lambda s: s != "NAN"), "role": LABELS}), max_size=3
            ),
        }
    ),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_back(task, form):
    @given(st.lists(ITEMS[task], max_size=4, unique_by=lambda item: json.dumps(item, sort_keys=True)))
    def check(items):
        parsed = parse(task, write_answer(task, items, form))
        assert parsed.readable
        assert parsed.items == items

    check()


PARIS = {"head": "Paris", "relation": "country", "tail": "France"}


@pytest.mark.parametrize(
    "answer",
    [
        "(Paris,country,France)",
        "（Paris，country，France）",
        "[Paris,country,France]",
        "<Paris, country, France>",
        "{Paris,country,France}",
        "[{'head': 'Paris', 'relation': 'country', 'tail': 'France'}]",
        '{"head": "Paris", "relation": "country", "tail": "France"}',
        '{"country": [{"subject": "Paris", "object": "France"}]}',
        "Sure: (Paris,country,France)\n(Lyon,coun",
    ],
)
def test_a_triple_is_read_in_every_bracket_and_as_json(answer):
    assert parse("RE", answer).items == [PARIS]


def test_an_event_is_read_with_its_arguments():
    event = {
        "type": "旅行",
        "trigger": "去",
        "arguments": [{"text": "John", "role": "人员"}, {"text": "洛杉矶", "role": "地点"}],
    }
    assert parse("EE", "(去,旅行,[(John,人员),(洛杉矶,地点)])").items == [event]


def test_a_name_may_hold_a_comma_when_the_labels_are_known():
    assert parse("RE", "(Washington, D.C.,country,U.S.)", ["country"]).items[0]["head"] == "Washington, D.C."
    assert parse("NER", "(Washington, D.C.,place)").items == [{"text": "Washington, D.C.", "type": "place"}]


@pytest.mark.parametrize("answer", ["", "NAN", "[]", " NAN. "])
def test_nothing_found_is_readable(answer):
    assert parse("RE", answer).readable and parse("RE", answer).items == []


def test_prose_is_unreadable():
    assert not parse("RE", "Paris is in France.").readable


@given(st.sampled_from(TASKS), st.text(alphabet="([{<>}])（）《》,，:'\"\\ab中\n0", max_size=300))
def test_parsing_never_raises(task, answer):
    parse(task, answer)


def test_parsing_a_runaway_answer_ends():
    for answer in ("(" * 200_000, "[[" * 100_000, "(a,b,c)" * 50_000, '{"a":' * 50_000):
        parse("RE", answer)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("language", ["english", "chinese"])
def test_an_instruction_names_every_label(task, language):
    schema = [{"type": "trip", "roles": ["who", "where"]}] if task == "EE" else ["place", "person"]
    for variant in range(len(INSTRUCTIONS[task, language])):
        text = render(task, schema, "tuple", language, variant)
        assert all(label in text for label in (["trip", "who", "where"] if task == "EE" else schema))
