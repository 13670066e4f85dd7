"""Read knowledge graphs of any size, a line at a time: tables, JSON lines, N-Triples, Wikidata's JSON dump.

Each reader yields facts:

``Entity(key, type)``                     type: empty if the classes have to tell
``Name(key, language, name, rank)``       of an entity, a relation (RELATION before its id) or a type (TYPE before it);
                                          language: ``english``, ``chinese`` or empty (both);
                                          rank 0: its main name, FALLBACK: only if it has no other
``Triple(head, relation, tail, value)``   tail: an entity's key, unless there is a value as ``values.py`` has it
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import orjson

from knowlm.files import require_file
from knowlm.sources import open_text
from knowlm.supervision.n_triples import BOOKKEEPING, literal_value, read_statement, short
from knowlm.supervision.values import Value, read_value, write_date

FALLBACK = 9
RELATION = "relation "
TYPE = "type "
INSTANCE_OF = ("instance_of", "P31", "http://www.w3.org/1999/02/22-rdf-syntax-ns#type")
SUBCLASS_OF = ("subclass_of", "P279", "http://www.w3.org/2000/01/rdf-schema#subClassOf")
LABELS = ("http://www.w3.org/2000/01/rdf-schema#label", "http://www.w3.org/2004/02/skos/core#prefLabel")
ALIASES = (
    "http://www.w3.org/2004/02/skos/core#altLabel",
    "http://schema.org/alternateName",
    "http://xmlns.com/foaf/0.1/name",
    "http://schema.org/name",
)
CHINESE_CODES = ("zh", "zh-hans", "zh-cn", "zh-hant", "zh-tw", "zh-hk", "zh-sg", "zh-mo")
PRECISION = {9: 1, 10: 2, 11: 3}  # Wikidata's of a time: parts of the date that are known


class Entity(NamedTuple):
    key: str
    type: str


class Name(NamedTuple):
    key: str
    language: str
    name: str
    rank: int


class Triple(NamedTuple):
    head: str
    relation: str
    tail: str
    value: Value | None = None
    line: int = 0


Fact = Entity | Name | Triple


def reader_of(path: Path) -> Callable[[Path], Iterator[Fact]]:
    """The reader for a file by its name, compressed or not; a folder holds the four tables.

    Raises ValueError on a name that tells nothing.
    """
    if path.is_dir():
        return read_tables
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".bz2", ".zst")]
    readers = {".tsv": read_tsv, ".jsonl": read_json_lines, ".nt": read_n_triples, ".json": read_wikidata}
    if not suffixes or suffixes[-1] not in readers:
        raise ValueError(
            f"{path}: a folder of tables, .tsv, .jsonl, .nt or Wikidata's .json is needed (also .gz, .bz2, .zst)"
        )
    return readers[suffixes[-1]]


def graph_inputs(path: Path) -> list[Path]:
    """The files that a graph is read from."""
    names = ("entities.tsv", "triples.tsv")
    return [require_file(path / name) for name in names] if path.is_dir() else [require_file(path)]


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that aren't blank; ValueError naming the line that isn't UTF-8."""
    for number, content in raw_lines(path):
        try:
            line = content.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from None
        if line.strip():
            yield number, line.rstrip("\r\n")


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open_text(path) as text:
        yield from enumerate(text, 1)


def read_tables(folder: Path) -> Iterator[Fact]:
    """``entities.tsv`` and ``triples.tsv`` as ``finetune/data/encyclopedia/README.md`` tells them."""
    for row, _ in rows_of(folder / "entities.tsv", ("id", "type")):
        yield Entity(row["id"], row["type"])
        for language, suffix in (("english", "en"), ("chinese", "zh")):
            names = [row.get(f"name_{suffix}") or "", *(row.get(f"aliases_{suffix}") or "").split("|")]
            yield from (Name(row["id"], language, name, rank) for rank, name in ranked(names) if name)
    for row, number in rows_of(folder / "triples.tsv", ("head", "relation", "tail")):
        yield triple_of((row["head"], row["relation"], row["tail"]), number, is_year=True)


def rows_of(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[dict[str, str], int]]:
    """Rows of a table by its header, with line numbers."""
    lines = lines_of(require_file(path))
    header = next(lines, (1, ""))[1].split("\t")
    if set(columns) - set(header):
        raise ValueError(f"{path}: its first line must name the columns {', '.join(columns)}")
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) < len(columns):
            raise ValueError(f"{path}, line {number}: {len(cells)} columns, {len(header)} are needed")
        yield dict(zip(header, cells, strict=False)), number


