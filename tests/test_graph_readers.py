"""Knowledge graphs and texts of every form, in the forms they are published in, and the sources made from packages."""

import bz2
import gzip
import json
import resource
import sqlite3

import pytest

from knowlm.supervision.documents import document_of, unread_documents
from knowlm.supervision.graph import KnowledgeGraph
from knowlm.supervision.graph_builder import build_database, schema_for_graph
from knowlm.supervision.names import NameFinder
from knowlm.supervision.pieces import find_pieces
from knowlm.supervision.values import find_values, matching_span, read_value

N_TRIPLES = """\
# Paris
<http://x.org/r/Paris> <http://www.w3.org/2000/01/rdf-schema#label> "Paris"@en .
<http://x.org/r/Paris> <http://www.w3.org/2000/01/rdf-schema#label> "\\u5DF4\\u9ECE"@zh .
<http://x.org/r/Paris> <http://www.w3.org/2004/02/skos/core#altLabel> "City of Light"@en .
<http://x.org/r/Paris> <http://www.w3.org/1999/02/22-rdf-syntax-ns#type> <http://dbpedia.org/ontology/Town> .
<http://dbpedia.org/ontology/Town> <http://www.w3.org/2000/01/rdf-schema#subClassOf> <http://schema.org/Place> .
<http://x.org/r/France> <http://dbpedia.org/ontology/capital> <http://x.org/r/Paris> .
<http://x.org/r/Paris> <http://x.org/o/metroOpened> "1900-07-19"^^<http://www.w3.org/2001/XMLSchema#date> .
<http://x.org/r/Paris> <http://x.org/o/motto> "Fluctuat \\"nec\\" mergitur" .
"""


def wikidata_entity(key, names, claims=(), aliases=None):
    statements = {}
    for name, kind, value, rank in claims:
        snak = {"snaktype": "value", "property": name, "datavalue": {"type": kind, "value": value}}
        statements.setdefault(name, []).append({"mainsnak": snak, "rank": rank})
    labels = {code: {"language": code, "value": value} for code, value in names.items()}
    listed = {code: [{"language": code, "value": v} for v in values] for code, values in (aliases or {}).items()}
    return {"id": key, "type": "item", "labels": labels, "aliases": listed, "claims": statements}


def item(key):
    return {"entity-type": "item", "numeric-id": int(key[1:]), "id": key}


def time_of(text, precision):
    return {"time": text, "precision": precision, "calendarmodel": "http://www.wikidata.org/entity/Q1985727"}


WIKIDATA = [
    wikidata_entity(
        "Q90",
        {"en": "Paris", "zh-hans": "巴黎", "fr": "Paname"},
        [
            ("P31", "wikibase-entityid", item("Q484170"), "normal"),
            ("P1376", "wikibase-entityid", item("Q142"), "normal"),
            ("P1082", "quantity", {"amount": "+2145906", "unit": "1"}, "preferred"),
            ("P1082", "quantity", {"amount": "+9", "unit": "1"}, "normal"),
        ],
        {"en": ["City of Light"]},
    ),
    wikidata_entity("Q142", {"en": "France", "zh": "法国"}, [("P31", "wikibase-entityid", item("Q6256"), "normal")]),
    wikidata_entity("Q484170", {"en": "commune"}, [("P279", "wikibase-entityid", item("Q56061"), "normal")]),
    wikidata_entity(
        "Q535",
        {"en": "Victor Hugo"},
        [
            ("P31", "wikibase-entityid", item("Q5"), "normal"),
            ("P569", "time", time_of("+1802-02-26T00:00:00Z", 11), "normal"),
            ("P570", "time", time_of("+1800-00-00T00:00:00Z", 7), "normal"),
            ("P36", "wikibase-entityid", item("Q90"), "normal"),  # a person has no capital
        ],
    ),
    wikidata_entity("Q150", {"en": "French"}, [("P31", "wikibase-entityid", item("Q34770"), "normal")]),
]


def read_documents(*args, **settings):
    return (unread.read() for unread in unread_documents(*args, **settings))


def graph_of(path):
    database = path.with_name("graph.db")
    build_database([path], None, database)
    return KnowledgeGraph(database, schema_for_graph([path], None))


def found(graph, text, language="english"):
    finder = NameFinder(graph.connection, language)
    [piece] = find_pieces(document_of(text, language), graph, finder, 100)
    return {
        (row["head_alias"], graph.schema.relations[row["relation"]].name(language), row["tail_alias"])
        for row in (match.as_row(text) for match in piece.triples)
    }


