"""Extracted records as a table, as RDF, as GraphML and as a picture.

Rows are those of examples/extract.py: ``{"id", "entities" | "relations" | "events"}``. In a graph, names that are
written alike are one node.
"""

import csv
import io
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

from knowlm.files import replacing, write_text

GRAPHS = (".ttl", ".graphml", ".png", ".svg")
TABLES = (".md", ".csv", ".txt")
MOST_EDGES = 80  # in a picture, the best by score
LONGEST_LABEL = 32  # characters, in a picture
INCHES = 1.1  # of a picture's unit
WIDER = 1.4  # than high, as names are
LINE, COLUMN = 0.6, 0.065  # units that a name is high, with room below it, and that its letter is wide
COLORS = {"entity": "#cfe3f5", "type": "#f6dfb8", "event": "#d9ead3"}  # of nodes
# Fonts with Chinese that systems have; matplotlib's own has none.
FONTS = ["Noto Sans CJK SC", "Noto Serif CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Arial Unicode MS"]
FONTS += ["Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB"]
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")  # characters that XML forbids or nobody sees


def write_graph(rows: Sequence[dict], path: str | Path) -> None:
    """Turtle, GraphML, PNG or SVG, as the path's ending says."""
    path = Path(path)
    with replacing(path) as partial:
        if path.suffix == ".ttl":
            partial.write_text(as_turtle(rows), encoding="utf-8")
        elif path.suffix == ".graphml":
            import networkx

            networkx.write_graphml(as_graph(rows), partial, encoding="utf-8", named_key_ids=True)
        else:
            lacking = draw(as_graph(rows), partial, path.suffix[1:])
            if lacking:
                print(
                    f"{path}: no font here has {lacking[:40]}, drawn as boxes; a system's package of Noto fonts has "
                    "most (fonts-noto-cjk: Chinese)",
                    file=sys.stderr,
                )


def write_table(rows: Sequence[dict], path: str | Path) -> None:
    """Markdown, CSV or aligned text, as the path's ending says."""
    lines = list(table(rows))
    if Path(path).suffix == ".csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_text(path, text.getvalue())
    elif Path(path).suffix == ".md":
        written = ["| " + " | ".join(_as_markdown(cell) for cell in line) + " |" for line in lines]
        written.insert(1, "|" + "---|" * len(lines[0]))
        write_text(path, "\n".join(written) + "\n")
    else:
        write_text(path, aligned(rows))


def table(rows: Sequence[dict]) -> Iterator[list[str]]:
    """A line of names, then a line for each record; what an event's arguments are is one cell."""
    if any("relations" in row for row in rows):
        yield ["id", "head", "relation", "tail", "start", "score"]
    elif any("events" in row for row in rows):
        yield ["id", "type", "trigger", "arguments", "start", "score"]
    else:
        yield ["id", "text", "type", "start", "end", "score"]
    for row in rows:
        number = str(row["id"])
        for r in row.get("entities", []):
            yield [number, r["text"], r["type"], str(r["start"]), str(r["end"]), _score(r)]
        for r in row.get("relations", []):
            start = str(r["head"]["start"])
            yield [number, r["head"]["text"], r["relation"], r["tail"]["text"], start, _score(r)]
        for r in row.get("events", []):
            arguments = "; ".join(f"{argument['role']}: {argument['text']}" for argument in r["arguments"])
            yield [number, r["type"], r["trigger"]["text"], arguments, str(r["trigger"]["start"]), _score(r)]


