import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.extraction.forms import TASKS, forms_of, write_answer
from knowlm.extraction.parsing import REPAIRS, parse

PARIS = {"head": "Paris", "relation": "country", "tail": "France"}
LYON = {"head": "Lyon", "relation": "country", "tail": "France"}
TRIP = {
    "type": "trip",
    "trigger": "went",
    "arguments": [{"text": "Ann", "role": "who"}, {"text": "Rome", "role": "where"}],
}
RECORD = '{"head": "Paris", "relation": "country", "tail": "France"}'
SECOND = '{"head": "Lyon", "relation": "country", "tail": "France"}'


@pytest.mark.parametrize(
    ("answer", "repairs"),
    [
        ("(Paris,country,France)", []),
        ("（Paris，country，France）", []),
        ("[Paris,country,France]", []),
        ("<Paris, country, France>", []),
        ("{Paris,country,France}", []),
        (" ( Paris , country ,France )", []),
        ('("Paris","country","France")', []),
        ("[(Paris,country,France)]", []),
        ("country：Paris，France。", []),
        ("输入中包含的关系三元组是：\n[Paris,country,France]", []),
        (RECORD, []),
        ('{"country": [{"subject": "Paris", "object": "France"}]}', []),
        ('{"country": {"head": "Paris", "tail": "France"}}', []),
        ('{"relations": [' + RECORD + "]}", []),
        ('{"head": {"text": "Paris", "start": 0}, "relation": "country", "tail": {"text": "France"}}', []),
        ("[{'head': 'Paris', 'relation': 'country', 'tail': 'France'}]", ["single quotes"]),
        ("('Paris', 'country', 'France')", ["single quotes"]),
        ("（Paris,country，France)", ["full-width marks"]),
        ("[{“head”：“Paris”，“relation”：“country”，“tail”：“France”}]", ["full-width marks"]),
        ("[Paris,country,France)", ["mixed brackets"]),
        ("(Paris,country,France>", ["mixed brackets"]),
        ("[" + RECORD, ["cut off"]),
        (RECORD[:-1], ["cut off"]),
        (RECORD[1:], ["unbalanced brackets"]),
        ("[" + RECORD[1:] + "]", ["unbalanced brackets"]),
        ("[" + RECORD + ", " + SECOND[:30], ["cut off"]),
        ("[" + RECORD + ", " + SECOND[:-3], ["cut off"]),
        ("(Paris,country,France)\n(Lyon,country,Fra", ["cut off"]),
        ('("Paris","country","France"', ["cut off"]),
        ("(Paris,country,France)\n(Paris,country,France)\n", ["repeated"]),
        (RECORD + "\n" + RECORD, ["several values", "repeated"]),
        ("[" + RECORD + "][" + RECORD + "]", ["several values", "repeated"]),
        ("[" + RECORD + ",]", ["trailing comma"]),
        ("[" + RECORD[:-1] + "]", ["unbalanced brackets"]),
        ('{"head": "Paris" "relation": "country", "tail": "France"}', ["missing comma"]),
        ("```json\n[" + RECORD + "]\n```", ["code fence"]),
        ("```\n(Paris,country,France)\n```", ["code fence"]),
        ("Sure! Here it is:\n(Paris,country,France)\nAnything else?", ["text around"]),
        ("Sure: " + RECORD, ["text around"]),
        ("1. (Paris,country,France)", ["list marks"]),
        ("- country: Paris, France", ["list marks"]),
        ("(Paris,country,France)</s>", ["special tokens"]),
        ("<s>(Paris,country,France)<|im_end|>\n(Rome,country,Italy)", ["special tokens", "text around"]),
        ("### Instruction:\nFind (a,b,c).\n\n### Response:\n(Paris,country,France)", ["prompt echoed"]),
        ("(Paris,country,France)\n\n### Instruction:\nNow (a,b,c)\n\n### Response:\n(d,e,f)", ["prompt echoed"]),
        ("(Paris,\u200bcountry,France)", ["invisible characters"]),
        ("(Paris,country,France)\r\n(Paris,country,France)", ["line ends", "repeated"]),
        ('{"主体": "Paris", "关系": "country", "客体": "France"}', ["other keys"]),
        ('{"头实体": "Paris", "Relation Type": "country", "尾实体": "France"}', ["other keys"]),
        ('{"head": "Paris", "relation": "country"}\n' + RECORD, ["several values", "incomplete item"]),
    ],
)
def test_a_triple_is_read_from_every_form_and_damage_and_the_repairs_are_named(answer, repairs):
    parsed = parse("RE", answer)
    expected = [PARIS] * (2 if "repeated" in repairs else 1)
    assert (parsed.items, parsed.readable, parsed.repairs) == (expected, True, repairs)