def graph_of_rows(tmp_path, *rows):
    (tmp_path / "graph.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return graph_of(tmp_path / "graph.jsonl")


@pytest.mark.parametrize("ids", [(1, 2), ("1", "-2"), ('http://x.org/a b?c="1"', "巴")])
def test_an_id_may_look_like_a_number(tmp_path, ids):
    rows = [{"id": key, "names": [name]} for key, name in zip(ids, ("Paris", "France"), strict=True)]
    rows += [{"head": ids[0], "relation": "country", "tail": ids[1]}]
    rows += [{"head": ids[0], "relation": "founded", "tail": 1850}]
    graph = graph_of_rows(tmp_path, *rows)
    expected = {("Paris", "country", "France"), ("Paris", "founded", "1850")}
    assert found(graph, "Paris was founded in France in 1850.") == expected


def test_a_graph_names_its_relations_and_types(tmp_path):
    names = {"en": "creature", "zh": "生灵"}
    rows = [{"type": "being", "names": names}, {"relation": "founder", "names": {"en": "founder of", "zh": "创办了"}}]
    rows += [{"id": "Jobs", "names": {"zh": ["乔布斯"], "en": ["Jobs"]}, "type": "being"}]
    rows += [{"head": "Jobs", "relation": name, "tail": "Apple"} for name in ("founder", "named_after", "isPart")]
    graph = graph_of_rows(tmp_path, *rows)
    assert [graph.schema.types["being"].name(language) for language in ("english", "chinese")] == [*names.values()]
    assert {relation for _, relation, _ in found(graph, "Jobs and Apple")} == {"founder of", "named after", "is part"}
    assert {relation for _, relation, _ in found(graph, "乔布斯的Apple", "chinese")} == {"创办了", "得名于", "is part"}


def test_all_names_of_an_entity_are_found(tmp_path):
    rows = [{"id": "Q1", "names": {"en": [f"Name {letter}" for letter in "ABCDEFGHIJKL"]}}]
    graph = graph_of_rows(tmp_path, *rows, {"head": "Q1", "relation": "country", "tail": "France"})
    assert len(graph.lookup("Name L", "english")) == 1


def test_a_number_of_a_quantity_is_no_year(tmp_path):
    rows = [{"id": "Utopia", "type": "place"}, {"head": "Utopia", "relation": "population", "tail": "350"}]
    rows += [{"head": "Utopia", "relation": "date_founded", "tail": "1850"}]
    graph = graph_of_rows(tmp_path, *rows)
    assert found(graph, "Utopia, 1850 metres high, has 350 people.") == {("Utopia", "population", "350")}


def test_a_graph_without_types_is_told_of_where_entities_are_asked_for(run_script, tmp_path):
    (tmp_path / "graph.tsv").write_text("Paris\tcapital of\tFrance\n")
    (tmp_path / "texts.txt").write_text("Paris is in France.\n")
    flags = ["finetune/kg2instructions.py", "--texts", "texts.txt", "--heldout", 0, "--knowledge", "graph.tsv"]
    result = run_script(*flags, "--tasks", "NER", "--output_dir", "entities")
    assert result.returncode == 1 and "graph.tsv: gives no entity a type" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "entities").exists()
    (tmp_path / "types.jsonl").write_text(json.dumps({"id": "Paris", "type": "place"}))
    result = run_script(*flags, "types.jsonl", "--tasks", "NER", "--output_dir", "entities")
    assert result.returncode == 0, result.stderr
    [case] = [json.loads(line) for line in (tmp_path / "entities/train.jsonl").read_text().splitlines()]
    assert case["gold"] == [{"text": "Paris", "type": "place"}] and case["schema"] == ["place"]
    assert (tmp_path / "entities/heldout.jsonl").read_text() == ""