def triple_of(cells: Sequence[str], line: int, is_year: bool = False) -> Triple:
    """A triple whose tail is a value if it looks like one; ``is_year``: any whole number is a year."""
    head, relation, tail = cells
    if is_year and re.fullmatch(r"-?\d{1,18}", tail):
        return Triple(head, relation, tail, write_date(tail[0], abs(int(tail))), line)
    return Triple(head, relation, tail, read_value(tail), line)


def read_tsv(path: Path) -> Iterator[Fact]:
    """``head<TAB>relation<TAB>tail`` with names; a header is not needed. A line with # and no tab is a comment."""
    is_first = True
    for number, line in lines_of(path):
        if line.startswith("#") and "\t" not in line:
            continue
        cells = [unquoted(cell.strip()) for cell in line.split("\t")]
        if len(cells) != 3 or not all(cells):
            raise ValueError(
                f"{path}, line {number}: head, relation and tail are needed, separated by tabs; found "
                + ("an empty one" if len(cells) == 3 else f"{len(cells)} columns")
            )
        if is_first and cells == ["head", "relation", "tail"]:
            continue
        is_first = False
        triple = triple_of(cells, number)
        yield triple
        yield from plain_names(triple)


def unquoted(cell: str) -> str:
    """What a spreadsheet wrote in quotes because of the quotes in it; other quotes are part of a name.

    >>> [unquoted(cell) for cell in ('"Dwayne ""The Rock"" Johnson"', '"Heroes"')]
    ['Dwayne "The Rock" Johnson', '"Heroes"']
    """
    inner = cell[1:-1]
    if cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def plain_names(triple: Triple) -> Iterator[Fact]:
    """The names of a triple's ends, which are their keys."""
    for key in (triple.head, triple.tail) if triple.value is None else (triple.head,):
        yield Entity(key, "")
        yield Name(key, "", key, FALLBACK)


