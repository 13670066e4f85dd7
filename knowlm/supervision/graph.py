"""Look up a knowledge graph in its SQLite file: by name, by entity, by pair."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from knowlm.supervision.graph_schema import ALIAS, Relation, Schema, Type, default_schema
from knowlm.supervision.names import fold
from knowlm.supervision.values import Value, ValueMention, value_range

SOME = 500  # ids in one question: SQLite takes 999 in its oldest versions
REMEMBERED = 1 << 16

Edges = dict[int, dict[int, list[int]]]  # head: tail: numbers of relations


@lru_cache(REMEMBERED)
def id_of(key: str) -> int:
    """An entity's number: 63 bits of a hash. Among ten million keys two agree once in 200,000 graphs."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


class KnowledgeGraph:
    """A database that ``build_database`` wrote, for reading; with the schema that it was built with."""

    def __init__(self, database: str | Path, schema: Schema):
        uri = f"{Path(database).absolute().as_uri()}?mode=ro&immutable=1"
        self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        self.connection.executescript("PRAGMA cache_size=-32768; PRAGMA temp_store=MEMORY;")
        self.connection.execute("CREATE TEMP TABLE wanted(id INTEGER PRIMARY KEY)")
        self.schema = schema
        self.relations: list[Relation] = []  # by number
        self.num_facts: list[int] = []  # of each relation
        rows = self.connection.execute("SELECT id, name_en, name_zh, triples FROM relations ORDER BY number")
        for name, name_en, name_zh, triples in rows.fetchall():
            if schema.is_open:
                known = schema.relations.setdefault(name, Relation(name, name_en, name_zh))
                known.name_en, known.name_zh = name_en, name_zh
            self.relations.append(schema.relations.get(name) or Relation(name, name_en, name_zh))
            self.num_facts.append(triples)
        if schema.is_open:
            for name, value in self.connection.execute("SELECT name, value FROM meta WHERE name LIKE 'type %'"):
                schema.types.setdefault(name[5:], Type(name[5:], *json.loads(value)))
        if schema.is_open:  # the relations that the graph brought, in an order that its lines' order doesn't change
            brought = sorted(schema.relations.keys() - default_schema().relations.keys())
            schema.relations |= {name: schema.relations.pop(name) for name in brought}
        if schema.held is None:
            used = {relation.id for relation, facts in zip(self.relations, self.num_facts, strict=True) if facts}
            if self.connection.execute("SELECT 1 FROM meta WHERE name = 'aliases'").fetchone():
                used.add(ALIAS)
            types = self.connection.execute("SELECT substr(name, 11) FROM meta WHERE name LIKE 'used type %'")
            schema.held = used, {row[0] for row in types}
            if schema.is_open:
                schema.relations = {name: row for name, row in schema.relations.items() if name in used | {ALIAS}}
                schema.is_open = False  # now it has all
            schema.ask_only()
        places = {name: place for place, name in enumerate(schema.relations)}
        self.places = [places.get(relation.id, len(places)) for relation in self.relations]  # by number, in the schema
        self.candidates = lru_cache(REMEMBERED)(self._candidates)
        self.entity = lru_cache(REMEMBERED)(self._entity)
        self.values = lru_cache(REMEMBERED)(self._values)
        self.count_values = lru_cache(REMEMBERED)(self._count_values)

    def _candidates(self, name: str, language: str) -> tuple[int, ...]:
        """Entities that a folded name may stand for, those with most triples first."""
        rows = self.connection.execute(
            "SELECT entity FROM names JOIN entities ON id = entity WHERE name = ? AND language IN (?, '') "
            "GROUP BY entity ORDER BY degree DESC, key",
            (name, language),
        )
        return tuple(row[0] for row in rows)

    def _entity(self, entity: int) -> tuple[str, str] | None:
        """(key, type) of an entity, None if there is none."""
        return self.connection.execute("SELECT key, type FROM entities WHERE id = ?", (entity,)).fetchone()

    def _values(self, entity: int) -> list[tuple[int, Value]]:
        """(relation's number, value) of an entity's dates and quantities."""
        rows = self.connection.execute(
            "SELECT relation, value FROM literals WHERE head = ? ORDER BY relation, value LIMIT 1000", (entity,)
        )
        return sorted(rows, key=lambda row: self.places[row[0]])

    def edges(self, entities: Collection[int]) -> Edges:
        """All triples between some entities, in both directions."""
        self.connection.execute("DELETE FROM wanted")
        self.connection.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((entity,) for entity in entities))
        found: Edges = defaultdict(lambda: defaultdict(list))
        for head, tail, relation in self.connection.execute(
            "SELECT t.head, t.tail, t.relation FROM wanted a CROSS JOIN triples t ON t.head = a.id "
            "CROSS JOIN wanted b ON b.id = t.tail ORDER BY t.head, t.tail, t.relation"
        ):
            found[head][tail].append(relation)
        for tails in found.values():
            for relations in tails.values():
                relations.sort(key=self.places.__getitem__)
        return found

    def key(self, entity: int) -> str:
        return self._known(entity)[0]

    def type(self, entity: int) -> str:
        return self._known(entity)[1]

    def _known(self, entity: int) -> tuple[str, str]:
        row = self.entity(entity)
        assert row, "an id that no lookup gave"
        return row

    def degrees(self, entities: Iterable[int]) -> Iterator[tuple[int, int, int, int]]:
        """(entity, relation, how often it is head, how often tail) of some entities."""
        for some in batches(sorted(set(entities)), SOME):
            yield from self.connection.execute(
                "SELECT entity, relation, heads, tails FROM degrees "
                f"WHERE entity IN ({','.join('?' * len(some))}) ORDER BY entity, relation",
                some,
            )

    def _count_values(self, relation: int, mention: ValueMention) -> int:
        """In how many triples of a relation the tail is what a mention says."""
        low, high = value_range(mention)
        return self.connection.execute(
            "SELECT count(*) FROM literals WHERE relation = ? AND value BETWEEN ? AND ?", (relation, low, high)
        ).fetchone()[0]

    def count(self, what: str) -> int:
        """How many ``entities``, ``triples``, ``literals`` or ``names`` there are."""
        assert what in ("entities", "triples", "literals", "names")
        return self.connection.execute(f"SELECT count(*) FROM {what}").fetchone()[0]

    def dropped(self) -> int:
        """Triples that were left out: an unknown end, or one of a type that the relation doesn't take."""
        return int(self.connection.execute("SELECT value FROM meta WHERE name = 'dropped'").fetchone()[0])

    def lookup(self, reference: str, language: str) -> tuple[int, ...]:
        """Entities by key, else by name."""
        entity = id_of(reference)
        return (entity,) if self.entity(entity) else self.candidates(fold(reference), language)


@contextmanager
def telling_of_disk(path: str | Path) -> Iterator[None]:
    """Turn SQLite's errors, nearly always those of a full disk, into an OSError that names ``path``."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"{path}: {error}; make room on that disk, or name another place") from error


def batches(items: Sequence[int], size: int) -> Iterator[list[int]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