@pytest.mark.parametrize(
    ("answer", "repairs"),
    [
        ("(Paris,country,France(Lyon,country,France))", ["unbalanced brackets"]),
        ("(Paris,country,France\n(Lyon,country,France)", ["unbalanced brackets"]),
        ("[(Paris,country,France),\n(Lyon,country,France)]", []),
        ("[Paris,country,France],[Lyon,country,France),(Lyon,coun", ["mixed brackets", "cut off"]),
        ("[['Paris','country','France'],['Lyon','country','France']]", ["single quotes"]),
        (RECORD + "\n" + SECOND, ["several values"]),
        ("* country: Paris, France\n* country: Lyon, France", ["list marks"]),
        ("(Paris,country,France) and (Lyon,country,France).", []),
        ("Facts: (Paris,country,France), (Lyon,country,France) 农业贷款（甲，乙，丙）", ["text around"]),
    ],
)
def test_several_triples_are_told_apart(answer, repairs):
    parsed = parse("RE", answer)
    assert (parsed.items, parsed.repairs) == ([PARIS, LYON], repairs)


@pytest.mark.parametrize(
    ("answer", "labels", "repairs"),
    [
        ("(went,trip,[(Ann,who),(Rome,where)])", [], []),
        ("(went, trip, [(Ann, who), (Rome, where)])", [], []),
        ("(went,trip,(Ann,who),(Rome,where))", [], []),
        ("<trip, went, who#Ann; where#Rome>", [], []),
        ("(went,trip,Ann#who;Rome#where)", [], []),
        ("（went，trip，Ann＃who；Rome＃where）", [], []),
        ("(trip,went,Ann#who;Rome#where)", ["trip"], []),
        ("(trip,went,[(Ann,who),(Rome,where)])", ["trip"], ["label in another place"]),
        ("(went,trip,[(who,Ann),(where,Rome)])", [{"type": "trip", "roles": ["who", "where"]}], [REPAIRS]),
        ("(went,trip,[(Ann,who),(Rome,where),(to", [], ["cut off"]),
        ("<trip, went, who#Ann; where#Rome<birth, born, who#Bo>>", [], ["unbalanced brackets"]),
        ("(went,trip,[(Ann,who),(Rome,where)\n(fell,accident,[", ["trip"], ["unbalanced brackets", "cut off"]),
        ("(went,trip,[(Ann,who),(Rome,where),(NAN,when)])", [], []),
        ('{"trip": [{"trigger": "went", "arguments": {"who": "Ann", "where": ["Rome"], "when": "NAN"}}]}', [], []),
        (
            '{"触发词": "went", "事件类型": "trip", '
            '"论元": [{"论元": "Ann", "角色": "who"}, {"论元": "Rome", "角色": "where"}]}',
            [],
            ["other keys"],
        ),
    ],
)
def test_an_event_is_read_from_every_form_and_damage(answer, labels, repairs):
    parsed = parse("EE", answer, labels)
    assert parsed.items[:1] == [TRIP]
    assert parsed.repairs == (["label in another place"] if repairs == [REPAIRS] else repairs)


@pytest.mark.parametrize(
    ("task", "answer", "labels", "item"),
    [
        ("NER", "(place,Paris)", ["place"], {"text": "Paris", "type": "place"}),
        ("NER", "(place, Washington, D.C.)", ["place"], {"text": "Washington, D.C.", "type": "place"}),
        ("RE", "(country,Paris,France)", ["country"], PARIS),
        ("RE", "(Paris,France,country)", ["country"], PARIS),
        ("RE", "(Paris, France,country,France)", ["country"], {**PARIS, "head": "Paris, France"}),
        ("RE", "see: x: country: Paris, France", ["country"], PARIS),
        ("NER", "place：Paris，Lyon", ["place"], {"text": "Paris", "type": "place"}),
    ],
)
def test_the_schema_tells_which_field_is_the_label(task, answer, labels, item):
    assert parse(task, answer, labels).items[0] == item