def aligned(rows: Sequence[dict]) -> str:
    """The table in columns; a Chinese character takes two places, as in terminals."""
    lines = [[" ".join(CONTROL.sub("\ufffd", cell).split()) for cell in line] for line in table(rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def _width(text: str) -> int:
    shown = (c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)


def _score(record: dict) -> str:
    return "" if record["score"] is None else f"{record['score']:.3f}"


def _as_markdown(cell: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|#&])", r"\\\1", " ".join(cell.split()))


def as_turtle(rows: Sequence[dict]) -> str:
    """RDF in Turtle: types, triples and events, and of each triple a statement that says where it stands.

    Names become ``urn:knowlm:entity:NAME`` with their label; evidence is document, offsets and score.
    """
    from rdflib import RDF, RDFS, Graph, Literal, Namespace, URIRef
    from rdflib.namespace import NamespaceManager

    class BoundOnly(NamespaceManager):
        """No prefix of its own making: one such as <urn:knowlm:relation:%> ends within an escape, and is no IRI."""

        def compute_qname(self, uri, generate=True):
            return super().compute_qname(uri, generate=False)

    knowlm = Namespace("urn:knowlm:")
    graph = Graph()
    graph.namespace_manager = BoundOnly(graph, bind_namespaces="none")
    graph.bind("rdf", RDF)
    graph.bind("rdfs", RDFS)
    graph.bind("knowlm", knowlm)
    for kind in ("relation", "role"):
        graph.bind(kind, knowlm[f"{kind}:"])

    def named(kind: str, name: str) -> URIRef:
        node = URIRef(f"{knowlm}{kind}:{_in_iri(name)}")
        graph.add((node, RDFS.label, Literal(name)))
        return node

    def tell(subject: URIRef, **facts) -> None:
        for name, value in facts.items():
            if value is not None:
                number = Decimal(f"{value:.4f}") if isinstance(value, float) else value
                graph.add((subject, knowlm[name], Literal(number)))

    for row in rows:
        document = str(row["id"])
        place = f"{knowlm}{{}}:{_in_iri(document)}:{{}}"
        for number, r in enumerate(row.get("entities", [])):
            mention = URIRef(place.format("mention", number))
            entity = named("entity", r["text"])
            graph.add((entity, RDF.type, named("type", r["type"])))
            graph.add((mention, knowlm.of, entity))
            tell(mention, document=document, start=r["start"], end=r["end"], score=r["score"])
        for number, r in enumerate(row.get("relations", [])):
            head, tail = named("entity", r["head"]["text"]), named("entity", r["tail"]["text"])
            triple = (head, named("relation", r["relation"]), tail)
            graph.add(triple)
            statement = URIRef(place.format("statement", number))
            graph.add((statement, RDF.type, RDF.Statement))
            for term, value in zip((RDF.subject, RDF.predicate, RDF.object), triple, strict=True):
                graph.add((statement, term, value))
            tell(statement, document=document, headStart=r["head"]["start"], headEnd=r["head"]["end"], score=r["score"])
            tell(statement, tailStart=r["tail"]["start"], tailEnd=r["tail"]["end"])
        for number, r in enumerate(row.get("events", [])):
            event = URIRef(place.format("event", number))
            graph.add((event, RDF.type, named("type", r["type"])))
            tell(event, document=document, trigger=r["trigger"]["text"], score=r["score"])
            tell(event, start=r["trigger"]["start"], end=r["trigger"]["end"])
            for argument in r["arguments"]:
                graph.add((event, named("role", argument["role"]), named("entity", argument["text"])))
    return graph.serialize(format="turtle")


def _in_iri(name: str) -> str:
    """Letters and digits of any script as they are (RFC 3987), all else but ``_-.~`` as %XX."""
    return re.sub(r"[^\w.~-]", lambda mark: quote(mark[0], safe=""), name)


def as_graph(rows: Sequence[dict]):
    """A networkx.MultiDiGraph: nodes have a label and a kind, edges a label, their best score and their documents.

    An entity has an edge to its type; an event, to each argument.
    """
    import networkx

    graph = networkx.MultiDiGraph()
    documents_of: dict[tuple, set[str]] = {}  # by edge

    def node(kind: str, name: str, label: str) -> str:
        key = CONTROL.sub("\ufffd", f"{kind}:{name}")
        graph.add_node(key, label=CONTROL.sub("\ufffd", label), kind=kind)
        return key

    def link(source: str, label: str, target: str, record: dict, document: str) -> None:
        label, document = CONTROL.sub("\ufffd", label), CONTROL.sub("\ufffd", document)
        score = 1.0 if record["score"] is None else record["score"]
        if (source, target, label) in documents_of:
            score = max(score, graph.edges[source, target, label]["score"])
        graph.add_edge(source, target, key=label, label=label, score=score)
        documents_of.setdefault((source, target, label), set()).add(document)

    for row in rows:
        document = str(row["id"])
        for r in row.get("entities", []):
            link(node("entity", r["text"], r["text"]), "type", node("type", r["type"], r["type"]), r, document)
        for r in row.get("relations", []):
            head, tail = (node("entity", r[end]["text"], r[end]["text"]) for end in ("head", "tail"))
            link(head, r["relation"], tail, r, document)
        for r in row.get("events", []):
            place = f"{document}:{r['trigger']['start']}:{r['type']}"
            event = node("event", place, f"{r['type']}: {r['trigger']['text']}")
            for argument in r["arguments"]:
                entity = node("entity", argument["text"], argument["text"])
                link(event, argument["role"], entity, r, document)
    for edge, documents in documents_of.items():
        graph.edges[edge]["documents"] = "\n".join(sorted(documents))
    return graph


def draw(graph, path: Path, form: str) -> str:
    """A picture of a graph; of a large one the edges with the best scores, and their nodes.

    Returns the characters that no font has, sorted.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    edges = sorted(graph.edges(keys=True, data=True), key=lambda edge: -edge[3]["score"])
    shown = graph.edge_subgraph([edge[:3] for edge in edges[:MOST_EDGES]]) if len(edges) > MOST_EDGES else graph
    fonts = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(font for font in FONTS if font in fonts)]
    with pyplot.rc_context({"font.family": families, "text.parse_math": False, "svg.hashsalt": "knowlm"}):
        places = layout(shown)
        width, height = (max([place[axis] for place in places.values()], default=0) + 1.0 for axis in (0, 1))
        figure = pyplot.figure(figsize=(max(4.0, INCHES * width), max(1.5, INCHES * height)))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, width), ylim=(height, -1))
        axes.set_axis_off()
        boxes = {}  # of the nodes; they are drawn first, as drawing tells the arrows where a box ends
        for node, (x, y) in places.items():
            style = {
                "boxstyle": "round,pad=0.35",
                "facecolor": COLORS[shown.nodes[node]["kind"]],
                "edgecolor": "#777777",
            }
            label = _short(shown.nodes[node]["label"])
            boxes[node] = axes.text(x, y, label, ha="center", va="center", fontsize=9, bbox=style).get_bbox_patch()
        draw_edges(axes, shown, places, boxes)
        if len(edges) > MOST_EDGES:
            axes.set_title(f"the {MOST_EDGES} edges with the best scores, of {len(edges)}", fontsize=9)
        dates = {"Date": None} if form == "svg" else None  # so that the same graph gives the same file
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            figure.savefig(path, format=form, dpi=120, bbox_inches="tight", metadata=dates)
        pyplot.close(figure)
    lacking = {int(number) for one in told for number in re.findall(r"^Glyph (\d+) ", str(one.message))}
    return "".join(map(chr, sorted(lacking)))


def layout(graph) -> dict[str, tuple[float, float]]:
    """A place for each node, neighbours about two apart: connected parts each by itself, in rows, large ones first."""
    import networkx

    parts = sorted(networkx.weakly_connected_components(graph), key=lambda part: (-len(part), min(part)))
    places: dict[str, tuple[float, float]] = {}
    longest = 3 * len(graph) ** 0.5 + 3  # of a row
    left = bottom = top = 0.0
    for part in parts:
        plain = networkx.Graph()  # of sorted nodes and edges, so that the same graph gives the same picture
        plain.add_nodes_from(sorted(part))
        plain.add_edges_from(
            sorted({tuple(sorted(edge[:2])) for edge in graph.subgraph(part).edges if edge[0] != edge[1]})
        )
        own = networkx.spring_layout(
            plain, k=1.5, method="force", iterations=500, scale=0.55 * len(part) ** 0.75, seed=0
        )
        own = apart({node: (WIDER * x, y) for node, (x, y) in own.items()}, graph)
        low = [min(place[axis] for place in own.values()) for axis in (0, 1)]
        high = [max(place[axis] for place in own.values()) for axis in (0, 1)]
        if left and left + high[0] - low[0] > longest:
            left, bottom = 0.0, top
        for node, place in own.items():
            places[node] = (float(left + place[0] - low[0]), float(bottom + place[1] - low[1]))
        left += high[0] - low[0] + 2.2
        top = max(top, bottom + high[1] - low[1] + 1.2)
    return places


def apart(places: dict, graph) -> dict:
    """The places with nodes that lie on each other moved up and down until none does, or a hundred times."""
    half = {node: 0.5 * (0.9 + COLUMN * _width(_short(graph.nodes[node]["label"]))) for node in places}
    moved = {node: list(place) for node, place in places.items()}
    for _ in range(100):
        close = [
            (one, other)
            for one, other in combinations(moved, 2)
            if abs(moved[one][0] - moved[other][0]) < half[one] + half[other]
            and abs(moved[one][1] - moved[other][1]) < LINE - 0.001
        ]
        if not close:
            break
        for one, other in close:
            upper, lower = sorted((one, other), key=lambda node: (moved[node][1], node))
            lacking = max(0.0, LINE - (moved[lower][1] - moved[upper][1]))
            moved[upper][1] -= lacking / 2
            moved[lower][1] += lacking / 2
    return moved


def draw_edges(axes, graph, places: dict, boxes: dict) -> None:
    """Arrows with their labels, from box to box; those of two directions bend apart, a node's to itself is a label."""
    for source, target in dict.fromkeys(graph.edges()):
        labels = [edge["label"] for edge in graph.get_edge_data(source, target).values()]
        (x0, y0), (x1, y1) = places[source], places[target]
        paper = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        if source == target:
            label = _short(*(f"↻ {label}" for label in labels))
            axes.text(x0, y0 + 0.3, label, ha="center", va="top", fontsize=7, color="#444444", bbox=paper)
            continue
        both = graph.has_edge(target, source)
        arrow = {"arrowstyle": "-|>", "color": "#999999", "shrinkA": 2, "shrinkB": 2}
        arrow |= {"patchA": boxes[source], "patchB": boxes[target]}
        arrow |= {"connectionstyle": f"arc3,rad={0.18 if both else 0}"}
        axes.annotate("", (x1, y1), (x0, y0), arrowprops=arrow)
        along = 0.36 if both else 0.5  # of the way: each label nearer to its source
        middle = (x0 + along * (x1 - x0), y0 + along * (y1 - y0))
        label = _short(*labels)
        axes.text(*middle, label, ha="center", va="center", fontsize=7, color="#444444", bbox=paper)


def _short(*labels: str) -> str:
    """A line for each label."""
    lines = (" ".join(label.split()) for label in labels)
    return "\n".join(line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1] + "…" for line in lines)