@pytest.mark.parametrize("compress", [None, gzip.compress])
def test_n_triples_are_read(tmp_path, compress):
    path = tmp_path / ("graph.nt" + (".gz" if compress else ""))
    path.write_bytes((compress or bytes)(N_TRIPLES.encode()))
    graph = graph_of(path)
    text = "France made Paris its capital; the metro of the City of Light opened on 19 July 1900."
    assert found(graph, text) == {
        ("France", "capital", "Paris"),
        ("Paris", "metro opened", "19 July 1900"),
        ("Paris", "alternative name", "City of Light"),
    }
    assert graph.type(graph.lookup("Paris", "english")[0]) == "place"  # a town is a place
    assert graph.lookup("巴黎", "chinese") == graph.lookup("Paris", "english")
    with pytest.raises(ValueError, match="line 1: not a line of N-Triples"):
        path = tmp_path / "bad.nt"
        path.write_text("Paris is a city\n")
        build_database([path], None, tmp_path / "bad.db")


def test_characters_that_java_escaped_as_two_halves_are_read(tmp_path):
    path = tmp_path / "graph.nt"
    label = '<http://x.org/r/Tree> <http://www.w3.org/2000/01/rdf-schema#label> "\\uD83C\\uDF33 Tree"@en .'
    path.write_text(f"{label}\n<http://x.org/r/Tree> <http://x.org/o/in> <http://x.org/r/Wood> .\n")
    assert len(graph_of(path).lookup("🌳 Tree", "english")) == 1


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("a.jsonl", {"id": "Ann", "names": ["Ann"], "type": ["person"]}, 'a.jsonl, line 1: "type" must be a text'),
        ("b.jsonl", {"head": "Ann", "relation": "born", "tail": "9" * 5000 + "-01"}, None),
    ],
)
def test_odd_facts_are_named_or_read(tmp_path, name, line, message):
    (tmp_path / name).write_text(json.dumps(line))
    if message:
        with pytest.raises(ValueError, match=message):
            graph_of(tmp_path / name)
    else:
        assert graph_of(tmp_path / name).count("triples") == 1


@pytest.mark.parametrize("compress", [None, bz2.compress])
def test_a_wikidata_dump_is_read(tmp_path, compress):
    path = tmp_path / ("dump.json" + (".bz2" if compress else ""))
    lines = ",\n".join(json.dumps(entity, ensure_ascii=False) for entity in WIKIDATA)
    path.write_bytes((compress or bytes)(f"[\n{lines}\n]\n".encode()))
    graph = graph_of(path)
    text = "Victor Hugo, born February 26, 1802, spoke French in Paris, capital of France, among 2.1 million people."
    assert found(graph, text) == {
        ("Victor Hugo", "date of birth", "February 26, 1802"),
        ("France", "capital", "Paris"),  # of P1376, the other way round
        ("Paris", "population", "2.1 million"),
    }
    assert found(graph, "巴黎是法国首都，约有214.6万人。", "chinese") == {
        ("法国", "首都", "巴黎"),
        ("巴黎", "人口", "214.6万"),
    }
    kinds = {name: graph.type(graph.lookup(name, "english")[0]) for name in ("Paris", "France", "Victor Hugo")}
    assert kinds == {"Paris": "place", "France": "place", "Victor Hugo": "person"}
    assert not graph.lookup("Paname", "english")
    assert graph.candidates("French", "english") == ()  # a language is no entity
    assert graph.dropped() == 5  # a person's capital, and four classes that are no entities of the dump


def test_plain_triples_are_read_as_tsv_and_as_json_lines(tmp_path):
    (tmp_path / "graph.tsv").write_text("Ada Lovelace\tworked with\tCharles Babbage\nAda Lovelace\tborn\t1815\n")
    (tmp_path / "graph.jsonl").write_text(
        '{"head": "Ada Lovelace", "relation": "worked with", "tail": "cb"}\n'
        '{"head": "Ada Lovelace", "relation": "born", "tail": "1815-12-10"}\n'
        '{"id": "cb", "names": {"en": ["Charles Babbage", "Babbage"]}, "type": "engineer"}\n'
        '{"relation": "born", "names": {"en": "born", "zh": "誕生"}}\n'
    )
    for name in ("graph.tsv", "graph.jsonl"):
        graph = graph_of(tmp_path / name)
        assert found(graph, "Ada Lovelace (1815) met Charles Babbage.") == {
            ("Ada Lovelace", "worked with", "Charles Babbage"),
            ("Ada Lovelace", "born", "1815"),
        }
        (tmp_path / "graph.db").unlink()
    assert graph.schema.relations["born"].name_zh == "誕生"  # only entities are sought in simplified letters
    assert graph.schema.types["engineer"].name_en == "engineer"
    assert not graph.lookup("Ada", "english")


