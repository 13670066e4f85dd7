import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.extraction.cases import case_of_row, row_of
from knowlm.extraction.forms import LABELS_AT_ONCE, WORDINGS, forms_of, render
from knowlm.extraction.label_batches import batched, confusable, label_of
from knowlm.extraction.published_data import CHATS, convert_chat, read_chat, read_iepile, write_chat, write_iepile
from knowlm.files import locked

NER = {
    "id": "1",
    "task": "NER",
    "language": "english",
    "schema": ["person", "place", "animal"],
    "input": "Ann met Bob in Rome.",
    "gold": [{"text": "Ann", "type": "person"}, {"text": "Bob", "type": "person"}, {"text": "Rome", "type": "place"}],
}
RE = {
    "id": "2",
    "task": "RE",
    "language": "chinese",
    "schema": ["首都", "位于"],
    "input": "巴黎是法国的首都，位于塞纳河畔。",
    "gold": [
        {"head": "法国", "relation": "首都", "tail": "巴黎"},
        {"head": "巴黎", "relation": "位于", "tail": "塞纳河畔"},
    ],
}
EE = {
    "id": "3",
    "task": "EE",
    "language": "english",
    "schema": [{"type": "trip", "roles": ["who", "where", "when"]}, {"type": "birth", "roles": ["child"]}],
    "input": "Ann and Bob flew to Rome.",
    "gold": [
        {
            "type": "trip",
            "trigger": "flew",
            "arguments": [
                {"text": "Ann", "role": "who"},
                {"text": "Bob", "role": "who"},
                {"text": "Rome", "role": "where"},
            ],
        }
    ],
}
CASES = [NER, RE, EE]


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def convert(run_script, tmp_path):
    """``convert(records, source, to, *flags)``: the records of the output."""

    def call(records, source, to, *flags, suffix=".jsonl"):
        output = tmp_path / f"{to}{suffix}"
        given = write(tmp_path / "given.jsonl", records)
        flags = ("--from", source, "--to", to, "--output", output, *flags)
        result = run_script("finetune/convert_data.py", "--input", given, *flags)
        assert result.returncode == 0, result.stderr
        return read(output)

    return call


@pytest.mark.parametrize("kind", ["iepile", "alpaca"])
def test_cases_come_back_from_forms_with_a_schema(convert, kind):
    there = convert(CASES, "cases", kind, suffix=".json")
    back = convert(there, kind, "cases")
    assert [case | {"id": ""} for case in back] == [case | {"id": ""} for case in CASES]


def test_relations_come_back_from_forms_of_relations(convert):
    for kind in ("instructie", "ccks"):
        back = convert(convert([RE], "cases", kind), kind, "cases")
        assert [(case["input"], case["gold"]) for case in back] == [(RE["input"], RE["gold"])]


def test_of_records_with_typed_relations_the_relations_alone_become_ccks(convert):
    relation = {"head": "Ann", "head_type": "person", "relation": "child", "tail": "Bo", "tail_type": "person"}
    record = {"id": "1", "cate": "person", "text": "Ann is Bo's mother.", "relation": [relation]}
    assert [row["kg"] for row in convert([record], "instructie", "ccks", "--tasks", "RE")] == [[["Ann", "child", "Bo"]]]


def test_one_text_has_one_annotated_record(convert):
    both = [NER, {**RE, "language": "english", "input": NER["input"], "schema": ["met"]}]
    both[1]["gold"] = [{"head": "Ann", "relation": "met", "tail": "Bob"}]
    (record,) = convert(both, "cases", "instructie")
    assert record["relation"] == [
        {"head": "Ann", "head_type": "person", "relation": "met", "tail": "Bob", "tail_type": "person"}
    ]
    assert len(record["entity"]) == 3