def test_an_item_with_a_label_outside_of_the_schema_is_still_an_item():
    assert parse("RE", "(Paris,country,France)", ["spouse"]).items == [PARIS]
    assert parse("RE", RECORD, ["spouse"]).items == [PARIS]


@pytest.mark.parametrize(
    "answer",
    [
        "- spouse: Ann, Bo\n- country: Paris, France",
        "country：Paris，France\nspouse：Ann，Bo",
        "输入中包含的关系三元组是：spouse：Ann，Bo；country：Paris，France。",
    ],
)
def test_a_relation_outside_of_the_schema_is_read_beside_one_of_it(answer):
    items = parse("RE", answer, ["country"]).items
    assert PARIS in items and {"head": "Ann", "relation": "spouse", "tail": "Bo"} in items


def test_a_comma_in_an_entity_is_read_without_a_schema():
    parsed = parse("NER", "(Washington, D.C.,place)")
    assert (parsed.items, parsed.repairs) == ([{"text": "Washington, D.C.", "type": "place"}], ["comma in a name"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("labels", [[], ["country", "place", "trip"]])
@pytest.mark.parametrize(
    "answer",
    [
        "Paris is in France.",
        "Paris (the capital, a large city) lies on the Seine.",
        "The city (old, large, and rich) is known (see below, or above).",
        "巴黎（法国首都，大都会）位于塞纳河畔（全长，约，七百公里）。",
        "I can't tell {because, of, this}.",
        "x < 5, y > 3, and so on",
        "It was a long story, as always: first this, then that.",
        '{"error": "no input"}',
        '{"error": "no input", "code": "3"}',
        '[{"a": "b", "c": "d", "e": "f"}]',
        '{"error": "no input", "code": "3"',
        "No, (I, don't, know) and (neither, do, you).",
        "???",
        "...",
    ],
)
def test_prose_is_unreadable_and_holds_no_items(task, labels, answer):
    parsed = parse(task, answer, labels)
    assert (parsed.items, parsed.readable, parsed.repairs) == ([], False, [])


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "",
            "NAN",
            "[]",
            "{}",
            " NAN. ",
            "nan",
            "无",
            "没有。",
            "```json\n[]\n```",
            "NAN</s>",
            "NAN\nNAN\nNAN",
            "(NAN,NAN,NAN)",
        ),
        *(
            '{"country": []}',
            '{"country": "NAN"}',
            "No relations were found.",
            "输入中没有符合条件的三元组。",
            "NAN 农业贷款",
            "输入中包含的关系三元组是：NAN",
        ),
    ],
)
def test_nothing_found_is_readable(answer):
    parsed = parse("RE", answer)
    assert (parsed.items, parsed.readable) == ([], True)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="no task XY"):
        parse("XY", "")


# Never raising: what is written, broken, joined and mixed at random.
NAMES = [
    "Paris",
    "李白",
    "Washington, D.C.",
    "a(b)",
    '"',
    "NAN",
    "",
    " ",
    "O'Neill",
    "x#y;z",
    "（一）",
    "\n",
    "\\",
    "😀",
    "\ud83d",
]
MARKS = "([{<)]}>（［｛＜）］｝＞【】《》,，:：;；#＃\"'“”‘’\\/|`*-.。 \n\r\t\u200b\u3000\x00\x010aN中"
WORDS = [
    "NAN",
    "</s>",
    "<s>",
    "```json",
    "```",
    "### Response:",
    "### Instruction:",
    "[INST]",
    "<|im_end|>",
    '{"text":',
    "null",
]


def random_items(task: str, random: random.Random) -> list[dict]:
    def name() -> str:
        return random.choice(NAMES) + random.choice(["", random.choice(NAMES)])

    count = random.randint(0, 4)
    if task == "NER":
        return [{"text": name(), "type": name()} for _ in range(count)]
    if task == "RE":
        return [{"head": name(), "relation": name(), "tail": name()} for _ in range(count)]
    return [
        {"type": name(), "trigger": name(), "arguments": [{"text": name(), "role": name()} for _ in range(count)]}
        for _ in range(count)
    ]


