"""Stream knowledge graphs into one SQLite file: sorted there, so memory doesn't grow with them.

entities(id, key, type, degree)      id: a hash of the key; degree: triples that it is head or tail of
names(name, language, entity)        folded as texts are before names are sought in them
triples(head, tail, relation)        relation: its number
literals(head, relation, value)      value: a date (text) or a quantity (float)
degrees(entity, relation, heads, tails)   how often it is either; what chance alone would match
relations(number, id, triples, ...)
"""

import json
import re
import sqlite3
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from knowlm.files import locked, replacing
from knowlm.supervision.graph import id_of, telling_of_disk
from knowlm.supervision.graph_readers import (
    FALLBACK,
    INSTANCE_OF,
    RELATION,
    SUBCLASS_OF,
    TYPE,
    Entity,
    Name,
    Triple,
    graph_inputs,
    local_name,
    reader_of,
)
from knowlm.supervision.graph_schema import LANGUAGES, VALUE_TYPES, Relation, Schema, Type, default_schema, read_schema
from knowlm.supervision.names import fold, is_name
from knowlm.supervision.values import kind_of, read_value

VERSION = 5  # of the file's form; another one is built anew
BATCH = 20_000  # rows inserted at once
DEEPEST = 14  # classes climbed
STAGING = """
CREATE TABLE staging.entities(key TEXT, type TEXT);
CREATE TABLE staging.names(id INTEGER, language TEXT, name TEXT, rank INTEGER);
CREATE TABLE staging.triples(head INTEGER, relation INTEGER, tail INTEGER, source INTEGER, line INTEGER);
CREATE TABLE staging.literals(head INTEGER, relation INTEGER, value, source INTEGER, line INTEGER, tail INTEGER);
CREATE TABLE staging.classes(child INTEGER, parent TEXT, is_instance INTEGER);
"""
TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE relations(number INTEGER PRIMARY KEY, id TEXT, name_en TEXT, name_zh TEXT, triples INTEGER);
CREATE TABLE takes(relation INTEGER, side TEXT, type TEXT, PRIMARY KEY(relation, side, type)) WITHOUT ROWID;
CREATE TABLE entities(id INTEGER PRIMARY KEY, key TEXT, type TEXT, degree INTEGER DEFAULT 0);
CREATE TABLE names(name TEXT, language TEXT, entity INTEGER, rank INTEGER,
    PRIMARY KEY(name, language, entity)) WITHOUT ROWID;
CREATE TABLE triples(head INTEGER, tail INTEGER, relation INTEGER, PRIMARY KEY(head, tail, relation)) WITHOUT ROWID;
CREATE TABLE literals(head INTEGER, relation INTEGER, value, PRIMARY KEY(head, relation, value)) WITHOUT ROWID;
CREATE TABLE degrees(entity INTEGER, relation INTEGER, heads INTEGER, tails INTEGER,
    PRIMARY KEY(entity, relation)) WITHOUT ROWID;
