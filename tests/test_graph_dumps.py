"""Knowledge graphs as they are really published: Wikidata's dumps, DBpedia's N-Triples, tables from spreadsheets."""

import bz2
import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowlm.supervision.graph_readers import Name, Triple, read_json_lines, read_n_triples, read_tsv, read_wikidata
from knowlm.supervision.n_triples import read_statement

EXCERPT = Path(__file__).with_name("wikidata_excerpt.json")
WIKIDATA = "http://www.wikidata.org/"
LABEL = "<http://www.w3.org/2000/01/rdf-schema#label>"
XSD = "http://www.w3.org/2001/XMLSchema#"


def triples(read, path):
    return [(fact.head, fact.relation, fact.tail, fact.value) for fact in read(path) if isinstance(fact, Triple)]


def names(read, path):
    return {(fact.key, fact.language, fact.name) for fact in read(path) if isinstance(fact, Name)}


def of(rows, head, relation):
    """What a graph says of something: values, or the tails that have none."""
    return [tail if value is None else value for h, r, tail, value in rows if (h, r) == (head, relation)]


def test_of_wikidatas_statements_only_the_best_rank_counts():
    rows = triples(read_wikidata, EXCERPT)
    assert of(rows, "Q90", "P17") == ["Q142"]  # preferred, so the normal one is history
    assert of(rows, "Q90", "P1082") == [2145906.0]
    assert of(rows, "Q1048", "P19") == ["Q220"]  # the other is deprecated
    assert of(rows, "Q220", "P571") == ["-0753-04-21"]
    assert of(rows, "Q535", "P19") == []  # the preferred statement says that nobody knows
    assert of(rows, "Q535", "P20") == ["Q90"]


def test_wikidatas_values_are_read_as_precisely_as_they_are_known():
    rows = triples(read_wikidata, EXCERPT)
    assert of(rows, "Q1048", "P569") == ["-0100-07-12"] and of(rows, "Q1048", "P570") == ["-0044-03-15"]
    assert of(rows, "Q535", "P569") == ["1802-02-26"] and of(rows, "Q535", "P570") == ["1885-05"]
    assert of(rows, "Q243", "P571") == ["1889"]
    assert of(rows, "Q142", "P2046") == [643801.0] and of(rows, "Q243", "P2048") == [330.0]
    assert of(rows, "Q243", "P84") == ["Q778243"]  # an old dump's, without "id"
    read = {relation for head, relation, _, _ in rows if head == "Q90"}
    assert read == {"P31", "P17", "P1376", "P1082", "P2046"}  # no coordinates, texts, files, ids, unknown values
    assert not any(head in ("Q17", "Q999999", "P19", "L99") for head, *_ in rows)


def test_wikidatas_names_are_english_and_chinese_of_every_script():
    found = names(read_wikidata, EXCERPT)
    assert {name for key, language, name in found if (key, language) == ("Q142", "chinese")} == {"法国", "法國"}
    assert {name for key, language, name in found if (key, language) == ("Q90", "chinese")} == {"巴黎", "光之城"}
    assert ("Q243", "chinese", "艾菲爾鐵塔") in found and ("Q1048", "", "Julius Caesar") in found
    assert ("relation P19", "english", "place of birth") in found
    assert not {name for _, _, name in found} & {"Paname", "Париж"}


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_broken_or_cut_dump_is_told(tmp_path, suffix, compress, capsys):
    lines = EXCERPT.read_bytes().split(b"\n")
    broken = tmp_path / f"broken.json{suffix}"
    broken.write_bytes(compress(b"\n".join([*lines[:4], lines[4][:200], *lines[5:]])))
    with pytest.raises(ValueError, match=rf"^{broken}, line 5: not an entity of Wikidata's dump"):
        list(read_wikidata(broken))
    excerpt = tmp_path / f"excerpt.json{suffix}"
    excerpt.write_bytes(compress(b"\n".join(lines[:5])))
    assert triples(read_wikidata, excerpt)
    assert "excerpt.json" + suffix + ": ends without the list's ]" in capsys.readouterr().err
    if suffix:
        cut = tmp_path / f"cut.json{suffix}"
        cut.write_bytes(compress(EXCERPT.read_bytes())[:-40])
        with pytest.raises(ValueError, match=r"cut.json\S+: can't be read to its end"):
            list(read_wikidata(cut))


