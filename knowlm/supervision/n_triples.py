"""RDF as N-Triples (https://www.w3.org/TR/n-triples/): a line's three terms, and what real files mean by them."""

import re
import sys
from typing import NamedTuple

from knowlm.supervision.values import GRAPH_NUMBER, Value, read_value, write_date

# Wider than the grammar in what an IRI may hold: files of that size have some that aren't quite legal.
LINE = re.compile(
    r"[ \t]*(?P<head><[^<>\"\s]+>|_:[^\s<>\"]*[^\s<>\".])[ \t]*"
    r"<(?P<relation>[^<>\"\s]+)>[ \t]*"
    r"(?:(?P<tail><[^<>\"\s]+>|_:[^\s<>\"]*[^\s<>\".])"
    r'|"(?P<literal>(?:[^"\\\r\n]|\\["\'\\tbnrf]|\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8})*)"'
    r"(?:@(?P<language>[A-Za-z]+(?:-[A-Za-z0-9]+)*)|\^\^<(?P<datatype>[^<>\"\s]+)>)?)"
    r"[ \t]*\.[ \t]*(?:#.*)?"
)
ESCAPE = re.compile(r'\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([tbnrf"\'\\]))')
ESCAPED = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f"}
WIKIDATA = re.compile(r"https?://www\.wikidata\.org/(?:entity|prop/direct)/([QP]\d+)")
# What Wikidata and DBpedia say of their records and pages, not of the world.
BOOKKEEPING = (
    "http://wikiba.se/ontology",
    "http://schema.org/about",
    "http://schema.org/dateModified",
    "http://schema.org/inLanguage",
    "http://schema.org/isPartOf",
    "http://schema.org/softwareVersion",
    "http://schema.org/version",
    "http://dbpedia.org/ontology/wikiPage",
    "http://www.wikidata.org/prop/",  # statements with ranks; the direct ones are told apart before
    "https://www.wikidata.org/prop/",
)
FRACTIONS = ("#decimal", "#double", "#float")


class Statement(NamedTuple):
    """One line: a tail, or a literal with a language or a datatype (empty: none). Blank nodes begin with ``_:``."""

    head: str
    relation: str
    tail: str | None
    literal: str = ""
    language: str = ""
    datatype: str = ""


def read_statement(line: str) -> Statement | None:
    """None for a comment or an empty line; ValueError for what is no N-Triples.

    >>> read_statement(r'<http://x.org/a><http://x.org/b>"caf\\u00E9"@fr. # a comment')
    Statement(head='http://x.org/a', relation='http://x.org/b', tail=None, literal='café', language='fr', datatype='')
    """
    if not line.strip() or line.lstrip().startswith("#"):
        return None
    match = LINE.fullmatch(line)
    if not match:
        raise ValueError(f"not a line of N-Triples: {line[:80]}")
    head, relation, tail, literal, language, datatype = match.groups()
    if tail:
        return Statement(iri(head), iri(relation), iri(tail))
    return Statement(iri(head), iri(relation), None, unescaped(literal), language or "", iri(datatype or ""))


def iri(term: str) -> str:
    return unescaped(term.strip("<>"))


def unescaped(literal: str) -> str:
    r"""What the escapes of a literal stand for; two halves of a character, as Java writes them, become one.

    >>> unescaped(r"\u5DF4\u9ECE \uD83D\uDE00 \U0001F600"), unescaped(r"\uD83D")
    ('巴黎 😀 😀', '�')
    """
    if "\\" not in literal:
        return literal
    text = ESCAPE.sub(lambda m: ESCAPED.get(m[3], m[3]) if m[3] else character_of(m[1] or m[2]), literal)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def character_of(digits: str) -> str:
    return chr(code) if (code := int(digits, 16)) <= sys.maxunicode else "\ufffd"


def short(term: str) -> str:
    """Wikidata's entities and direct properties by their ids, so that its RDF and its JSON make the same graph.

    >>> short("http://www.wikidata.org/prop/direct/P19"), short("http://x.org/P19")
    ('P19', 'http://x.org/P19')
    """
    match = WIKIDATA.fullmatch(term)
    return match[1] if match else term


def literal_value(statement: Statement) -> Value | None:
    """The date or quantity of a typed literal; None for texts and for all that has no datatype.

    Wikidata's RDF counts years as XSD 1.1 does, with a year 0 before the first (its JSON doesn't), and writes a known
    year as its first of January.

    >>> date, direct = "http://www.w3.org/2001/XMLSchema#dateTime", "http://www.wikidata.org/prop/direct/P570"
    >>> literal_value(Statement("http://x.org/a", direct, None, "-0043-03-15T00:00:00Z", "", date))
    '-0044-03-15'
    >>> literal_value(Statement("http://x.org/a", direct, None, "1889-01-01T00:00:00Z", "", date))
    '1889'
    """
    if not statement.datatype or statement.datatype.endswith("#string"):
        return None
    text = statement.literal.strip()
    if statement.datatype.endswith(FRACTIONS):  # "+330" is no year; an integer may be one
        return float(text) if GRAPH_NUMBER.fullmatch(text) and "," not in text else None
    value = read_value(text)
    if isinstance(value, str) and WIKIDATA.fullmatch(statement.relation):
        year, *rest = value.removeprefix("-").split("-")
        if value.startswith("-") or int(year) == 0:
            value = "-".join([write_date("-", int(year) + 1), *rest])
        value = value.removesuffix("-01-01")
    return value