def test_a_text_without_any_label_makes_no_instruction(convert):
    records = [{"id": n, "text": "Ann in Rome", "relation": found} for n, found in enumerate(([], RE["gold"]))]
    assert [record["id"] for record in convert(records, "instructie", "instructie")] == ["0", "1"]  # also of one text
    for kind in ("alpaca", "iepile"):
        (row,) = convert(records, "instructie", kind)
        assert "首都" in row["instruction"]


def test_iepile_as_published_is_read(convert):
    asked = {"instruction": "You are …", "schema": ["children", "company"], "input": "Ann's son Bob."}
    answer = {"children": [{"subject": "Ann", "object": "Bob"}], "company": []}
    record = {"task": "RE", "source": "NYT11", "instruction": json.dumps(asked), "output": json.dumps(answer)}
    (case,) = convert([record], "iepile", "cases")
    assert case["gold"] == [{"head": "Ann", "relation": "children", "tail": "Bob"}]
    assert (case["schema"], case["source"]) == (["children", "company"], "NYT11")


def test_iepile_records_without_a_task_and_with_descriptions_or_no_json_for_nothing_are_read():
    names = {"instruction": {"schema": {"person": "of any age"}, "input": "Ann"}, "output": '{"person": ["Ann"]}'}
    (case,) = read_iepile(names, 1)
    assert (case["task"], case["schema"]) == ("NER", ["person"])
    assert case["gold"] == [{"text": "Ann", "type": "person"}]
    for nothing in ("NAN", ""):
        (case,) = read_iepile(names | {"task": "NER", "output": nothing}, 1)
        assert case["gold"] == []


def test_iepile_writes_nan_for_a_missing_argument_and_a_list_for_several():
    answer = json.loads(write_iepile(EE)["output"])
    assert answer["trip"] == [{"trigger": "flew", "arguments": {"who": ["Ann", "Bob"], "where": "Rome", "when": "NAN"}}]
    assert answer["birth"] == []


def test_ccks_tells_its_relations_in_the_instruction(convert):
    instruction = "抽取实体类型为{'专业','时间'},关系类型为{'国家','属于','参加'},以(头实体,关系,尾实体)的形式回答"
    record = {
        "id": 7,
        "cate": "人物",
        "input": "弗雷泽属于国家队。",
        "instruction": instruction,
        "output": "(弗雷泽,属于,国家队)",
    }
    (case,) = convert([record], "ccks", "cases")
    assert case["schema"] == ["国家", "属于", "参加"] and case["domain"] == "人物"
    assert case["gold"] == [{"head": "弗雷泽", "relation": "属于", "tail": "国家队"}]


@pytest.mark.parametrize("kind", ["sharegpt", "messages"])
def test_rows_and_chats_are_turned_into_each_other(convert, kind):
    rows = [{"instruction": "Say hello.", "input": "", "output": "Hello!"}]
    assert convert(convert(rows, "alpaca", kind), kind, "alpaca") == rows


@pytest.mark.parametrize("kind", ["sharegpt", "messages"])
def test_cases_come_back_from_chats_in_every_wording_and_form(kind):
    for case in (NER | {"input": "Ann met Bob\n\nin Rome."}, RE, EE):
        for form, variant in itertools.product(forms_of(case["task"]), range(len(WORDINGS))):
            row = row_of(case, [form])
            row["instruction"] = render(case["task"], case["schema"], form, case["language"], variant)
            (back,) = read_chat(write_chat(row, CHATS[kind]), 1)
            assert case_of_row(back, case["id"]) == case


TURNS = st.lists(
    st.tuples(st.sampled_from(["system", "human", "gpt", "tool"]), st.text(max_size=9), st.booleans()), max_size=6
)


