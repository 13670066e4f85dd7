"""What may be asked for: entity types, relations with the types they take, topics, and the classes they come from.

A schema is a folder of tables, separated by tabs, with a header:

``relations.tsv``  id, name_en, name_zh, head_types, tail_types (ids separated by ``|``; none: any); and, where it reads
                   another's graph, properties (``P36|^P1376``; ``^``: head and tail change places), transitive (yes)
``types.tsv``      id, name_en, name_zh; asked (no: too wide to be asked for; never: no entity at all, as languages)
``topics.tsv``     id, name_en, name_zh, types: what a text is about, by the type of its main entity
``classes.tsv``    class, type: where climbing from class to class ends

Only the first is needed; the others are then those of ``knowlm/supervision/tables``.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from knowlm.files import require_file

TABLES = Path(__file__).with_name("tables")
VALUE_TYPES = {"time": "time", "year": "time", "quantity": "quantity"}  # tail types that are no entities
TRANSITIVE = ("located_in", "part_of", "parent_taxon")
UNTYPED = ("concept",)  # too wide to be asked for as an entity type, unless the table says so itself
ALIAS = "alternative_name"


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table by its header; an empty cell is an empty text."""
    with require_file(path).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{name: cell or "" for name, cell in row.items() if name} for row in rows]


def parts(cell: str) -> tuple[str, ...]:
    return tuple(part for part in cell.split("|") if part)


@dataclass
class Label:
    """How a type, a relation or a topic is called."""

    id: str
    name_en: str
    name_zh: str

    def name(self, language: str) -> str:
        return self.name_en if language == "english" else self.name_zh


@dataclass
class Type(Label):
    asked: str = "yes"


@dataclass
class Relation(Label):
    head_types: tuple[str, ...] = ()
    tail_types: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    transitive: bool = False

    def is_like(self, other: "Relation") -> bool:
        """Whether both could link the same two entities, so that one may be taken for the other."""
        return all(
            not mine or not its or set(mine) & set(its)
            for mine, its in ((self.head_types, other.head_types), (self.tail_types, other.tail_types))
        )


@dataclass
class Topic(Label):
    types: tuple[str, ...] = ()


@dataclass
class Schema:
    """Types, relations and topics by id; classes that climbing ends at; whether the graph may add relations."""

    types: dict[str, Type]
    relations: dict[str, Relation]
    topics: dict[str, Topic]
    classes: dict[str, str]
    is_open: bool = False
    asked_relations: set[str] = field(default_factory=set)
    asked_types: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.topic_of_type = {kind: topic.id for topic in reversed(self.topics.values()) for kind in topic.types}
        self.index_properties()
        self.ask_only()

    def index_properties(self) -> None:
        """``relations_of``: (relation, whether reversed) of each property of the graph."""
        self.relations_of: dict[str, list[tuple[str, bool]]] = defaultdict(list)
        for relation in self.relations.values():
            for name in (relation.id, *relation.properties):
                self.relations_of[name.lstrip("^")].append((relation.id, name.startswith("^")))

    def ask_only(self, relations: Iterable[str] = (), types: Iterable[str] = ()) -> None:
        """Ask only for these relations and entity types; none given: for all. Disambiguation still sees all.

        Raises ValueError on one that the schema doesn't have.
        """
        relations, types = set(relations), set(types)
        askable = [kind for kind, row in self.types.items() if row.asked == "yes"]
        for flag, wanted, known in (("relations", relations, self.relations), ("types", types, self.types)):
            if wanted - known.keys():
                raise ValueError(
                    f"--{flag} {sorted(wanted - known.keys())[0]}: the graph has no such; it has {', '.join(known)}"
                )
        self.asked_relations = relations or set(self.relations)
        self.asked_types = types or set(askable)

    def topic_of(self, kinds: Iterable[str]) -> Topic | None:
        """The topic of a text by the types of its main entity or, one by one, its entities: the most frequent.

        >>> default_schema().topic_of(["person", "place", "place"]).id
        'place'
        """
        votes: dict[str, int] = defaultdict(int)
        for kind in kinds:
            if kind in self.topic_of_type:
                votes[self.topic_of_type[kind]] += 1
        return self.topics[max(votes, key=lambda topic: votes[topic])] if votes else None


def label_of(row: dict[str, str]) -> dict[str, str]:
    return {name: row[name] for name in ("id", "name_en", "name_zh")}


def default_schema(is_open: bool = False) -> Schema:
    """The schema of the toolkit's tables; open: the graph adds the relations and types that only it has."""
    schema = read_schema(TABLES)
    schema.is_open = is_open
    return schema


def read_schema(folder: str | Path) -> Schema:
    """The schema of a folder; tables that it lacks are the toolkit's.

    Raises ValueError naming file and line at a row without an id or with an unknown type.
    """
    folder = Path(folder)
    require_file(folder / "relations.tsv")

    def rows(name: str, *columns: str) -> list[dict[str, str]]:
        path = folder / name if (folder / name).is_file() else TABLES / name
        found = read_table(path)
        for number, row in enumerate(found, 2):
            if missing := [column for column in columns if not row.get(column)]:
                raise ValueError(f"{path}, line {number}: has no {missing[0]}; the columns are {', '.join(columns)}")
        return found

    named = ("id", "name_en", "name_zh")
    types = {
        row["id"]: Type(**label_of(row), asked=row.get("asked") or ("no" if row["id"] in UNTYPED else "yes"))
        for row in rows("types.tsv", *named)
    }
    relations = {}
    for number, row in enumerate(rows("relations.tsv", *named), 2):
        heads, tails = parts(row.get("head_types", "")), parts(row.get("tail_types", ""))
        if unknown := set(heads + tails) - types.keys() - VALUE_TYPES.keys():
            raise ValueError(f"{folder / 'relations.tsv'}, line {number}: {sorted(unknown)[0]} is not in types.tsv")
        transitive = row.get("transitive") == "yes" or row["id"] in TRANSITIVE
        properties = parts(row.get("properties", ""))
        relations[row["id"]] = Relation(row["id"], row["name_en"], row["name_zh"], heads, tails, properties, transitive)
    topics = {
        row["id"]: Topic(**label_of(row), types=parts(row["types"])) for row in rows("topics.tsv", *named, "types")
    }
    classes = {row["class"]: row["type"] for row in rows("classes.tsv", "class", "type") if row["type"] in types}
    return Schema(types, relations, topics, classes)