def test_a_database_is_built_again_only_when_its_source_changes(tmp_path):
    path = tmp_path / "graph.tsv"
    path.write_text("A Town\tin\tB Land\n")
    database = tmp_path / "graph.db"
    assert build_database([path], None, database)
    assert not build_database([path], None, database)
    path.write_text("A Town\tin\tB Land\nC Town\tin\tB Land\n")
    assert build_database([path], None, database)
    assert sqlite3.connect(database).execute("SELECT count(*) FROM triples").fetchone() == (2,)
    database.write_text("no database")
    with pytest.raises(ValueError, match="is not a knowledge graph's database"):
        build_database([path], None, database)
    assert database.read_text() == "no database"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["graph.db", "graph.tsv"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    path = tmp_path / "graph.tsv"
    path.write_text("".join(f"Town {n}\tin\tLand {n}\n" for n in range(2000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"graph.db: .*make room on that disk"):
            build_database([path], None, tmp_path / "graph.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["graph.tsv"]


@pytest.mark.parametrize(
    ("value", "text", "said"),
    [
        ("1889-05-06", "on 6 May 1889 it", "6 May 1889"),
        ("1889-05-06", "on May 6th, 1889 it", "May 6th, 1889"),
        ("1889-05-06", "于1889年5月6日落成", "1889年5月6日"),
        ("1889-05-06", "since 1889.", "1889"),
        ("1889-05-06", "on 1889/5/6 it", "1889/5/6"),
        ("1889-05-06", "on 6.5.1889.", "6.5.1889"),
        ("1889", "on 6 May 1889 it", "1889"),
        ("1889-05-06", "in June 1889", None),
        ("-0044", "in 44 BC", "44"),
        ("-0044", "公元前44年", "44"),
        ("1889", "一八八九年落成", "一八八九"),
        ("1889", "in 1887, 1889, and 1,889", "1889"),
        ("1889", "cost 1889.5 or $1889 or 1889%", None),
        ("3500000", "3.5 million people", "3.5 million"),
        ("3512345", "3.5 million people", "3.5 million"),
        ("3512345", "4 million people", None),
        ("3500000", "约350万人", "350万"),
        ("643801", "643,801 sq km", "643,801"),
        ("1850", "1,850 km long", "1,850"),
        ("1850", "全长1850公里", "1850"),
        ("1850", "the 1850s", None),
        ("5", "5 islands", None),
    ],
)
def test_dates_and_quantities_are_matched_in_their_surface_forms(value, text, said):
    value = read_value(value)
    spans = [span for mention in find_values(text) if (span := matching_span(value, mention))]
    assert [text[start:stop] for start, stop in spans[:1]] == ([said] if said else [])


def test_a_number_too_large_for_a_float_is_no_quantity():
    assert [mention.value for mention in find_values("n = 12" + "0" * 400 + " in 1889")] == ["1889"]


def test_texts_are_read_as_json_lines_plain_lines_and_whole_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "T", "text": "It rains."}\n{"text": "床前明月光"}\n', "utf-8")
    (tmp_path / "a.txt").write_text("\ufeffIt rains.\n\n床前明月光\u200b\n", "utf-8")
    rows = [(doc.text.strip(), doc.language, doc.title) for doc in read_documents(tmp_path / "a.jsonl")]
    assert rows == [("It rains.", "english", "T"), ("床前明月光", "chinese", "")]
    assert [doc.text.strip() for doc in read_documents(tmp_path / "a.txt")] == ["It rains.", "床前明月光"]
    [whole] = read_documents(tmp_path / "a.txt", whole_files=True)
    assert whole.text.startswith("It rains.\n\n床前") and whole.language == "chinese"
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"body": "not"}\n')
    with pytest.raises(ValueError, match=r'b.jsonl, line 2: no "text", it has body; name the fields'):
        list(read_documents(tmp_path / "b.jsonl"))
    with pytest.raises(ValueError, match="line 1: no text under body"):
        list(read_documents(tmp_path / "b.jsonl", fields=["body"]))
    (tmp_path / "d.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"^\S+d.txt, line 2: not UTF-8"):
        list(read_documents(tmp_path / "d.txt"))
    (tmp_path / "c.jsonl").write_text('{"text": "fine", "links": [{"start": 3, "end": 9, "target": "x"}]}\n')
    with pytest.raises(ValueError, match=r'c.jsonl, line 1: "links" must be'):
        list(read_documents(tmp_path / "c.jsonl"))