def broken_answer(task: str, random: random.Random) -> str:
    """An answer in some form with letters cut, put in, doubled or turned; or marks, words or any letters at all."""
    kind = random.random()
    if kind < 0.1:
        return "".join(random.choices(MARKS, k=random.randint(0, 300)))
    if kind < 0.15:
        return "".join(map(chr, random.choices(range(0x110000), k=random.randint(0, 100))))
    if kind < 0.2:
        return "".join(random.choice([*WORDS, *NAMES, *MARKS]) for _ in range(random.randint(0, 80)))
    if kind < 0.21:
        return "".join(random.choices(MARKS, k=random.randint(1, 4))) * random.randint(1, 3000)
    text = "".join(
        write_answer(
            task, random_items(task, random), random.choice(forms_of(task)), random.choice(["english", "chinese"])
        )
        for _ in range(random.choice([1, 1, 1, 2, 3]))
    )
    for _ in range(random.randint(0, 6)):
        a, b = sorted(random.choices(range(len(text) + 1), k=2))
        change = random.randrange(5)
        if change == 0:
            text = text[:b]
        elif change == 1:
            text = text[:a] + text[min(b, a + 3) :]
        elif change == 2:
            text = text[:a] + random.choice([*MARKS, *WORDS]) + text[a:]
        elif change == 3:
            text = text[:b] + text[a:b] * 2 + text[b:]
        else:
            text = unicodedata.normalize("NFKC", text[:a]) + text[a:].translate(str.maketrans("(,)", "（，）"))
    return text


def check_fuzz(count: int, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(count):
        task = generator.choice(TASKS)
        answer = broken_answer(task, generator)
        parsed = parse(task, answer, generator.choice([[], ["Paris", "李白"], NAMES]))
        assert parsed.readable or not parsed.items
        assert set(parsed.repairs) <= set(REPAIRS)
        for item in parsed.items:
            names = [value for value in item.values() if isinstance(value, str)]
            names += [value for argument in item.get("arguments", ()) for value in argument.values()]
            assert all(name and name == name.strip() for name in names), answer


def test_nothing_raises_on_5000_broken_answers():
    check_fuzz(5_000, seed=1)


@pytest.mark.slow
def test_nothing_raises_on_100000_broken_answers():
    check_fuzz(100_000, seed=2)


@given(st.sampled_from(TASKS), st.text(max_size=300), st.lists(st.text(max_size=3), max_size=2))
def test_parsing_never_raises_on_any_text(task, answer, labels):
    parse(task, answer, labels)


@given(st.sampled_from(TASKS), st.text(alphabet=MARKS, max_size=300))
def test_parsing_never_raises_on_marks(task, answer):
    parse(task, answer, ["a", "中"])


@pytest.mark.parametrize(
    "piece",
    ["(", "[", '{"a":', "(a,", "[[],", "(a,b,[(", '"', "('", "\n(", ")", "a", "</s>", '{"text":"a","type":"b"},'],
)
@pytest.mark.parametrize("length", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_long_run_of_anything_is_read(piece, length):
    pieces = length // len(piece)
    assert len(parse("NER", piece * pieces).items) in (0, 1, pieces)


def test_a_long_answer_is_read_to_its_end():
    items = [{"head": f"head {i}", "relation": "part of", "tail": f"tail {i}"} for i in range(5_000)]
    for form in forms_of("RE"):
        parsed = parse("RE", write_answer("RE", items, form))
        assert (parsed.items, parsed.repairs) == (items, []), form


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_cut_anywhere_gives_only_items_that_were_in_it(task):
    items = {
        "NER": [{"text": "Ann", "type": "who"}, {"text": "Rome", "type": "where"}],
        "RE": [PARIS, LYON],
        "EE": [TRIP],
    }
    for form in forms_of(task):
        answer = write_answer(task, items[task], form)
        for end in range(len(answer)):
            found = parse(task, answer[:end], ["who", "where", "country", "trip"]).items
            if form in ("labelled", "sentence"):  # nothing marks the end of their last name
                found = found[:-1]
            for item in found:
                arguments = item.pop("arguments", [])
                [whole] = [given for given in items[task] if item.items() <= given.items()]
                assert all(argument in whole["arguments"] for argument in arguments), answer[:end]