@given(TURNS, st.dictionaries(st.sampled_from(["id", "source"]), st.text(max_size=5)))
def test_a_chat_comes_back_from_the_other_form_with_every_turn(turns, beside):
    spoken = [{"from": who, "value": text} | ({"weight": 0} if light else {}) for who, text, light in turns]
    chat = {**beside, "conversations": spoken}
    there = convert_chat(chat, CHATS["messages"])
    assert [turn["content"] for turn in there["messages"]] == [text for _, text, _ in turns]
    assert convert_chat(there, CHATS["sharegpt"]) == chat
    assert convert_chat(convert_chat(there, CHATS["sharegpt"]), CHATS["messages"]) == there
    for form in CHATS.values():
        assert list(read_chat(convert_chat(chat, form), 1)) == list(read_chat(chat, 1))


def test_a_chat_is_written_as_one_record_in_the_other_form(convert):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Bye"}]
    (chat,) = convert([{"id": "a", "system": "Be kind.", "conversations": turns}], "sharegpt", "messages")
    said = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    assert chat == {"id": "a", "messages": [{"role": who, "content": text} for who, text in said]}


def test_each_answer_of_a_chat_is_a_row(convert):
    greeting = {"conversations": [{"from": "gpt", "value": "What can I do?"}]}
    turns = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"), ("gpt", "Bye!")]
    chat = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    assert convert([greeting, chat], "sharegpt", "alpaca") == [
        {"instruction": "Hi", "input": "Be kind.", "output": "Hello"},
        {"instruction": "Bye", "input": "Be kind.\nHi\nHello", "output": "Bye!"},
    ]


def test_confusable_labels_are_asked_for_and_empty_examples_are_few(convert):
    records = []
    for number in range(30):
        triples = (
            [("birth place", f"Ann {number}", "Rome")] if number % 3 else [("death place", f"Ann {number}", "Rome")]
        )
        triples = [dict(zip(("relation", "head", "tail"), triple, strict=True)) for triple in triples]
        records.append({"id": number, "text": f"Ann {number} … Rome", "relation": triples})
    for relation in ("employer", "award", "sport", "river", "author", "colour", "genre"):
        records.append({"id": relation, "text": "x", "relation": [{"head": "x", "relation": relation, "tail": "y"}]})
    cases = convert(records, "instructie", "cases", "--ask", "hard")
    assert all(len(case["schema"]) <= 4 for case in cases)
    births = [case for case in cases if "birth place" in case["schema"] or "death place" in case["schema"]]
    assert len(births) >= 30
    asked = {case["id"].split("-")[0]: set() for case in cases}
    for case in cases:
        asked[case["id"].split("-")[0]].update(case["schema"])
    assert all({"birth place", "death place"} <= asked[str(number)] for number in range(30))
    every = convert(records, "instructie", "cases", "--ask", "all", "--empty_share", "2")
    empty = sum(not case["gold"] for case in every)
    assert 0 < empty <= 2 * (len(every) - empty)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from", "alpaca", "--to", "iepile"], "record 1: the instruction isn't one of examples/ie_prompt.py's"),
        (["--from", "ccks", "--to", "cases"], "record 1: lacks 'input'; is --from right?"),
        (["--from", "iepile", "--to", "cases"], "record 1: Expecting value"),
    ],
)
def test_a_record_of_another_form_is_named(run_script, tmp_path, flags, message):
    given = write(tmp_path / "given.jsonl", [{"instruction": "Say hello.", "output": "Hello"}])
    result = run_script("finetune/convert_data.py", "--input", given, *flags, "--output", tmp_path / "out.jsonl")
    assert result.returncode == 1
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


ASKED = {"input": "Ann", "instruction": render("NER", ["person"])}


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        (ASKED | {"output": "I don't know."}, "alpaca", "record 1: its answer \"I don't know.\" can't be read"),
        (ASKED | {"output": "see kg", "kg": []}, "ccks", "record 1: its answer 'see kg' can't be read"),
        (ASKED, "ccks", "record 1: lacks 'output'"),
        ({"instruction": {"schema": ["a"], "input": "x"}, "output": '{"a": []}'}, "iepile", "record 1: has no task"),
    ],
)
def test_an_answer_that_can_not_be_read_is_not_taken_for_none(run_script, tmp_path, record, kind, message):
    given = write(tmp_path / "given.jsonl", [record])
    flags = ["--input", given, "--from", kind, "--to", "cases", "--output", tmp_path / "out.jsonl"]
    result = run_script("finetune/convert_data.py", *flags)
    assert result.returncode == 1 and message in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("table", [["a"], {"a": "b"}, {"NER": {"a": 1}}])
