import json

import pytest

from knowlm.extraction.forms import WORDINGS, forms_of, render
from knowlm.extraction.schemas import read_schema
from knowlm.prompts import Prompter

SCRIPT = "examples/ie_prompt.py"


@pytest.mark.parametrize(
    "written",
    ["person,place", "person，place", "person、place", '["person", "place"]', "person\nplace\n"],
)
def test_a_schema_is_read_from_the_command_line_and_from_a_file(tmp_path, written):
    file = tmp_path / "labels"
    file.write_text(written, encoding="utf-8")
    assert read_schema("NER", written) == read_schema("NER", str(file)) == ["person", "place"]


@pytest.mark.parametrize(
    "written", ["trip:who/where", "trip：who／where", '[{"type": "trip", "roles": ["who", "where"]}]']
)
def test_an_event_schema_has_roles(written):
    assert read_schema("EE", written) == [{"type": "trip", "roles": ["who", "where"]}]


def test_an_event_type_may_say_that_it_has_no_roles():
    assert read_schema("EE", '[{"type": "rain", "roles": []}]') == [{"type": "rain", "roles": []}]


@pytest.mark.parametrize(
    ("task", "written", "message"),
    [
        ("NER", "[]", "names no label"),
        ("NER", '["a", 1]', "1 is no label"),
        ("NER", '["a"', "is not JSON"),
        ("NER", "[" * 100_000, "is not JSON"),
        ("EE", "trip", "needs its roles"),
        ("EE", '[{"type": "trip"}]', "needs its roles"),
        ("EE", '[{"type": "trip", "roles": "who"}]', "must be a list"),
        ("EE", '[{"type": "trip", "roles": [1]}]', "1 is no label"),
    ],
)
def test_a_wrong_schema_is_refused(task, written, message):
    with pytest.raises(ValueError, match=message):
        read_schema(task, written)


def test_a_label_given_twice_is_asked_for_once():
    assert read_schema("NER", "person,place,person") == ["person", "place"]
    events = read_schema("EE", "trip:place/time,trip:place/traveller")
    assert events == [{"type": "trip", "roles": ["place", "time", "traveller"]}]


def test_all_wordings_of_a_form_are_printed(run_script):
    result = run_script(SCRIPT, "--task", "RE", "--schema", "country", "--form", "curly")
    assert result.stdout == "".join(
        render("RE", ["country"], "curly", variant=variant) + "\n" for variant in range(len(WORDINGS))
    )


def test_the_whole_prompt_is_printed_for_a_text(run_script):
    result = run_script(SCRIPT, "--task", "NER", "--schema", "place", "--variant", "role", "--input", "Ann is in Rome.")
    asked = render("NER", ["place"], variant=WORDINGS.index("role"))
    assert result.stdout == Prompter().prompt(asked, "Ann is in Rome.") + "\n"


def test_without_a_task_every_task_is_shown_in_both_languages(run_script):
    assert len(run_script(SCRIPT, "--variant", "0").stdout.splitlines()) == 6


def test_answers_are_read_back_with_their_repairs(run_script, tmp_path):
    (tmp_path / "answers.jsonl").write_text(
        '{"id": 7, "output": "(Rome,place)\\n(Mil"}\n{"id": 8, "output": "\\ud83d?"}\n'
    )
    result = run_script(SCRIPT, "--task", "NER", "--schema", "place", "--parse", "answers.jsonl")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (
        first["id"] == 7 and first["items"] == [{"text": "Rome", "type": "place"}] and first["repairs"] == ["cut off"]
    )
    assert second == {"id": 8, "output": "\ud83d?", "items": [], "readable": False, "repairs": []}


def test_a_plain_text_is_one_answer(run_script, tmp_path):
    (tmp_path / "answer.txt").write_text("1. (Rome,place)\n2. (Milan,place)\n")
    result = run_script(SCRIPT, "--task", "NER", "--parse", "answer.txt")
    assert [item["text"] for item in json.loads(result.stdout)["items"]] == ["Rome", "Milan"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "NER", "--schema", "a", "--form", "hash"], f"no form of NER: {', '.join(forms_of('NER'))}"),
        (["--form", "hash"], "give --task"),
        (["--variant", "99"], f"0 to {len(WORDINGS) - 1}"),
        (["--parse", "x"], "--parse needs --task"),
        (["--task", "NER", "--parse", "x", "--input", "y"], "give one of them"),
        (["--task", "NER"], "go together"),
    ],
)
def test_a_wrong_command_is_one_line_and_code_2(run_script, arguments, message):
    result = run_script(SCRIPT, *arguments)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