def test_a_dump_is_streamed(tmp_path):
    entity = EXCERPT.read_text("utf-8").split("\n")[1]
    path = tmp_path / "dump.json.gz"
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.write("[\n" + f"{entity}\n" * 4000 + "]\n")  # 25 MB of text
    tracemalloc.start()
    count = sum(1 for _ in read_wikidata(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 40_000 and peak < 1e6


def test_wikidatas_rdf_gives_the_same_facts_as_its_json(tmp_path):
    path = tmp_path / "truthy.nt"
    statements = [
        f"<{WIKIDATA}entity/Q1048> <{WIKIDATA}prop/direct/P19> <{WIKIDATA}entity/Q220> .",
        f'<{WIKIDATA}entity/Q1048> <{WIKIDATA}prop/direct/P570> "-0043-03-15T00:00:00Z"^^<{XSD}dateTime> .',
        f'<{WIKIDATA}entity/Q220> <{WIKIDATA}prop/direct/P571> "-0752-04-21T00:00:00Z"^^<{XSD}dateTime> .',
        f'<{WIKIDATA}entity/Q243> <{WIKIDATA}prop/direct/P571> "1889-01-01T00:00:00Z"^^<{XSD}dateTime> .',
        f'<{WIKIDATA}entity/Q243> <{WIKIDATA}prop/direct/P2048> "+330"^^<{XSD}decimal> .',
    ]
    noise = [
        f"<{WIKIDATA}entity/Q220> <{WIKIDATA}prop/P571> <{WIKIDATA}entity/statement/Q220-1> .",
        f'<{WIKIDATA}entity/Q220> <http://wikiba.se/ontology#sitelinks> "270"^^<{XSD}integer> .',
        f"<https://en.wikipedia.org/wiki/Rome> <http://schema.org/about> <{WIKIDATA}entity/Q220> .",
        f"<{WIKIDATA}entity/P19> <{WIKIDATA}prop/direct/P1647> <{WIKIDATA}entity/P276> .",
    ]
    labels = [
        f'<{WIKIDATA}entity/Q220> {LABEL} "Rome"@en .',
        f'<{WIKIDATA}entity/Q220> {LABEL} "\\u7F57\\u9A6C"@zh-cn .',
        f'<{WIKIDATA}entity/P19> {LABEL} "place of birth"@en .',
    ]
    path.write_text("\n".join(statements + noise + labels))  # no line break at its end
    json_triples = {(h, r, v or t) for h, r, t, v in triples(read_wikidata, EXCERPT)}
    rdf_triples = [(h, r, v or t) for h, r, t, v in triples(read_n_triples, path)]
    assert len(rdf_triples) == 5 and set(rdf_triples) <= json_triples
    assert names(read_n_triples, path) == {
        ("Q220", "english", "Rome"),
        ("Q220", "chinese", "罗马"),
        ("relation P19", "english", "place of birth"),
    }


def test_dbpedias_n_triples_are_read(tmp_path):
    path = tmp_path / "dbpedia.nt"
    ontology, resource = "http://dbpedia.org/ontology/", "http://dbpedia.org/resource/"
    path.write_text(
        "# started 2026-01-01T00:00:00Z\n"
        f'<{resource}Julius_Caesar> {LABEL} "Julius Caesar"@en .\r\n'
        f'<{resource}Julius_Caesar> {LABEL} "Jules César"@fr .\n'
        f'<{resource}Julius_Caesar> <{ontology}deathDate> "-0044-03-15"^^<{XSD}date> .\n'
        f'<{resource}Paris> <{ontology}areaTotal> "1.054E8"^^<{XSD}double> .\n'
        f'<{resource}Paris> <{ontology}populationDensity> "20238.6"^^<http://dbpedia.org/datatype/perSquareKilometre>.\n'
        f'<{resource}Paris> <{ontology}foundingYear> "1889+01:00"^^<{XSD}gYear> .\n'
        f'<{resource}Paris> <{ontology}postalCode> "75001"^^<{XSD}string> .\n'
        f'<{resource}Paris> <{ontology}wikiPageID> "22989"^^<{XSD}integer> .\n'
        f"<{resource}Paris> <{ontology}mayor> <{resource}Paris__mayor__1> .\n"
        f"<{resource}Paris> <{ontology}twin> _:b0.\n"
        f'_:b0 {LABEL} "Rome" .\n',
        "utf-8",
    )
    rows = triples(read_n_triples, path)
    paris = {relation.removeprefix(ontology): value or tail for h, relation, tail, value in rows if "Paris" in h}
    assert paris == {
        "areaTotal": 1.054e8,
        "populationDensity": 20238.6,
        "foundingYear": "1889",
        "mayor": f"{resource}Paris__mayor__1",
        "twin": "_:b0 of dbpedia.nt",
    }
    assert of(rows, f"{resource}Julius_Caesar", f"{ontology}deathDate") == ["-0044-03-15"]
    assert ("_:b0 of dbpedia.nt", "", "Rome") in names(read_n_triples, path)


@pytest.mark.parametrize(
    "line",
    [
        "<http://x.org/a> <http://x.org/b> <http://x.org/c>",
        '"a" <http://x.org/b> <http://x.org/c> .',
        "<http://x.org/a> _:b <http://x.org/c> .",
        "<http://x.org/a> <http://x.org/b> 'c' .",
        '<http://x.org/a> <http://x.org/b> "c"@ .',
        '<http://x.org/a> <http://x.org/b> "c\\x" .',
        '<http://x.org/a> <http://x.org/b> "c . ',
        "<http://x.org/a b> <http://x.org/b> <http://x.org/c> .",
        "<http://x.org/a> <http://x.org/b> <http://x.org/c> . <http://x.org/d>",
    ],
)
def test_what_is_no_n_triples_is_refused_by_line(tmp_path, line):
    path = tmp_path / "bad.nt"
    path.write_text(f"\n# fine\n{line}\n")
    with pytest.raises(ValueError, match=rf"^{path}, line 3: not a line of N-Triples"):
        list(read_n_triples(path))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IRI = st.from_regex(r"http://x\.org/[A-Za-z0-9_~.é中#%-]{1,12}", fullmatch=True)
BLANK = st.from_regex(r"_:[A-Za-z0-9][A-Za-z0-9._-]{0,5}[A-Za-z0-9]", fullmatch=True)
GAP = st.sampled_from(["", " ", "\t", "  "])


@st.composite
def n_triples_line(draw):
    """A legal line, in one of the many ways to write it."""

    def character(letter):
        code = ord(letter)
        short = {"\t": "\\t", "\b": "\\b", "\n": "\\n", "\r": "\\r", "\f": "\\f", '"': '\\"', "\\": "\\\\", "'": "\\'"}
        ways = [f"\\U{code:08X}"] + [f"\\u{code:04x}"] * (code < 0x10000) + [letter] * (letter not in '"\\\n\r')
        return draw(st.sampled_from(ways + [way for plain, way in short.items() if plain == letter]))

    def term(value):
        if value.startswith("_:"):
            return value
        escaped = draw(st.sampled_from(["", "x", "é中x/"]))
        return "<" + "".join(f"\\u{ord(letter):04X}" if letter in escaped else letter for letter in value) + ">"

    end = draw(st.sampled_from(["", "@en", "@zh-Hant-TW", f"^^<{XSD}date>", f"^^<{XSD}string>"]))
    literal = '"' + "".join(map(character, draw(TEXT))) + '"' + end
    tail = draw(st.one_of(IRI.map(term), BLANK.map(term), st.just(literal)))
    head, relation = term(draw(st.one_of(IRI, BLANK))), term(draw(IRI))
    gaps = [draw(GAP) for _ in range(4)]
    split = [gaps[0] or " ", gaps[1], gaps[2] or " ", gaps[3] or " "]  # rdflib wants a space behind a blank node
    comment = draw(st.sampled_from(["", " # a comment", '# "another" <one> .']))
    return f"{split[0]}{head} {relation}{split[1]} {tail}{split[3]}.{comment}"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(n_triples_line())
def test_a_line_means_what_rdflib_reads_in_it(line):
    from rdflib import BNode, Graph, Literal

    graph = Graph().parse(data=line + "\n", format="nt")
    [(head, relation, tail)] = graph
    ours = read_statement(line)
    assert ours.relation == str(relation)
    assert ours.head.startswith("_:") if isinstance(head, BNode) else ours.head == str(head)
    if isinstance(tail, Literal):
        assert ours.tail is None
        assert (ours.language, ours.datatype) == (tail.language or "", str(tail.datatype or ""))
        if not ours.datatype.endswith("date"):  # rdflib rewrites dates
            assert ours.literal == str(tail)
    else:
        assert ours.tail.startswith("_:") if isinstance(tail, BNode) else ours.tail == str(tail)


def test_triples_of_a_spreadsheet_are_read(tmp_path):
    path = tmp_path / "graph.tsv"
    path.write_bytes(
        "\ufeff# exported today\r\nhead\trelation\ttail\r\n"
        '"Dwayne ""The Rock"" Johnson"\tborn\t1972\r\n"Heroes"\tby\tDavid Bowie\r\n#MeToo\tis a\tmovement\r\n'.encode()
    )
    assert triples(read_tsv, path) == [
        ('Dwayne "The Rock" Johnson', "born", "1972", "1972"),
        ('"Heroes"', "by", "David Bowie", None),
        ("#MeToo", "is a", "movement", None),
    ]


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ("a\tb", "found 2 columns"),
        ("a\tb\tc\td", "found 4 columns"),
        ("a\tb\t", "found an empty one"),
        ("a\t \tc", "found an empty one"),
    ],
)
def test_a_row_of_other_columns_is_told_by_line(tmp_path, row, fact):
    path = tmp_path / "graph.tsv"
    path.write_text(f"Paris\tin\tFrance\n{row}\n")
    with pytest.raises(ValueError, match=rf"^{path}, line 2: head, relation and tail are needed.*{fact}"):
        list(read_tsv(path))