def read_json_lines(path: Path) -> Iterator[Fact]:
    """Objects of four kinds, in any order:

    ``{"head", "relation", "tail"}``: ids or names; tail may be a number or a date;
    ``{"id", "names": {"en": ["Paris"], "zh": [...]} or ["Paris"], "type"}``: an entity;
    ``{"relation", "names": {"en": "capital", "zh": "首都"}}``: how a relation is called;
    ``{"type", "names"}``: how a type is called.
    An end that no entity object names is called by its id.
    """
    for number, line in lines_of(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None
        if isinstance(row, dict) and {"head", "relation", "tail"} <= row.keys():
            ends = [row[name] for name in ("head", "relation", "tail")]
            if not all(type(end) in (str, int, float) and str(end).strip() for end in ends):
                raise ValueError(f"{path}, line {number}: head, relation and tail must be texts, tail may be a number")
            triple = triple_of([str(end).strip() for end in ends], number)
            yield triple
            yield from plain_names(triple)
        elif isinstance(row, dict) and type(row.get("id")) in (str, int) and str(row["id"]).strip():
            key, kind = str(row["id"]).strip(), row.get("type") or ""
            if not isinstance(kind, str):
                raise ValueError(f'{path}, line {number}: "type" must be a text, one of the ids in types.tsv')
            yield Entity(key, kind)
            if "names" not in row:
                yield Name(key, "", key, FALLBACK)
            yield from (Name(key, *rest) for rest in names_of(row.get("names", []), path, number))
        elif (
            isinstance(row, dict) and "names" in row and isinstance(about := row.get("relation", row.get("type")), str)
        ):
            key = (RELATION if "relation" in row else TYPE) + about
            yield from (Name(key, *rest) for rest in names_of(row["names"], path, number))
        else:
            raise ValueError(
                f"{path}, line {number}: an object with head, relation and tail is needed, or one with id and names"
            )


def names_of(names: object, path: Path, line: int) -> Iterator[tuple[str, str, int]]:
    """(language, name, rank) of ``{"en": names, "zh": names}`` or names of both languages."""
    by_code = names if isinstance(names, dict) else {"": names}
    for code, listed in by_code.items():
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise ValueError(f'{path}, line {line}: "names" must be texts, or lists of texts under "en" and "zh"')
        if (language := language_of(code)) is not None:
            yield from ((language, name, rank) for rank, name in ranked(listed))


def ranked(names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(rank, name): the first is the main name, the others are aliases."""
    return ((min(rank, FALLBACK - 1), name) for rank, name in enumerate(names))


def language_of(code: str) -> str | None:
    """Our name of a language code; empty for both, None for another language."""
    code = code.lower()
    if code in ("", "mul"):
        return ""
    return "english" if code.split("-")[0] == "en" else "chinese" if code in CHINESE_CODES else None


def read_n_triples(path: Path) -> Iterator[Fact]:
    """RDF as N-Triples: names from labels, types from rdf:type, dates and numbers from literals.

    Of Wikidata the "truthy" statements, by the ids that its JSON has. Blank nodes are entities of their file.
    """
    last = ""
    for number, line in lines_of(path):
        try:
            statement = read_statement(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if not statement:
            continue
        relation = short(statement.relation)
        if relation.startswith(BOOKKEEPING):
            continue
        head = entity_key(statement.head, path)
        is_property = re.fullmatch(r"P\d+", head) is not None
        if head != last and not is_property:
            yield from rdf_entity(head)
        last = head
        if relation in LABELS + ALIASES:
            language = language_of(statement.language)
            if statement.tail is None and language is not None:
                rank = 0 if relation in LABELS else 1
                yield Name(RELATION + head if is_property else head, language, statement.literal, rank)
        elif is_property:
            continue
        elif statement.tail is not None:
            tail = entity_key(statement.tail, path)
            yield Triple(head, relation, tail, None, number)
            if relation not in INSTANCE_OF + SUBCLASS_OF:
                yield from rdf_entity(tail)
        elif (value := literal_value(statement)) is not None:
            yield Triple(head, relation, statement.literal, value, number)


def entity_key(term: str, path: Path) -> str:
    return f"{term} of {path.name}" if term.startswith("_:") else short(term)


def rdf_entity(key: str) -> Iterator[Fact]:
    """An entity, called by the end of its IRI if that may be a name."""
    yield Entity(key, "")
    if "://" in key:
        yield Name(key, "", local_name(key), FALLBACK)


def local_name(iri: str) -> str:
    """What an IRI says by itself.

    >>> [local_name(iri) for iri in ("http://dbpedia.org/resource/New_York", "http://x.org/terms#birthPlace")]
    ['New York', 'birthPlace']
    """
    return unquote(re.split(r"[/#]", iri)[-1]).replace("_", " ")


def read_wikidata(path: Path) -> Iterator[Fact]:
    """Wikidata's JSON dump (https://doc.wikimedia.org/Wikibase/master/php/docs_topics_json.html), an entity a line.

    English and Chinese labels and aliases; of each property the preferred statements, else the normal ones; values
    that are entities, times known at least to the year, or quantities (whatever their unit). Redirects, lexemes and
    media are passed over.
    """
    is_open = False
    for number, line in lines_of(path):
        line = line.strip().rstrip(",")
        if line in ("[", "]"):
            is_open = line == "["
            continue
        try:
            row = orjson.loads(line)
            if "redirect" not in row and row["id"][0] in "QP":
                yield from wikidata_facts(row, number)
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise ValueError(
                f"{path}, line {number}: not an entity of Wikidata's dump: {line[:60]}; "
                'a .json graph has an object a line, with "id", "labels" and "claims"'
            ) from None
    if is_open:
        print(f"{path}: ends without the list's ]; if that is no excerpt, get the file again", file=sys.stderr)


def wikidata_facts(row: dict, line: int) -> Iterator[Fact]:
    key, is_property = row["id"], row["id"].startswith("P")
    if not is_property:
        yield Entity(key, "")
    for field, rank in (("labels", 0), ("aliases", 1)):
        for code, listed in filled(row, field):
            language = language_of(code)
            for name in [] if language is None else listed if isinstance(listed, list) else [listed]:
                yield Name(RELATION + key if is_property else key, language or "", name["value"], rank)
    for name, statements in filled(row, "claims") if not is_property else ():
        best = "preferred" if any(s.get("rank") == "preferred" for s in statements) else "normal"
        for statement in statements:
            snak = statement["mainsnak"]
            if statement.get("rank", "normal") == best and snak.get("snaktype") == "value":
                yield from wikidata_triple(key, name, snak["datavalue"], line)


def filled(row: dict, field: str):
    """The items of a map, which PHP writes as [] where it is empty."""
    return (row.get(field) or {}).items()


def wikidata_triple(head: str, name: str, data: dict, line: int) -> Iterator[Triple]:
    value = data["value"]
    if data["type"] == "wikibase-entityid":
        tail = value.get("id") or f"{'P' if value['entity-type'] == 'property' else 'Q'}{value['numeric-id']}"
        yield Triple(head, name, tail, None, line)
    elif data["type"] == "time" and value["precision"] in PRECISION:
        sign, year, month, day = re.fullmatch(r"([+-])(\d+)-(\d\d)-(\d\d)T.*", value["time"]).groups()  # type: ignore[union-attr]
        known = [int(part) for part in (year, month, day)[: PRECISION[value["precision"]]]]
        yield Triple(head, name, value["time"], write_date(sign, *known), line)
    elif data["type"] == "quantity":
        yield Triple(head, name, value["amount"], float(value["amount"]), line)