"""


def schema_for_graph(paths: Sequence[Path], folder: str | Path | None) -> Schema:
    """The schema given, else the graph's own tables, else for Wikidata the toolkit's; else one the graph fills."""
    if folder:
        return read_schema(folder)
    for path in paths:
        if path.is_dir():
            return read_schema(path)
    return default_schema(is_open=not all(".json" in path.suffixes for path in paths))


def build_database(paths: Sequence[Path], schema_folder: str | Path | None, database: Path) -> bool:
    """Write the graphs into ``database`` unless it holds them as they are now; whether it was written.

    Raises ValueError naming file and line at a fact that can't be read or, in tables, doesn't fit the schema.
    """
    files = [file for path in paths for file in graph_inputs(path)]
    tables = sorted(Path(schema_folder).glob("*.tsv")) if schema_folder else []
    tables += [file for path in paths if path.is_dir() for file in sorted(path.glob("*.tsv")) if file not in files]
    told = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files + tables]
    source = json.dumps([VERSION, [str(path.absolute()) for path in paths], told])
    with locked(database):
        if stored_source(database) == source:
            return False
        schema = schema_for_graph(paths, schema_folder)
        with telling_of_disk(database), replacing(database) as partial:
            partial.unlink(missing_ok=True)
            staging = partial.with_name(f"{database.name}.staging")
            staging.unlink(missing_ok=True)
            connection = sqlite3.connect(partial, isolation_level=None)
            try:
                connection.executescript(
                    "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536; PRAGMA temp_store=FILE;"
                )
                connection.execute("ATTACH ? AS staging", (str(staging),))
                connection.executescript("PRAGMA staging.journal_mode=OFF; PRAGMA staging.synchronous=OFF;")
                connection.executescript(STAGING + TABLES)
                GraphBuilder(connection, schema).build(paths)
                connection.execute("INSERT INTO meta VALUES ('source', ?)", (source,))
                connection.execute("DETACH staging")
            finally:
                connection.close()
                staging.unlink(missing_ok=True)
    return True


def stored_source(database: Path) -> str | None:
    """What a database was built from; None if there is none.

    Raises ValueError on a file that is something else: it isn't overwritten.
    """
    if not database.exists():
        return None
    try:
        with sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True) as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = 'source'").fetchone()
    except sqlite3.Error:
        raise ValueError(
            f"{database}: is not a knowledge graph's database; remove it, or name another --database"
        ) from None
    return row[0] if row else None


def named_by(relation: str) -> tuple[int, int]:
    """Under which keys names of a relation may be staged."""
    return id_of(RELATION + relation), id_of(relation) if "://" in relation else 0


class GraphBuilder:
    """Fills a database in three steps: read facts, find types, sort."""

    def __init__(self, connection: sqlite3.Connection, schema: Schema):
        self.connection, self.schema = connection, schema
        self.numbers = {name: number for number, name in enumerate(schema.relations)}
        self.is_strict: list[bool] = []  # of each source: whether what doesn't fit is an error
        self.known_types = ",".join(f"'{kind}'" for kind in [*schema.types, *VALUE_TYPES.values()])
        self.has_number_ids = False  # entities that have names and an id such as "12"

    def build(self, paths: Sequence[Path]) -> None:
        for source, path in enumerate(paths):
            self.is_strict.append(path.is_dir())
            self.read(path, source)
        if self.schema.is_open or self.has_number_ids:
            self.connection.execute("CREATE INDEX staging.names_of ON names(id)")
        if self.has_number_ids:
            self.link_number_ids()
        if self.schema.is_open:
            self.name_relations()
        self.fill_entities()
        self.write_relations()
        self.drop_illegal(paths)
        self.sort()

    def read(self, path: Path, source: int) -> None:
        rows: dict[str, list[tuple]] = {"entities": [], "names": [], "triples": [], "literals": [], "classes": []}
        self.connection.execute("BEGIN")
        for count, fact in enumerate(tqdm(reader_of(path)(path), desc=path.name, unit=" facts", disable=None)):
            if isinstance(fact, Name):
                if name := unicodedata.normalize("NFC", fact.name.strip()):
                    rows["names"].append((id_of(fact.key), fact.language, name, fact.rank))
                    if fact.rank < FALLBACK and not self.is_strict[source] and read_value(fact.key) is not None:
                        self.has_number_ids = True
            elif isinstance(fact, Entity):
                rows["entities"].append((fact.key, fact.type))
            else:
                self.stage_triple(fact, source, rows)
            if count % BATCH == 0:
                self.flush(rows)
        self.flush(rows)
        self.connection.execute("COMMIT")

    def stage_triple(self, fact: Triple, source: int, rows: dict[str, list[tuple]]) -> None:
        head = id_of(fact.head)
        if fact.value is None and fact.relation in INSTANCE_OF + SUBCLASS_OF:
            rows["classes"].append((head, fact.tail, fact.relation in INSTANCE_OF))
        known = self.schema.relations_of
        name = fact.relation if fact.relation in known else local_name(fact.relation)
        if name not in known:
            name = fact.relation
            if self.is_strict[source]:
                raise ValueError(f"triples.tsv, line {fact.line}: relation {name} is not in relations.tsv")
            if self.schema.is_open and not name.startswith("http://www.w3."):
                self.numbers[name] = len(self.numbers)
                self.schema.relations[name] = Relation(name, "", "")
                known[name] = [(name, False)]
        for relation, is_reversed in known.get(name, ()):
            row, value = self.schema.relations[relation], fact.value
            if relation == fact.relation and self.schema.is_open and row.name_en and "_" not in relation:
                row.name_en = relation  # its "founder" may be no "founded by"
            number = self.numbers[relation]
            if value is not None:
                if isinstance(value, str) and row.tail_types == ("quantity",) and "-" not in value:
                    value = float(value)  # no year after all
                rows["literals"].append((head, number, value, source, fact.line, id_of(fact.tail)))
            else:
                ends = (id_of(fact.tail), number, head) if is_reversed else (head, number, id_of(fact.tail))
                rows["triples"].append((*ends, source, fact.line))

    def flush(self, rows: dict[str, list[tuple]]) -> None:
        for table, batch in rows.items():
            if batch:
                marks = ",".join("?" * len(batch[0]))
                self.connection.executemany(f"INSERT INTO staging.{table} VALUES ({marks})", batch)
                batch.clear()

    def link_number_ids(self) -> None:
        """Make a tail that looks like a number the entity with that id, where there is one with a name."""
        is_entity = f"tail IN (SELECT id FROM staging.names WHERE rank < {FALLBACK})"
        self.connection.execute(
            "INSERT INTO staging.triples SELECT head, relation, tail, source, line FROM staging.literals "
            f"WHERE {is_entity}"
        )
        self.connection.execute(f"DELETE FROM staging.literals WHERE {is_entity}")

    def name_relations(self) -> None:
        """Call relations by their labels in the graph, those that it brought else by what their ids say."""
        for relation in self.schema.relations.values():
            spoken = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", local_name(relation.id))
            spoken = spoken.lower() if " " in spoken else spoken
            named = self.labels(*named_by(relation.id))
            relation.name_en, relation.name_zh = (
                label or old or spoken for label, old in zip(named, (relation.name_en, relation.name_zh), strict=True)
            )

    def labels(self, *keys: int) -> tuple[str, str]:
        """What the graph calls a relation or a type in English and Chinese; empty if it doesn't."""
        rows = [
            self.connection.execute(
                f"SELECT name FROM staging.names WHERE id IN ({','.join('?' * len(keys))}) AND rank < ? "
                "AND language IN (?, '') ORDER BY language = '', rank, name LIMIT 1",
                (*keys, FALLBACK, language),
            ).fetchone()
            for language in LANGUAGES
        ]
        return rows[0][0] if rows[0] else "", rows[1][0] if rows[1] else ""

    def fill_entities(self) -> None:
        """Entities with their types, those by climbing their classes where none is given."""
        self.connection.create_function("id_of", 1, id_of, deterministic=True)
        self.connection.execute("CREATE INDEX staging.parents ON classes(child)")
        self.connection.create_function("climb", 1, Climber(self.connection, self.schema.classes))
        self.connection.execute("CREATE TEMP TABLE relation_keys(key TEXT PRIMARY KEY)")
        relations = ((name,) for name in self.schema.relations_of if "://" in name)  # described like entities in RDF
        self.connection.executemany("INSERT INTO relation_keys VALUES (?)", relations)
        self.connection.execute(
            "INSERT INTO entities(id, key, type) SELECT id_of(key) AS id, key, "
            "CASE WHEN max(type) != '' THEN max(type) ELSE climb(key) END "
            "FROM staging.entities WHERE key NOT IN (SELECT key FROM relation_keys) GROUP BY key ORDER BY id"
        )
        for (kind,) in self.connection.execute("SELECT DISTINCT type FROM entities WHERE type != '' ORDER BY type"):
            if kind not in self.schema.types:
                if not self.schema.is_open:
                    key = self.connection.execute("SELECT min(key) FROM entities WHERE type = ?", (kind,)).fetchone()
                    raise ValueError(f"entities.tsv: {key[0]} has type {kind}, which is not in types.tsv")
                named = self.labels(id_of(TYPE + kind))
                self.schema.types[kind] = Type(kind, named[0] or kind, named[1] or kind)

    def write_relations(self) -> None:
        rows = ((self.numbers[r.id], r.id, r.name_en, r.name_zh, 0) for r in self.schema.relations.values())
        self.connection.executemany("INSERT INTO relations VALUES (?, ?, ?, ?, ?)", rows)
        takes = [
            (self.numbers[relation.id], side, VALUE_TYPES.get(kind, kind))
            for relation in self.schema.relations.values()
            for side, kinds in (("head", relation.head_types), ("tail", relation.tail_types))
            for kind in kinds
        ]
        self.connection.executemany("INSERT OR IGNORE INTO takes VALUES (?, ?, ?)", takes)
        types = ((kind.id, json.dumps([kind.name_en, kind.name_zh, kind.asked])) for kind in self.schema.types.values())
        self.connection.executemany("INSERT INTO meta VALUES ('type ' || ?, ?)", types)

    def drop_illegal(self, paths: Sequence[Path]) -> None:
        """Remove triples whose ends have a type that the relation doesn't take; an error in tables."""
        self.connection.create_function("kind", 1, kind_of, deterministic=True)
        dropped = 0
        for table, side, kind in (
            ("triples", "head", "(SELECT type FROM entities WHERE id = t.head)"),
            ("triples", "tail", "(SELECT type FROM entities WHERE id = t.tail)"),
            ("literals", "head", "(SELECT type FROM entities WHERE id = t.head)"),
            ("literals", "tail", "kind(t.value)"),
        ):
            legal = f"SELECT 1 FROM takes WHERE relation = t.relation AND side = '{side}'"
            known = f" AND {kind} IN ({self.known_types})" if self.schema.is_open else ""  # or types of its own
            illegal = f"{kind} IS NULL OR (EXISTS ({legal}){known} AND NOT EXISTS ({legal} AND type = {kind}))"
            for source, path in enumerate(paths):
                if self.is_strict[source]:
                    self.refuse_illegal(path, source, table, side, illegal, kind)
            dropped += self.connection.execute(
                f"DELETE FROM staging.{table} WHERE rowid IN (SELECT t.rowid FROM staging.{table} t WHERE {illegal})"
            ).rowcount
        self.connection.execute("INSERT INTO meta VALUES ('dropped', ?)", (str(dropped),))

    def refuse_illegal(self, path: Path, source: int, table: str, side: str, illegal: str, kind: str) -> None:
        tail = "t.tail" if table == "triples" else "t.value"
        row = self.connection.execute(
            f"SELECT t.line, {kind}, (SELECT id FROM relations WHERE number = t.relation) FROM staging.{table} t "
            f"WHERE source = ? AND ({illegal}) AND {tail} IS NOT NULL ORDER BY t.line LIMIT 1",
            (source,),
        ).fetchone()
        if row:
            line, found, relation = row
            cells = (path / "triples.tsv").read_text(encoding="utf-8").split("\n")[line - 1].split("\t")
            end = cells[0] if side == "head" else cells[2]
            fault = f"is a {found}, which {relation} does not take there" if found else "is not in entities.tsv"
            raise ValueError(f"{path / 'triples.tsv'}, line {line}: {end} {fault}")

    def sort(self) -> None:
        """Fill the tables that are looked up, in the order of their keys, and count."""
        self.connection.create_function("fold", 1, fold, deterministic=True)
        self.connection.create_function("is_name", 1, is_name, deterministic=True)
        self.connection.execute("CREATE TEMP TABLE never(type TEXT)")
        never = ((kind.id,) for kind in self.schema.types.values() if kind.asked == "never")
        self.connection.executemany("INSERT INTO never VALUES (?)", never)
        self.connection.executescript(f"""
            CREATE TEMP TABLE named AS SELECT DISTINCT id FROM staging.names WHERE rank < {FALLBACK};
            CREATE UNIQUE INDEX temp.named_ids ON named(id);
            INSERT INTO names SELECT fold(name) AS folded, language, id, min(rank) FROM staging.names
                WHERE is_name(fold(name)) AND id IN (SELECT id FROM entities WHERE type NOT IN never)
                AND (rank < {FALLBACK} OR id NOT IN (SELECT id FROM named)) GROUP BY folded, language, id;
            INSERT OR IGNORE INTO triples SELECT head, tail, relation FROM staging.triples
                WHERE head != tail ORDER BY head, tail, relation;
            INSERT OR IGNORE INTO literals SELECT head, relation, value FROM staging.literals
                ORDER BY head, relation, value;
            CREATE INDEX literal_values ON literals(relation, value);
            INSERT INTO degrees SELECT entity, relation, sum(head), sum(tail) FROM (
                SELECT head AS entity, relation, 1 AS head, 0 AS tail FROM triples
                UNION ALL SELECT tail, relation, 0, 1 FROM triples
                UNION ALL SELECT head, relation, 1, 0 FROM literals) GROUP BY entity, relation;
            CREATE TEMP TABLE totals AS SELECT entity, sum(heads + tails) AS degree FROM degrees GROUP BY entity;
            CREATE UNIQUE INDEX temp.totals_ids ON totals(entity);
            UPDATE entities SET degree = ifnull((SELECT degree FROM totals WHERE entity = id), 0);
            UPDATE relations SET triples = ifnull((SELECT sum(heads) FROM degrees WHERE relation = number), 0);
            INSERT INTO meta SELECT 'used type ' || type, '' FROM (SELECT DISTINCT type FROM entities WHERE type != '');
            INSERT INTO meta SELECT 'aliases', '' WHERE EXISTS (
                SELECT 1 FROM names WHERE rank > 0 AND rank < {FALLBACK});
        """)


class Climber:
    """The coarse type of an entity: that of the nearest class of its instance of / subclass of tree."""

    def __init__(self, connection: sqlite3.Connection, types: dict[str, str]):
        self.connection, self.types = connection, types
        self.order = {kind: place for place, kind in enumerate(dict.fromkeys(types.values()))}
        self.parents = lru_cache(1 << 16)(self._parents)

    def __call__(self, key: str) -> str:
        """Empty if no class within reach has a type; of several at one height the first of the table."""
        level, seen = [key], {key}
        for _ in range(DEEPEST):
            found = [kind for name in level if (kind := self.types.get(name) or self.types.get(local_name(name)))]
            if found:
                return min(found, key=self.order.__getitem__)
            level = [
                parent for parent in dict.fromkeys(p for c in level for p in self.parents(c)) if parent not in seen
            ]
            seen.update(level)
        return ""

    def _parents(self, child: str) -> tuple[str, ...]:
        found = self.connection.execute(
            "SELECT DISTINCT parent FROM staging.classes WHERE child = ? ORDER BY parent LIMIT 50", (id_of(child),)
        )
        return tuple(row[0] for row in found)