def test_a_truth_value_is_no_end_of_a_triple(tmp_path):
    path = tmp_path / "graph.jsonl"
    path.write_text(json.dumps({"head": "Paris", "relation": "is", "tail": True}))
    with pytest.raises(ValueError, match="line 1: head, relation and tail must be texts, tail may be a number"):
        list(read_json_lines(path))


@pytest.mark.slow
def test_a_wikidata_dump_becomes_instructions(tmp_path):
    script = Path(__file__).resolve().parents[1] / "finetune/kg2instructions.py"
    texts = tmp_path / "texts.txt"
    texts.write_text(
        "Julius Caesar, born in Rome, was killed on 15 March 44 BC.\nParis is the capital of France.\n"
        "Victor Hugo, born on 26 February 1802, died in Paris.\nThe Eiffel Tower in Paris is of 1889.\n"
        "尤利乌斯·凯撒生于罗马，卒于公元前44年3月15日。\n巴黎是法國首都。\n雨果在巴黎去世。\n"
    )
    command = [sys.executable, script, "--texts", texts, "--knowledge", EXCERPT, "--output_dir", tmp_path / "out"]
    command += ["--tasks", "RE", "--heldout", "0.4", "--empty_share", "1"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "out/evidence.jsonl").open(encoding="utf-8")]
    found = {(t["head_alias"], t["relation"], t["tail_alias"]) for row in rows for t in row["triples"]}
    assert found >= {
        ("Julius Caesar", "birthplace", "Rome"),
        ("Julius Caesar", "death_date", "44"),
        ("France", "capital", "Paris"),
        ("Victor Hugo", "deathplace", "Paris"),
        ("Victor Hugo", "birth_date", "26 February 1802"),
        ("Eiffel Tower", "date_founded", "1889"),
        ("法國", "capital", "巴黎"),
        ("雨果", "deathplace", "巴黎"),
    }
