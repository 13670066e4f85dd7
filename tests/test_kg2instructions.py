import json
import random
from pathlib import Path

import pytest

from knowlm.extraction.parsing import parse
from knowlm.supervision.documents import document_of, json_document, split_text
from knowlm.supervision.gold import add_predictions
from knowlm.supervision.graph import KnowledgeGraph
from knowlm.supervision.graph_builder import build_database, schema_for_graph
from knowlm.supervision.mentions import disambiguate, find_mentions
from knowlm.supervision.names import NameFinder, fold
from knowlm.supervision.pieces import Match, find_pieces, without_nested

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
    folder = tmp_path / "graph"
    folder.mkdir()
    for name, lines in TABLES.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def supervise(folder):
    """Find the pieces of a text with the graph of the tables."""

    def run(text, language="english", title="", relations=(), graph=None, length=100):
        graph = graph or graph_of(folder)
        graph.schema.ask_only(relations)
        finder = NameFinder(graph.connection, language)
        return list(find_pieces(document_of(text, language, title), graph, finder, length))

    return run


def graph_of(*paths, schema=None):
    database = paths[0].parent / f"{paths[0].name}.db"
    build_database(paths, schema, database)
    return KnowledgeGraph(database, schema_for_graph(paths, schema))


def triples_of(pieces):
    return {(match.head, match.relation, match.tail) for piece in pieces for match in piece.triples}


def chosen(text, graph):
    finder = NameFinder(graph.connection, "english")
    mentions = find_mentions(document_of(text, "english"), graph, finder)
    edges = graph.edges({candidate for mention in mentions for candidate in mention.candidates})
    return [(graph.key(choice.entity), choice.decided_by) for choice in disambiguate(mentions, graph, edges)]


def test_mentions_are_whole_words_and_the_longest(folder):
    graph = graph_of(folder)
    text = "Hugo saw Parisians in Paris, Texas."
    spans = NameFinder(graph.connection, "english").find(text)
    assert [text[start:stop] for start, stop in spans] == ["Hugo", "Paris, Texas"]


def test_a_name_within_a_date_is_part_of_the_date(folder, supervise):
    with (folder / "entities.tsv").open("a", encoding="utf-8") as table:
        table.write("british_columbia\tplace\tBritish Columbia\tBC\t不列颠哥伦比亚\t\n")
    [piece] = supervise("Built in 2560 BC, it was seen by Hugo from BC in 1830.")
    assert [piece.text[c.mention.start : c.mention.stop] for c in piece.entities] == ["Hugo", "BC"]
    assert piece.entities[1].mention.start == piece.text.rindex("BC")


def test_full_width_names_are_found_where_they_stand(folder):
    graph = graph_of(folder)
    text = "He saw ＰＡＲＩＳ, then Ｐａｒｉｓ."
    spans = NameFinder(graph.connection, "english").find(fold(text))
    assert [text[start:stop] for start, stop in spans] == ["Ｐａｒｉｓ"]


def test_names_are_found_in_the_other_chinese_script(supervise):
    [piece] = supervise("１８０２年雨果生於巴黎，後來離開法國。", "chinese")
    aliases = {(row["head_alias"], row["tail_alias"]) for row in rows_of(piece)}
    assert {("雨果", "巴黎"), ("巴黎", "法國")} <= aliases


def test_a_name_written_small_is_found_with_the_capital_of_its_sentence(tmp_path):
    rows = ["lead sulfide\tkind of\tsulfide mineral", "tin\tfound in\tCornwall", "Mercury\torbits\tSun"]
    (tmp_path / "graph.tsv").write_text("\n".join(rows) + "\n")
    graph = graph_of(tmp_path / "graph.tsv")
    finder = NameFinder(graph.connection, "english")

    def names(text):
        (piece,) = find_pieces(document_of(text, "english"), graph, finder, 100)
        return [text[choice.mention.start : choice.mention.stop] for choice in piece.entities]

    assert names("It is grey. “Lead sulfide” is a sulfide mineral.") == ["Lead sulfide", "sulfide mineral"]
    assert names("The band Lead sulfide left Dr. Lead sulfide in Cornwall.") == ["Cornwall"]
    assert names("Tin is near Cornwall.") == ["Cornwall"]  # so short a word is often another


def test_a_part_of_a_longer_name_is_none(tmp_path):
    (tmp_path / "graph.tsv").write_text("Robert\tknows\tOxford\nFrance\tknows\tOxford\n雨果\tknows\tOxford\n", "utf-8")
    graph = graph_of(tmp_path / "graph.tsv")

    def names(text, language="english"):
        [piece] = find_pieces(document_of(text, language), graph, NameFinder(graph.connection, language), 100)
        return [text[choice.mention.start : choice.mention.stop] for choice in piece.entities]

    assert names("Robert Smirke left Oxford May 1889. In France Robert met Paul.") == ["Oxford", "France", "Robert"]
    assert names("雨果·阿尔文来到Oxford，雨果没有。", "chinese") == ["Oxford", "雨果"]


