"""examples/extract.py, and the tables and graphs of what it finds."""

import csv
import json
import os
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations, pairwise
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.extraction.graph_files import aligned, as_graph, as_turtle, write_graph, write_table

TEXTS = [
    {"id": "a", "text": 'Marie Curie was born in "Warsaw", Poland. 😀 She lived in Paris.'},
    {"id": 2, "text": "鲁迅（周树人）出生于浙江省绍兴市。"},
    {"id": "nothing", "text": ""},
]


def mention(text, start=0):
    return {"text": text, "start": start, "end": start + len(text)}


RELATIONS = [
    {
        "id": "d 1",
        "relations": [
            {"head": mention("Marie Curie"), "relation": "出生地", "tail": mention("华沙", 20), "score": 0.5},
            {"head": mention("A$B$ \x01<x>&"), "relation": "part of", "tail": mention('C"\\|', 9), "score": 0.25},
            {"head": mention("Marie Curie"), "relation": "spouse", "tail": mention("Pierre", 40), "score": 0.75},
            {"head": mention("Pierre", 40), "relation": "spouse", "tail": mention("Marie Curie"), "score": None},
        ],
    },
    {
        "id": 2,
        "relations": [
            {"head": mention("Marie Curie", 5), "relation": "出生地", "tail": mention("华沙", 20), "score": 0.9}
        ],
    },
]
ENTITIES = [{"id": 1, "entities": [mention("Paris") | {"type": "place", "score": 0.5}]}]
EVENTS = [
    {
        "id": 1,
        "events": [
            {
                "type": "trip",
                "trigger": mention("went", 5),
                "arguments": [mention("John") | {"role": "who"}, mention("Rome", 13) | {"role": "where"}],
                "score": 0.5,
            }
        ],
    }
]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_file_of_texts_becomes_lines_with_offsets_a_table_and_graphs(run_warm, tiny_llama, texts, tmp_path):
    (tmp_path / "schema.json").write_text('["lived in", "born in", "spouse"]')
    outputs = ["--output", "o.jsonl", "--table", "t.csv", "--table", "-", "--graph", "g.ttl", "--graph", "g.png"]
    command = ["examples/extract.py", "--base_model", tiny_llama, "--max_new_tokens", 40, "--task", "RE"]
    result = run_warm(*command, "--schema", tmp_path / "schema.json", "--input", texts, *outputs)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["a", 2, "nothing"] and rows[2]["relations"] == []
    for row, source in zip(rows, TEXTS, strict=True):
        assert row.keys() == {"id", "relations"}
        for triple in row["relations"]:
            assert triple.keys() == {"head", "relation", "tail", "score"} and 0 < triple["score"] <= 1
            assert all(source["text"][e["start"] : e["end"]] == e["text"] for e in (triple["head"], triple["tail"]))
    count = sum(len(row["relations"]) for row in rows)
    assert len((tmp_path / "t.csv").read_text().splitlines()) == count + 1
    assert result.stdout.startswith("id") and f"o.jsonl: {count} relations in 3 texts" in result.stderr
    assert (tmp_path / "g.ttl").is_file() and (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_text_of_the_command_line_is_read_freely_or_above_a_threshold(run_warm, tiny_llama, tmp_path):
    command = ["examples/extract.py", "--base_model", tiny_llama, "--max_new_tokens", 10, "--task", "EE"]
    command += ["--schema", '[{"type": "trip", "roles": ["who"]}]', "--text", "John went.", "--output", "o.jsonl"]
    for flags in (["--free"], ["--threshold", 1]):
        result = run_warm(*command, *flags)
        assert result.returncode == 0, result.stderr
        assert json.loads((tmp_path / "o.jsonl").read_text()) == {"id": "1", "events": []}


@pytest.mark.parametrize("rows", [RELATIONS, ENTITIES, EVENTS, []])
def test_graphs_are_read_back_by_other_programs(rows, tmp_path):
    import networkx
    from rdflib import RDF, RDFS, Graph, Literal

    for ending in ("ttl", "graphml", "png", "svg"):
        write_graph(rows, tmp_path / f"graph.{ending}")
    turtle = Graph().parse(tmp_path / "graph.ttl")
    graph = networkx.read_graphml(tmp_path / "graph.graphml", force_multigraph=True)
    ours = as_graph(rows)
    assert len(graph.edges) == len(ours.edges) and set(graph) == set(ours)
    if rows is RELATIONS:
        heads = {str(turtle.value(node, RDFS.label)) for node in turtle.objects(None, RDF.subject)}
        assert heads == {"Marie Curie", "A$B$ \x01<x>&", "Pierre"}
        assert len(set(turtle.subjects(RDF.type, RDF.Statement))) == 5
        assert len(graph.edges) == 4  # of two documents that say the same, one
        (birth,) = (edge for *_, edge in graph.edges(data=True) if edge["label"] == "出生地")
        assert birth["score"] == 0.9 and birth["documents"] == "2\nd 1"
    if rows is EVENTS:
        (event,) = turtle.subjects(None, Literal("went"))
        assert {str(turtle.value(node, RDFS.label)) for node in turtle.objects(event)} >= {"trip", "John", "Rome"}
    assert (tmp_path / "graph.svg").read_text().count("<svg") == 1


@given(st.text(alphabet=" aé国%/<>\"'\\\\\n\r\t\x01\u200b😀{}|^`#.;-", min_size=1, max_size=12))
def test_turtle_keeps_any_name_and_holds_only_whole_escapes(name):
    from rdflib import RDFS, Graph

    rows = [{"id": name, "relations": [{"head": mention(name), "relation": name, "tail": mention("b"), "score": 0.5}]}]
    written = as_turtle(rows)
    assert not re.search(r"^@prefix .*%", written, re.MULTILINE)
    for iri in re.findall(r"<urn:[^>]*>", written):
        assert re.fullmatch(r"<urn:(?:[\w:.~-]|%[0-9A-F]{2})*>", iri)
    labels = {str(label) for label in Graph().parse(data=written, format="turtle").objects(None, RDFS.label)}
    assert labels == {name, "b"}


def test_characters_that_no_font_has_are_told_in_one_line(tmp_path, capfd):
    rows = [{"id": 1, "entities": [mention("\U0001f469 \U000e0fff") | {"type": "place", "score": 0.5}]}]
    write_graph(rows, tmp_path / "g.png")
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1 and "no font here has" in told[0] and (tmp_path / "g.png").is_file()


def test_names_of_a_picture_do_not_lie_on_each_other_and_arrows_end_at_them(tmp_path):
    names = [f"Organisation of the number {number}" for number in range(14)]
    pairs = [*pairwise(names), (names[0], names[0])]
    triples = [{"head": mention(a), "relation": "of", "tail": mention(b), "score": 1.0} for a, b in pairs]
    event = EVENTS[0]["events"][0] | {"arguments": []}
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.pyplot.close", drawn.append)
        write_graph([{"id": 1, "relations": triples, "events": [event]}], tmp_path / "g.png")
    drawn[0].canvas.draw()
    (axes,) = drawn[0].axes
    boxes = [text.get_bbox_patch().get_window_extent() for text in axes.texts if text.get_fontsize() == 9]
    assert len(boxes) == len(names) + 1  # and the event without arguments
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    arrows = [text.arrow_patch for text in axes.texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == len(pairs) - 1  # that of a name to itself is a label
    for arrow in arrows:
        corners = arrow.get_transform().transform_path(arrow.get_path()).vertices
        assert not any(box.contains(x, y) for box in boxes for x, y in corners)


def test_an_edge_of_many_documents_takes_time_as_they_do():
    rows = [{"id": n, "entities": [mention("China") | {"type": "place", "score": n / 30_000}]} for n in range(30_000)]
    begin = time.process_time()
    ((_, _, edge),) = as_graph(rows).edges(data=True)
    assert time.process_time() - begin < 10  # each document sorted all before it: minutes
    assert edge["documents"].split("\n") == sorted(map(str, range(30_000))) and edge["score"] == 29_999 / 30_000


def test_the_same_records_give_the_same_files(tmp_path):
    for ending in ("ttl", "graphml", "png", "svg"):
        write_graph(RELATIONS, tmp_path / f"a.{ending}")
        write_graph(RELATIONS, tmp_path / f"b.{ending}")
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_tables_have_a_line_for_each_record(tmp_path):
    for ending in ("md", "csv", "txt"):
        write_table(RELATIONS, tmp_path / f"table.{ending}")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.reader(file))
    assert cells[0] == ["id", "head", "relation", "tail", "start", "score"] and len(cells) == 6
    assert cells[2][1:4] == ["A$B$ \x01<x>&", "part of", 'C"\\|']
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 7 and all(line.replace("\\|", "").count("|") == 7 for line in lines)
    assert "who: John; where: Rome" in aligned(EVENTS)
    columns = [line.index("0.") for line in aligned(RELATIONS[:1]).splitlines() if "0." in line and "沙" not in line]
    assert len(columns) == 2 and len(set(columns)) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--schema", '["a"'], "is not JSON"),
        (["--schema", "[]"], "names no label"),
        (["--schema", "labels.json"], "labels.json: no such file"),
        (["--schema", '["a"]', "--text", "x", "--base_model", "nowhere"], "nowhere: no such model folder"),
        (["--schema", "a", "--threshold", "2"], "from 0 to 1"),
        (["--schema", '["a"]', "--input", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_a_mistake_in_what_is_given_is_one_line(run_script, tmp_path, flags, message):
    rest = [] if "--input" in flags or "--text" in flags else ["--text", "x"]
    rest += [] if "--base_model" in flags else ["--base_model", "m"]
    result = run_script("examples/extract.py", "--task", "NER", "--output", "o.jsonl", *flags, *rest)
    assert result.returncode == 1
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("o.jsonl*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--graph", "g.html"], "must end in .ttl, .graphml, .png, .svg"),
        (["--table", "t.xls"], "must end in .md, .csv, .txt"),
        (["--threshold", "2", "--free"], "goes without --free"),
        (["--window", "5000"], "at most 1000"),
        (["--overlap", "600"], "less than it"),
        (["--batch_size", "0"], "at least 1"),
        (["--lora", "x"], "unrecognized arguments: --lora"),
        (["--table", "t.csv", "--table", "./t.csv"], "must be different files"),
        (["--graph", "folder.ttl"], "folder.ttl: is a folder, a file is needed"),
        (["--graph", "pipe.ttl"], "pipe.ttl: is a device, a file is needed"),
        (["--schema", "labels.txt", "--table", "labels.txt"], "must be different files"),
    ],
)
def test_a_wrong_command_stops_in_one_line(run_script, tmp_path, flags, message):
    (tmp_path / "folder.ttl").mkdir()
    os.mkfifo(tmp_path / "pipe.ttl")
    (tmp_path / "labels.txt").write_text("person")
    command = ["--base_model", "m", "--task", "NER", "--schema", '["a"]', "--text", "x", "--output", "o"]
    result = run_script("examples/extract.py", *command, *flags)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_texts_are_not_overwritten_by_what_they_hold(run_script, texts, tmp_path):
    before = texts.read_bytes()
    command = ["--base_model", "m", "--task", "NER", "--schema", "a", "--input", texts, "--output", texts]
    result = run_script("examples/extract.py", *command)
    assert result.returncode == 2 and "must be different files" in result.stderr
    assert texts.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"id": 1, "text": "a"}, {"id": "1", "text": "b"}], "texts.json: two texts have the same id"),
        ([{"id": 1, "text": "a \ud83d"}], "texts.json, record 1: holds half a character"),
    ],
)
def test_texts_that_cannot_be_told_or_read_are_named(run_script, tmp_path, given, message):
    (tmp_path / "texts.json").write_text(json.dumps(given))
    command = ["--base_model", "m", "--task", "NER", "--schema", "a", "--input", "texts.json", "--output", "o"]
    result = run_script("examples/extract.py", *command)
    assert result.returncode == 1
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_server_that_is_not_there_is_told(run_script, tmp_path):
    command = ["--server", "http://127.0.0.1:9", "--task", "NER", "--schema", '["a"]', "--text", "x", "--output", "o"]
    result = run_script("examples/extract.py", *command)
    assert result.returncode == 1
    assert "can't be reached" in result.stderr.splitlines()[-1] and not (tmp_path / "o").exists()


