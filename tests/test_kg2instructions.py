import json
from pathlib import Path

import pytest
from knowlm.extraction.knowledge import KnowledgeGraph, MentionFinder, disambiguate

from knowlm.extraction.parsing import parse
from knowlm.extraction.supervision import find_pieces, gold_relations, split_text

ENCYCLOPEDIA = Path(__file__).resolve().parents[1] / "finetune/data/encyclopedia"
TABLES = {
    "types.tsv": ["id\tname_en\tname_zh", "place\tplace\t地点", "person\tperson\t人物"],
    "relations.tsv": [
        "id\tname_en\tname_zh\thead_types\ttail_types",
        "located_in\tlocated in\t位于\tplace\tplace",
        "birthplace\tplace of birth\t出生地\tperson\tplace",
        "birth_year\tyear of birth\t出生年份\tperson\tyear",
    ],
    "entities.tsv": [
        "id\ttype\tname_en\taliases_en\tname_zh\taliases_zh",
        "paris\tplace\tParis\t\t巴黎\t",
        "paris_texas\tplace\tParis, Texas\tParis\t帕里斯\t",
        "texas\tplace\tTexas\t\t得克萨斯\t",
        "france\tplace\tFrance\t\t法国\t",
        "europe\tplace\tEurope\t\t欧洲\t",
        "hugo\tperson\tVictor Hugo\tHugo\t雨果\t",
    ],
    "triples.tsv": [
        "head\trelation\ttail",
        "paris\tlocated_in\tfrance",
        "france\tlocated_in\teurope",
        "paris\tlocated_in\teurope",
        "paris_texas\tlocated_in\ttexas",
        "hugo\tbirthplace\tparis",
        "hugo\tbirth_year\t1802",
    ],
}


@pytest.fixture
def folder(tmp_path):
    for name, lines in TABLES.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def chosen(text, graph, context=()):
    return [entity for _, entity in disambiguate(MentionFinder(graph, "english").find(text), graph, context)]


def test_mentions_are_whole_words_and_the_longest(folder):
    finder = MentionFinder(KnowledgeGraph(folder), "english")
    text = "Hugo saw Parisians in Paris, Texas."
    assert [text[m.start : m.stop] for m in finder.find(text)] == ["Hugo", "Paris, Texas"]


def test_an_ambiguous_name_goes_to_the_neighbour_of_what_was_read(folder):
    graph = KnowledgeGraph(folder)
    assert chosen("Paris and France", graph) == ["paris", "france"]
    assert chosen("In Texas lies Paris.", graph) == ["texas", "paris_texas"]


def test_triples_are_found_in_both_directions_without_implied_ones(folder):
    graph = KnowledgeGraph(folder)
    article = {"title": "Paris", "text": "Hugo was born in 1802. In France and Europe, Paris is loved by Hugo."}
    [piece] = find_pieces(article, "english", graph, MentionFinder(graph, "english"), 100)
    found = {(t["head"], t["relation"], t["tail"]) for t in piece.triples}
    assert found == {
        ("hugo", "birth_year", "1802"),
        ("hugo", "birthplace", "paris"),
        ("paris", "located_in", "france"),
        ("france", "located_in", "europe"),
    }
    for triple, item in zip(piece.triples, gold_relations(piece, graph), strict=True):
        assert piece.text[slice(*triple["head_span"])] == item["head"]


def test_chinese_years_and_names_are_found(folder):
    graph = KnowledgeGraph(folder)
    article = {"title": "雨果", "text": "雨果1802年生于巴黎。"}
    [piece] = find_pieces(article, "chinese", graph, MentionFinder(graph, "chinese"), 100)
    assert {(i["head"], i["relation"], i["tail"]) for i in gold_relations(piece, graph)} == {
        ("雨果", "出生地", "巴黎"),
        ("雨果", "出生年份", "1802"),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("paris\tlocated_in\tatlantis", "atlantis is not in entities.tsv"),
        ("paris\tloves\tfrance", "relation loves"),
        ("paris\tbirthplace\tfrance", "paris is a place, which birthplace does not take"),
    ],
)
def test_a_wrong_triple_is_named_by_line(folder, row, message):
    with (folder / "triples.tsv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(ValueError, match=f"line 8: .*{message}"):
        KnowledgeGraph(folder)


def test_only_the_wanted_relations_are_matched(folder):
    graph = KnowledgeGraph(folder)
    graph.ask_only(relations=["birthplace"])
    article = {"title": "Paris", "text": "Hugo was born in 1802 in Paris, France."}
    [piece] = find_pieces(article, "english", graph, MentionFinder(graph, "english"), 100)
    assert [(t["head"], t["relation"], t["tail"]) for t in piece.triples] == [("hugo", "birthplace", "paris")]
    with pytest.raises(ValueError, match=r"relations\.tsv: has no loves"):
        graph.ask_only(relations=["loves"])


def test_pieces_are_whole_sentences():
    assert split_text("One two. Three four. Five.", "english", 4) == ["One two. Three four.", "Five."]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The instructions of the shipped encyclopaedia, made twice."""
    import subprocess
    import sys

    script = ENCYCLOPEDIA.parents[1] / "kg2instructions.py"
    folders = [tmp_path_factory.mktemp("built") / "out" for _ in range(2)]
    for folder in folders:
        subprocess.run(
            [
                sys.executable,
                script,
                "--english",
                ENCYCLOPEDIA / "english.jsonl",
                "--chinese",
                ENCYCLOPEDIA / "chinese.jsonl",
                "--knowledge",
                ENCYCLOPEDIA,
                "--output_dir",
                folder,
            ],
            check=True,
        )
    return folders


def test_the_same_input_gives_the_same_bytes(built):
    for file in built[0].iterdir():
        assert file.read_bytes() == (built[1] / file.name).read_bytes()


def test_held_out_texts_are_never_trained_on(built):
    train = {row["input"] for row in json.loads((built[0] / "train.json").read_text())}
    heldout = [json.loads(line) for line in (built[0] / "heldout.jsonl").read_text().splitlines()]
    assert heldout and not train & {case["input"] for case in heldout}


def test_gold_is_in_the_text_and_its_labels_in_the_schema(built):
    for line in (built[0] / "heldout.jsonl").read_text().splitlines():
        case = json.loads(line)
        for item in case["gold"]:
            names = [item["text"]] if case["task"] == "NER" else [item["head"], item["tail"]]
            assert all(name in case["input"] for name in names)
            assert item["type" if case["task"] == "NER" else "relation"] in case["schema"]


def test_every_answer_of_a_training_row_parses(built):
    for row in json.loads((built[0] / "train.json").read_text()):
        task = "NER" if row["output"].split("\n")[0].count(",") == 1 else "RE"
        assert parse(task, row["output"], []).readable


def test_the_encyclopaedia_is_as_large_as_its_readme_says():
    graph = KnowledgeGraph(ENCYCLOPEDIA)
    assert graph.num_triples >= 2000
    for language, size in (
        ("english", lambda t: 60 <= len(t.split()) <= 150),
        ("chinese", lambda t: 100 <= len(t) <= 300),
    ):
        articles = [json.loads(line) for line in (ENCYCLOPEDIA / f"{language}.jsonl").read_text("utf-8").splitlines()]
        assert len(articles) >= 200
        assert all(size(article["text"]) for article in articles)
        assert len({article["title"] for article in articles}) == len(articles)