def test_an_article_is_no_part_of_a_name_unless_it_begins_a_title(tmp_path):
    rows = ["the Louvre\tin\tParis", "The Scream\tin\tthe Louvre"]
    (tmp_path / "graph.tsv").write_text("\n".join(rows) + "\n")
    graph = graph_of(tmp_path / "graph.tsv")
    text = "The Louvre, in Paris, borrowed The Scream; the Louvre gave it back."
    (piece,) = find_pieces(document_of(text, "english"), graph, NameFinder(graph.connection, "english"), 100)
    assert [choice.mention.start for choice in piece.entities] == [4, 15, 31, 47]
    assert {text[slice(*match.head_span)] for match in piece.triples} == {"Louvre", "The Scream"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Huxley-Wilberforce debate", "The Huxley–Wilberforce debate was in Oxford."),
        ("L'Oréal", "L’Oréal has an office in Oxford."),
        ("New College", "New\u00a0College is in Oxford."),
        ("Universite\u0301 de Paris", "The Université de Paris is older than Oxford."),
        ("Université de Paris", "The Universite\u0301 de Paris is older than Oxford."),
        ("列奥纳多·达·芬奇", "列奥纳多・达・芬奇没有去过Oxford。"),
    ],
)
def test_marks_that_look_alike_make_no_other_name(tmp_path, name, text):
    (tmp_path / "graph.tsv").write_text(f"{name}\tknows\tOxford\n")
    graph = graph_of(tmp_path / "graph.tsv")
    pieces = find_pieces(document_of(text, "english"), graph, NameFinder(graph.connection, "english"), 100)
    assert triples_of(pieces) == {(name, "knows", "Oxford")}


def test_what_a_graph_never_has_is_not_asked_for(tmp_path):
    rows = [{"id": name, "type": "place"} for name in ("Paris", "France")]
    rows.append({"head": "Paris", "relation": "country", "tail": "France"})
    (tmp_path / "graph.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = graph_of(tmp_path / "graph.jsonl").schema
    assert schema.asked_relations == {"country"} and schema.asked_types == {"place"}
    assert "event" not in schema.asked_events
    with (tmp_path / "graph.jsonl").open("a") as file:
        file.write(json.dumps({"id": "Paris", "names": {"en": ["Paris", "City of Light"]}}) + "\n")
    assert graph_of(tmp_path / "graph.jsonl").schema.asked_relations == {"country", "alternative_name"}


def test_a_fact_of_a_relation_with_words_needs_one_beside_its_tail(folder):
    lines = TABLES["relations.tsv"]
    rows = [f"{lines[0]}\twords_en\twords_zh", *lines[1:2], f"{lines[2]}\tborn|native\t生于", *lines[3:]]
    (folder / "relations.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    graph = graph_of(folder)

    def found(text, language="english"):
        finder = NameFinder(graph.connection, language)
        return {row[1] for row in triples_of(find_pieces(document_of(text, language), graph, finder, 100))}

    assert found("Hugo, of France, was Born in Paris.") == {"birthplace", "located_in"}
    assert found("Hugo wrote. He was a native of Paris.") == {"birthplace"}
    assert found("Hugo saw Paris in 1802, reborn. He was born.") == {"birth_year"}
    assert found("雨果生于巴黎。", "chinese") == {"birthplace"} and not found("雨果来到巴黎。", "chinese")
    (folder / "own.tsv").write_text("Hugo\tbirthplace\tParis\n")  # of a graph without types: in its own sense
    assert graph_of(folder / "own.tsv").schema.relations["birthplace"].words["english"]
    graph = graph_of(folder / "own.tsv")
    assert found("Hugo saw Paris.") == {"birthplace"}


def test_an_ambiguous_name_goes_to_the_neighbour_of_what_was_read(folder):
    graph = graph_of(folder)
    assert chosen("France and Paris", graph) == [("france", "only"), ("paris", "neighbours read")]
    assert chosen("In Texas lies Paris.", graph) == [("texas", "only"), ("paris_texas", "neighbours read")]
    assert chosen("Paris lies in Texas.", graph) == [("paris_texas", "neighbours in text"), ("texas", "only")]
    assert chosen("Paris, Paris", graph) == [("paris", "order"), ("paris", "seen")]  # that with most triples first


def test_an_undecided_name_is_left_out_on_request(folder):
    graph = graph_of(folder)
    finder = NameFinder(graph.connection, "english")
    for margin, names in ((0, ["paris"]), (1, [])):
        [piece] = find_pieces(document_of("He went to Paris.", "english"), graph, finder, 100, margin)
        assert [graph.key(choice.entity) for choice in piece.entities] == names


def test_triples_are_found_in_both_directions_without_implied_ones(supervise):
    [piece] = supervise("Hugo was born in 1802. In France and Europe, Paris is loved by Hugo.", title="Paris")
    assert triples_of([piece]) == {
        ("hugo", "birth_year", "1802"),
        ("hugo", "birthplace", "paris"),
        ("paris", "located_in", "france"),
        ("france", "located_in", "europe"),
    }
    for match in piece.triples:
        row = match.as_row(piece.text)
        assert piece.text[slice(*row["head_span"])] == row["head_alias"]
        assert row["path"] == [match.head, match.relation, match.tail]


def test_chinese_years_and_names_are_found(supervise):
    [piece] = supervise("雨果1802年生于巴黎。", "chinese", title="雨果")
    found = {(row["head_alias"], row["relation"], row["tail_alias"]) for row in rows_of(piece)}
    assert found == {("雨果", "birthplace", "巴黎"), ("雨果", "birth_year", "1802")}


def rows_of(piece):
    return [match.as_row(piece.text) for match in piece.triples]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("paris\tlocated_in\tatlantis", "atlantis is not in entities.tsv"),
        ("paris\tloves\tfrance", "relation loves"),
        ("paris\tbirthplace\tfrance", "paris is a place, which birthplace does not take"),
        ("paris\tlocated_in\t1802", "1802 is a time, which located_in does not take"),
        ("paris", "1 columns"),
    ],
)
def test_a_wrong_triple_is_named_by_line(folder, row, message):
    with (folder / "triples.tsv").open("a", encoding="utf-8") as file:
        file.write("hugo\tbirthplace\tparis\ta note\u2028of two lines\n" + row + "\n")
    with pytest.raises(ValueError, match=f"line 9: .*{message}"):
        graph_of(folder)
    assert not list(folder.parent.glob("*.db*"))