def test_a_table_of_confusable_labels_that_is_none_is_refused(run_script, tmp_path, table):
    (tmp_path / "table.json").write_text(json.dumps(table))
    given = write(tmp_path / "given.jsonl", [NER])
    flags = ["--from", "cases", "--to", "alpaca", "--ask", "hard", "--hard_negatives", tmp_path / "table.json"]
    result = run_script("finetune/convert_data.py", "--input", given, *flags, "--output", tmp_path / "out.jsonl")
    assert result.returncode == 1
    assert "table.json: is no table of labels" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def test_a_table_of_confusable_labels_is_read_by_task_and_source(convert, tmp_path):
    (tmp_path / "table.json").write_text(json.dumps({"NER": {"source": {"person": ["animal"]}, "place": ["person"]}}))
    (case,) = convert([NER], "cases", "cases", "--ask", "hard", "--hard_negatives", tmp_path / "table.json")
    assert set(case["schema"]) == {"person", "place", "animal"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "record 1: lacks 'instruction'; is --from right?"),
        ({"instruction": "a", "output": ["b"]}, "record 1: instruction, input and output must be texts"),
    ],
)
def test_what_is_no_row_is_not_written_as_one(run_script, tmp_path, record, message):
    given = write(tmp_path / "given.jsonl", [record])
    flags = ["--input", given, "--from", "alpaca", "--to", "sharegpt", "--output", tmp_path / "out.jsonl"]
    result = run_script("finetune/convert_data.py", *flags)
    assert result.returncode == 1 and message in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_two_commands_do_not_write_one_file_at_once(run_script, tmp_path):
    given = write(tmp_path / "given.jsonl", [NER])
    flags = ["--input", given, "--from", "cases", "--to", "iepile", "--output", tmp_path / "out.jsonl"]
    with locked(tmp_path / "out.jsonl"):
        result = run_script("finetune/convert_data.py", *flags)
    assert result.returncode == 1 and "out.jsonl: another command is writing it" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


names = st.text(st.characters(categories=["L"]), min_size=1, max_size=6)


@given(st.lists(names, min_size=1, max_size=15, unique=True), st.data())
def test_batches_hold_every_item_once_and_each_label_at_most_once(schema, data):
    gold = [{"text": "x", "type": kind} for kind in data.draw(st.lists(st.sampled_from(schema), max_size=5))]
    case = NER | {"schema": schema, "gold": gold}
    for every_label in (True, False):
        batches = batched(case, schema, confusable({label: set() for label in schema}), 0, every_label)
        asked = [label for batch in batches for label in batch["schema"]]
        assert len(set(asked)) == len(asked) and max(len(batch["schema"]) for batch in batches) <= LABELS_AT_ONCE["NER"]
        assert not every_label or sorted(asked) == sorted(schema)
        kept = [item for batch in batches for item in batch["gold"]]
        assert sorted(kept, key=str) == sorted(gold, key=str)
        assert all(label_of(item, "NER") in batch["schema"] for batch in batches for item in batch["gold"])


@given(st.sampled_from(CASES), st.integers(0, 99))
def test_a_row_tells_its_case(case, seed):
    assert case_of_row(row_of(case, wordings=2, seed=seed), case["id"]) == case


@given(st.sampled_from(CASES))
def test_iepile_tells_its_case(case):
    assert list(read_iepile(write_iepile(case), 1)) == [case]
