"""Answers as chat models write them, in forms that nobody asked for."""

import pytest

from knowlm.extraction.forms import forms_of, write_answer
from knowlm.extraction.parsing import parse

ANN_ROME = [("Ann", "person"), ("Rome", "place")]
PARIS = [("Paris", "country", "France")]
EVENT = [{"type": "Attack", "roles": ["attacker", "place"]}]


@pytest.mark.parametrize(
    ("answer", "entities"),
    [
        ("Ann: person\nRome: place", ANN_ROME),
        ("- **person**: Ann\n- **place**: Rome", ANN_ROME),
        ("Ann,person\nRome,place", ANN_ROME),
        ("Ann (person), Rome (place)", ANN_ROME),
        ("| Entity | Type |\n|---|---|\n| Ann | person |\n| Rome | place |", ANN_ROME),
        ("Entity: Ann, Type: person\nEntity: Rome, Type: place", ANN_ROME),
        ("(实体：Ann，类型：person)(实体：Rome，类型：place)", ANN_ROME),
        ('{"Ann":"person","Rome":"place"}', ANN_ROME),
        ('"[[\\"Ann\\",\\"person\\"],[\\"Rome\\",\\"place\\"]]"', ANN_ROME),
        ("&lt;Ann, person&gt;&lt;Rome, place&gt;", ANN_ROME),
        ("(AT&amp;T,person)", [("AT&amp;T", "person")]),
        ("('O'Brien','person')", [("O'Brien", "person")]),
        ("(Ann,person)\n(Rome,place", ANN_ROME),
        ("Ann,person)\n(Rome,place)", ANN_ROME),
        ('{"person":["NAN"],"place":["Rome"]}', ANN_ROME[1:]),
        ('{"person":"None","place":null}', []),
        ("（）", []),
    ],
)
def test_entities_are_read_as_a_reader_would(answer, entities):
    parsed = parse("NER", answer, ["person", "place"])
    assert ([(item["text"], item["type"]) for item in parsed.items], parsed.readable) == (entities, True)


@pytest.mark.parametrize(
    ("answer", "triples"),
    [
        ("Paris, country, France", PARIS),
        ("Head: Paris\nRelation: country\nTail: France", PARIS),
        ("(Paris; country; France)", PARIS),
        ('{"country":[["Paris","France"]]}', PARIS),
        ('{"triples":[["Paris","country","France"]]}', PARIS),
        ('{"country":[{"subject":"Paris","object":["France","EU"]}]}', [*PARIS, ("Paris", "country", "EU")]),
        ('{"country":[{"subject":"NAN","object":"NAN"}]}', []),
        ('[{"head":"NAN","relation":"country","tail":"France"}]', [("NAN", "country", "France")]),
    ],
)
def test_triples_are_read_as_a_reader_would(answer, triples):
    parsed = parse("RE", answer, ["country"])
    assert ([tuple(item.values()) for item in parsed.items], parsed.readable) == (triples, True)


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        ("<Attack, hit, place#Washington, D.C.; attacker#Ann>", [("Washington, D.C.", "place"), ("Ann", "attacker")]),
        ("<Attack, hit, attacker：Ann>", [("Ann", "attacker")]),
        ("[{'type':'Attack','trigger':'hit','arguments':[('Ann','attacker')]}]", [("Ann", "attacker")]),
        ('[{"type":"Attack","trigger":"hit","attacker":"Ann"}]', [("Ann", "attacker")]),
        ('["(hit,Attack,[(Ann,attacker)])"]', [("Ann", "attacker")]),
        ("(hit,Attack", []),
    ],
)
def test_arguments_are_read_as_a_reader_would(answer, arguments):
    [event] = parse("EE", answer, EVENT).items
    assert (event["type"], event["trigger"]) == ("Attack", "hit")
    assert [(argument["text"], argument["role"]) for argument in event["arguments"]] == arguments


@pytest.mark.parametrize("form", forms_of("NER"))
def test_an_entity_that_is_called_nan_comes_back_from_every_form(form):
    entity = {"text": "NAN", "type": "person"}
    assert parse("NER", write_answer("NER", [entity], form, schema=["person"]), ["person"]).items == [entity]


@pytest.mark.parametrize("form", forms_of("RE"))
def test_a_triple_of_something_called_nan_comes_back_from_every_form(form):
    triple = {"head": "NAN", "relation": "country", "tail": "France"}
    assert parse("RE", write_answer("RE", [triple], form, schema=["country"]), ["country"]).items == [triple]


@pytest.mark.parametrize("piece", ["（）", "a (place), ", "a,b)", "|a|b", ",'a'a", "#,;", "head: a, "])
@pytest.mark.parametrize("task", ["NER", "RE", "EE"])
def test_ten_thousand_marks_of_other_forms_give_no_more_items_than_marks(task, piece):
    assert len(parse(task, piece * 10_000, ["place"]).items) <= 10_000