def test_only_the_wanted_relations_are_matched(supervise, folder):
    pieces = supervise("Hugo was born in 1802 in Paris, France.", relations=["birthplace"])
    assert triples_of(pieces) == {("hugo", "birthplace", "paris")}
    with pytest.raises(ValueError, match="--relations loves: the graph has no such"):
        graph_of(folder).schema.ask_only(relations=["loves"])


def test_two_names_of_an_entity_are_alternative_names(supervise, folder):
    with (folder / "relations.tsv").open("a", encoding="utf-8") as file:
        file.write("alternative_name\talternative name\t别名\t\t\n")
    (folder / "entities.tsv").write_text(
        (folder / "entities.tsv").read_text("utf-8").replace("Paris\t\t巴黎", "Paris\tLutetia\t巴黎"), "utf-8"
    )
    [piece] = supervise("France knows that Lutetia became Paris. Victor Hugo was called Hugo.")
    assert ("Lutetia", "alternative_name", "Paris") in {
        (row["head_alias"], row["relation"], row["tail_alias"]) for row in rows_of(piece)
    }
    assert sum(row["relation"] == "alternative_name" for row in rows_of(piece)) == 1  # Hugo is part of Victor Hugo


def test_a_link_of_the_source_decides(folder):
    graph = graph_of(folder)
    row = {"text": "Hugo saw Paris.", "links": [{"start": 9, "end": 14, "target": "paris_texas"}]}
    document = json_document(json.dumps(row), "english", [], "here")
    [piece] = find_pieces(document, graph, NameFinder(graph.connection, "english"), 100)
    assert [graph.key(choice.entity) for choice in piece.entities] == ["hugo", "paris_texas"]


def test_the_longer_of_nested_arguments_stays(folder):
    graph = graph_of(folder)
    text = "York and New York"
    matches = [
        Match("a", "located_in", "b", (0, 4), (0, 4), {}),
        Match("a", "located_in", "c", (0, 4), (9, 17), {}),
    ]
    assert [match.tail for match in without_nested(matches, text)] == ["c"]
    assert graph.schema.relations["located_in"].transitive


def test_pieces_are_whole_sentences():
    assert split_text("One two. Three four. Five.", "english", 4) == ["One two. Three four.", "Five."]
    assert split_text("", "english", 4) == split_text(" \n", "chinese", 4) == []