@pytest.fixture
def server(tmp_path):
    """What stands for inference/launch_vllm.py, and the texts it was asked; in the end the output can't be written."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question["text"])
            (tmp_path / "o.jsonl").mkdir(exist_ok=True)
            reply = json.dumps({"items": [], "is_whole": True, "error": None}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_port}", asked
        listener.shutdown()


def test_answers_are_kept_where_the_output_cannot_be_written(run_script, server, texts, tmp_path):
    command = ["examples/extract.py", "--server", server[0], "--task", "NER", "--schema", "a", "--input", texts]
    result = run_script(*command, "--output", "o.jsonl")
    assert result.returncode == 1 and len(server[1]) == 3
    (tmp_path / "o.jsonl").rmdir()
    result = run_script(*command, "--output", "o.jsonl")
    assert result.returncode == 0 and len(server[1]) == 3, result.stderr
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
    assert [path.name for path in tmp_path.glob("o.jsonl*")] == ["o.jsonl"]


@pytest.mark.parametrize(("output", "message"), [("folder", "is a folder"), ("texts.jsonl", "must be different files")])
def test_an_output_that_is_something_else_is_refused_first(run_script, server, texts, tmp_path, output, message):
    (tmp_path / "folder").mkdir()
    command = ["examples/extract.py", "--server", server[0], "--task", "NER", "--schema", "a", "--input", texts]
    result = run_script(*command, "--output", output)
    assert result.returncode == 2 and not server[1]
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
