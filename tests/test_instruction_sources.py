"""kg2instructions.py as a command, on sources made from packages' own formats."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from knowlm.extraction.cases import row_of
from knowlm.extraction.parsing import parse
from knowlm.files import locked
from knowlm.supervision.case_store import CaseStore, case_row
from knowlm.supervision.gold import case_of
from knowlm.supervision.graph_schema import EVENT, default_schema

REPOSITORY = Path(__file__).resolve().parents[1]
HALF = ("--heldout", "0.5", "--seed", "2")  # by which the few texts here fall on both sides
INDEX = """\
  1 This software and database is being provided
capital_of_france n 1 0 1 0 00000200
city n 1 0 1 0 00000300
country n 1 0 1 0 00000400
france n 1 0 1 0 00000500
paris n 2 0 2 0 00000200 00000600
prince n 1 0 1 0 00000700
"""
DATA = """\
  1 This software and database is being provided
00000200 15 n 02 Paris 0 capital_of_France 0 002 @i 00000300 n 0000 #p 00000500 n 0000 | the largest city of France; "o"
00000300 15 n 01 city 0 000 | a large town
00000400 15 n 01 country 0 000 | a state
00000500 15 n 01 France 0 001 @i 00000400 n 0000 | a country in western Europe; its capital is Paris
00000600 18 n 01 Paris 0 001 @i 00000700 n 0000 | (Greek mythology) the prince who carried Helen away
00000700 18 n 01 prince 0 000 | a son of a king
"""


def script(*arguments, ok=True):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (result.returncode == 0) == ok, result.stderr
    return result


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    (folder / "index.noun").write_text(INDEX)
    (folder / "data.noun").write_text(DATA)
    script("finetune/sources.py", "wordnet", "--path", folder, "--output_dir", folder / "out")
    return folder / "out"


def test_wordnet_glosses_become_instructions(wordnet, tmp_path):
    texts = {row["text"]: row["links"] for row in lines(wordnet / "texts.jsonl")}
    assert texts["Paris: the largest city of France"] == [{"start": 0, "end": 5, "target": "Paris.n.1"}]
    result = script(
        *("finetune/kg2instructions.py", "--texts", wordnet / "texts.jsonl", "--knowledge", wordnet / "graph.jsonl"),
        *("--tasks", "RE", "--relations", "instance_of,part_of", *HALF, "--output_dir", tmp_path / "out"),
    )
    assert "4 of 4 triples matched" in result.stdout
    found = {
        (row["head"], row["relation"], row["tail"])
        for piece in lines(tmp_path / "out/evidence.jsonl")
        for row in piece["triples"]
    }
    assert found == {
        ("Paris.n.1", "instance_of", "city.n.1"),
        ("Paris.n.1", "part_of", "France.n.1"),
        ("France.n.1", "instance_of", "country.n.1"),
        ("Paris.n.2", "instance_of", "prince.n.1"),
    }
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["matched"] == 4 and set(report["relations"]) == {"instance_of", "part_of"}
    assert report["noise_by_relation"]["instance_of"]["matches"] == 3
    assert "by chance" in (tmp_path / "out/report.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.db"]


def test_a_models_triples_are_added_on_a_second_run(wordnet, tmp_path):
    command = ["finetune/kg2instructions.py", "--texts", wordnet / "texts.jsonl", "--tasks", "RE", *HALF]
    command += ["--knowledge", wordnet / "graph.jsonl", "--database", tmp_path / "graph.db"]
    script(*command, "--output_dir", tmp_path / "first")
    cases = lines(tmp_path / "first/train.jsonl") + lines(tmp_path / "first/heldout.jsonl")
    [case] = [case for case in cases if case["input"].startswith("Paris: the largest")]
    answers = [{"id": case["id"], "output": "(largest city,part of,France)\n(city,part of,Spain)"}]
    (tmp_path / "answers.jsonl").write_text(json.dumps(answers))
    script(*command, "--output_dir", tmp_path / "second", "--add_predictions", tmp_path / "answers.jsonl")
    again = lines(tmp_path / "second/train.jsonl") + lines(tmp_path / "second/heldout.jsonl")
    [case] = [case for case in again if case["input"].startswith("Paris: the largest")]
    report = json.loads((tmp_path / "second/report.json").read_text())
    assert {"head": "largest city", "relation": "part of", "tail": "France"} in case["gold"]
    assert report["predicted_triples"] == 1  # Spain isn't in the text
    assert report["matched"] == json.loads((tmp_path / "first/report.json").read_text())["matched"]
    assert (tmp_path / "graph.db").is_file() and not list(tmp_path.glob("*.lock"))


def test_factbook_fields_become_triples_of_its_prose(tmp_path):
    country = {
        "Introduction": {"Background": {"text": "Ruritania, whose capital is Strelsau, has long bordered Graustark."}},
        "Geography": {
            "Land boundaries": {"border countries": {"text": "Graustark 649 km, the Lutha 12 km"}},
            "Elevation extremes": {"highest point": {"text": "Mont Zenda 4,807 m"}},
            "Area": {"total": {"text": "643,801 sq km; 551,500 sq km (mainland)"}},
        },
        "Government": {
            "Country name": {"conventional short form": {"text": "Ruritania"}},
            "Capital": {"name": {"text": "Strelsau"}},
            "Executive branch": {"chief of state": {"text": "King Rudolf ELPHBERG (since 1 May 1894)"}},
            "Independence": {"text": "4 July 1776 (from Graustark)"},
        },
    }
    (tmp_path / "europe").mkdir()
    (tmp_path / "europe/rt.json").write_text(json.dumps(country))
    script("finetune/sources.py", "factbook", "--path", tmp_path, "--output_dir", tmp_path / "out")
    triples = {(row["relation"], row["tail"]) for row in lines(tmp_path / "out/graph.jsonl") if "head" in row}
    assert triples == {
        ("capital", "place:Strelsau"),
        ("borders", "place:Graustark"),
        ("borders", "place:Lutha"),
        ("highest_point", "place:Mont Zenda"),
        ("chairperson", "person:Rudolf Elphberg"),
        ("independence_date", "1776-07-04"),
        ("area", "643,801"),
    }
    assert [row["title"] for row in lines(tmp_path / "out/texts.jsonl")] == ["Ruritania"]


def test_lives_of_poets_give_names_and_places(tmp_path):
    authors = [
        {"name": "李白", "id": "0123456789", "desc": "李白，字太白，隴西成紀人，涼武昭王暠九世孫。"},
        {"name": "王某", "id": "1123456789", "desc": "開元時人。詩一首。"},
    ]
    (tmp_path / "authors.tang.json").write_text(json.dumps(authors))
    script("finetune/sources.py", "tang", "--path", tmp_path, "--output_dir", tmp_path / "out")
    triples = {(row["relation"], row["tail"]) for row in lines(tmp_path / "out/graph.jsonl") if "head" in row}
    assert triples == {("courtesy_name", "courtesy_name:太白"), ("native_place", "native_place:隴西成紀")}
    for row in lines(tmp_path / "out/texts.jsonl"):
        for link in row["links"]:
            assert row["text"][link["start"] : link["end"]] in link["target"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--texts", "no.txt"], "no.txt: no such file"),
        (["--texts", "README.md", "--knowledge", "README.md"], "README.md: a folder of tables, .tsv"),
        (["--texts", "README.md", "--form", "poem"], "--form: poem; choose from"),
        (["--texts", "README.md", "--relations", "loves"], "--relations loves: the graph has no such"),
        (["--knowledge", "finetune/data/encyclopedia"], "give --texts, --english or --chinese"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, arguments, message):
    graph = [] if "--knowledge" in arguments else ["--knowledge", "finetune/data/encyclopedia"]
    result = script(
        *("finetune/kg2instructions.py", *graph, *arguments, "--output_dir", tmp_path / "out"),
        *("--database", tmp_path / "graph.db"),
        ok=False,
    )
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_database_in_the_new_folder_is_refused_before_it_is_built(wordnet, tmp_path):
    paths = ("--texts", wordnet / "texts.jsonl", "--knowledge", wordnet / "graph.jsonl")
    output = ("--output_dir", tmp_path / "out", "--database", tmp_path / "out/graph.db")
    result = script("finetune/kg2instructions.py", *paths, *output, ok=False)
    assert "lies in --output_dir" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_empty_cases_stay_few_and_no_case_is_on_both_sides(tmp_path):
    store = CaseStore(tmp_path / "cases.db", seed=0)
    for number in range(40):
        assert store.is_new(f"p{number}")
        gold = [{"text": "x", "type": "y"}] if number % 2 else []
        case = {"id": f"NER-p{number}", "task": "NER", "language": "english", "schema": ["y"], "gold": gold}
        store.add_case("heldout" if number < 10 else "train", case_row(case, 0))
    assert not store.is_new("p3")
    assert store.choose("train", 0.2, None) == {("NER", "english"): 15 + 3}
    assert store.choose("heldout", 2, 4) == {("NER", "english"): 4}
    kept = list(store.chosen("train"))
    assert sum(not case["gold"] for case in kept) == 3
    assert not {case["id"] for case in kept} & {case["id"] for case in store.chosen("heldout")}


def test_nothing_to_find_is_not_claimed_where_the_graph_tells_no_types(tmp_path):
    (tmp_path / "graph.tsv").write_text("Ada Lovelace\tworked with\tCharles Babbage\n")
    rows = [{"text": f"Ada Lovelace met Charles Babbage {n} times.", "title": str(n)} for n in range(20)]
    rows.append({"text": ""})  # which ends nothing
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = ("--texts", tmp_path / "texts.jsonl", "--knowledge", tmp_path / "graph.tsv")
    script("finetune/kg2instructions.py", *paths, *HALF, "--output_dir", tmp_path / "out")
    cases = lines(tmp_path / "out/train.jsonl") + lines(tmp_path / "out/heldout.jsonl")
    assert {case["task"] for case in cases} == {"RE"} and len(cases) == 20


def test_a_named_event_is_a_trigger_with_its_facts_as_arguments(tmp_path):
    rows = [
        {"id": "b", "type": EVENT, "names": {"en": ["Battle of Hastings"]}},
        {"id": "h", "type": "person", "names": {"en": ["Harold"]}},
        {"head": "b", "relation": "participant", "tail": "h"},
        {"head": "b", "relation": "event_date", "tail": "1066-10-14"},
    ]
    (tmp_path / "graph.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.txt").write_text(
        "In 1066, at the Battle of Hastings, Harold fell.\nHarold was at the Battle of Hastings.\n"
    )
    script(
        *("finetune/kg2instructions.py", "--texts", tmp_path / "texts.txt", "--knowledge", tmp_path / "graph.jsonl"),
        *("--tasks", "EE", "--wordings", "2", *HALF, "--output_dir", tmp_path / "out"),
    )
    cases = lines(tmp_path / "out/train.jsonl") + lines(tmp_path / "out/heldout.jsonl")
    [case] = [case for case in cases if case["input"].startswith("In 1066")]
    arguments = [{"text": "1066", "role": "date of the event"}, {"text": "Harold", "role": "participant"}]
    assert case["gold"] == [{"type": "event", "trigger": "Battle of Hastings", "arguments": arguments}]
    [asked] = [entry for entry in case["schema"] if entry["type"] == "event"]
    assert {"participant", "date of the event"} <= set(asked["roles"])
    for form in ("tuple", "json"):
        row = row_of(case, [form], 2, seed=0)
        assert parse("EE", row["output"], ["event"]).items == case["gold"]


def test_absent_relations_of_like_types_are_asked_first():
    from knowlm.supervision.gold import relation_negatives
    from knowlm.supervision.pieces import Piece

    schema = default_schema()
    piece = Piece("id", "doc", "english", "text", [], [], schema.topics["person"])
    hard, topic, _ = relation_negatives(piece, [{"relation": "place of birth"}], schema, {"person"})
    assert "deathplace" in {relation.id for relation in hard} and "occupation" not in {r.id for r in hard}
    assert "occupation" in {relation.id for relation in topic}
    case = case_of("RE", piece, schema, lambda entity: "", 0)
    assert len(case["schema"]) == 4 and case["topic"] == "person"


def test_two_commands_do_not_write_one_folder_at_once(run_script, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"Ann {word} lives in Rome.\n" for word in ("A", "B", "C", "D")))
    (tmp_path / "graph.tsv").write_text("".join(f"Ann {word}\thome\tRome\n" for word in ("A", "B", "C", "D")))
    flags = ["--texts", "texts.txt", "--knowledge", "graph.tsv", "--heldout", "0.5", "--output_dir", "out"]
    with locked(tmp_path / "out"):
        result = run_script("finetune/kg2instructions.py", *flags)
    assert result.returncode == 1 and "out: another command is writing it" in result.stderr
    assert not list(tmp_path.glob("out.partial")) and not (tmp_path / "out").exists()
    result = run_script("finetune/kg2instructions.py", *flags)
    assert result.returncode == 0, result.stderr