@pytest.mark.parametrize(("language", "word"), [("english", "word "), ("chinese", "字")])
def test_a_sentence_without_end_is_cut(language, word):
    pieces = split_text(word * 3000, language, 512)
    assert "".join(pieces).replace(" ", "") == (word * 3000).replace(" ", "")
    assert all(len(piece) <= 512 if language == "chinese" else len(piece.split()) <= 512 for piece in pieces)


def test_the_expected_matches_are_the_mean_over_shuffled_graphs(tmp_path):
    """The report's noise, against graphs whose tails are really shuffled."""
    people, places = [f"Person{chr(97 + n)}" for n in range(12)], [f"Town{chr(97 + n % 5)}" for n in range(12)]
    text = "Persona and Personb met Personc in Towna, not in Townb."

    def matched(tails, name):
        file = tmp_path / f"{name}.tsv"
        file.write_text("".join(f"{h}\tborn in\t{t}\n" for h, t in zip(people, tails, strict=True)))
        graph = graph_of(file)
        [piece] = find_pieces(document_of(text, "english"), graph, NameFinder(graph.connection, "english"), 100)
        return piece

    expected = matched(places, "real").by_chance["born in"]
    generator = random.Random(0)
    counts = [matched(generator.sample(places, 12), f"null{n}").matched["born in"] for n in range(30)]
    assert expected == pytest.approx(3 * 6 / 12)  # three heads, six of twelve tails
    assert abs(sum(counts) / len(counts) - expected) < 0.5  # three standard errors


def test_predicted_triples_are_added_with_their_spans(supervise, folder):
    [piece] = supervise("Hugo left Paris for Guernsey.")
    schema = graph_of(folder).schema
    answers = ["(Hugo,place of birth,Paris)\n(Hugo,place of birth,Guernsey)\n(Hugo,place of birth,Rome)"]
    assert add_predictions(piece, answers, schema) == 1
    assert rows_of(piece)[-1]["tail_alias"] == "Guernsey" and rows_of(piece)[-1]["from"] == "prediction"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The instructions of the shipped encyclopaedia, made by one process and by two."""
    import subprocess
    import sys

    script = ENCYCLOPEDIA.parents[1] / "kg2instructions.py"
    folders = [tmp_path_factory.mktemp("built") / "out" for _ in range(2)]
    for workers, folder in enumerate(folders, 1):
        command = [sys.executable, script, "--english", ENCYCLOPEDIA / "english.jsonl"]
        command += ["--texts", ENCYCLOPEDIA / "chinese.jsonl", "--knowledge", ENCYCLOPEDIA, "--output_dir", folder]
        command += ["--tasks", "NER,RE,EE", "--piece_length", "60"]
        subprocess.run([*command, "--num_workers", str(workers)], check=True)
    return folders


def test_any_number_of_workers_gives_the_same_bytes(built):
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
            if case["task"] == "EE":
                names = [item["trigger"], *(argument["text"] for argument in item["arguments"])]
                [roles] = [asked["roles"] for asked in case["schema"] if asked["type"] == item["type"]]
                assert {argument["role"] for argument in item["arguments"]} <= set(roles)
            else:
                names = [item["text"]] if case["task"] == "NER" else [item["head"], item["tail"]]
                assert item["type" if case["task"] == "NER" else "relation"] in case["schema"]
            assert all(name in case["input"] for name in names)


def test_the_encyclopaedia_tells_of_events_in_both_languages(built):
    cases = [json.loads(line) for line in (built[0] / "train.jsonl").read_text().splitlines()]
    for language, types in (("english", {"birth", "death", "discovery"}), ("chinese", {"出生", "去世", "发现"})):
        found = [case for case in cases if (case["task"], case["language"]) == ("EE", language) and case["gold"]]
        assert len(found) > 100 and types <= {item["type"] for case in found for item in case["gold"]}


def test_every_answer_of_a_training_row_parses(built):
    cases = [json.loads(line) for line in (built[0] / "train.jsonl").read_text().splitlines()]
    for case, row in zip(cases, json.loads((built[0] / "train.json").read_text()), strict=True):
        assert parse(case["task"], row["output"], []).readable


def test_the_encyclopaedia_is_as_large_as_its_readme_says():
    assert len((ENCYCLOPEDIA / "triples.tsv").read_text("utf-8").splitlines()) - 1 == 23157
    for language, size in (
        ("english", lambda t: 60 <= len(t.split()) <= 150),
        ("chinese", lambda t: 100 <= len(t) <= 300),
    ):
        articles = [json.loads(line) for line in (ENCYCLOPEDIA / f"{language}.jsonl").read_text("utf-8").splitlines()]
        assert len(articles) >= 200
        assert all(size(article["text"]) for article in articles)
        assert len({article["title"] for article in articles}) == len(articles)
