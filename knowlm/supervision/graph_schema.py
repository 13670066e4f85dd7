"""What may be asked for: entity types, relations with the types they take, topics, and the classes they come from.

A schema is a folder of tables, separated by tabs, with a header:

``relations.tsv``  id, name_en, name_zh, head_types, tail_types (ids separated by ``|``; none: any); words_en, words_zh:
                   beginnings of words of which the tail's sentence has one where such a fact is stated (born, 生于;
                   none: any will do); and, where it reads another's graph, properties (``P36|^P1376``; ``^``: head and
                   tail change places), transitive (yes)
``types.tsv``      id, name_en, name_zh; asked (no: too wide to be asked for; never: no entity at all, as languages)
``topics.tsv``     id, name_en, name_zh, types: what a text is about, by the type of its main entity
``classes.tsv``    class, type: where climbing from class to class ends
``events.tsv``     id, name_en, name_zh, triggers_en, triggers_zh: words that tell of such an event, separated by ``|``;
                   except_en, except_zh: longer words that hold a trigger and tell of none (发现者);
                   key_first (yes): the key entity stands before the trigger, as a person before "died"
``event_roles.tsv``  event, name_en, name_zh, sources: whom a fact gives the role (``birthplace.head|birth_year.head``);
                   the first role of an event is its key: facts that share it are one event

Only the first is needed; the others are then those of ``knowlm/supervision/tables``, the last two together.
"""

import csv
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from knowlm.files import require_file

TABLES = Path(__file__).with_name("tables")
VALUE_TYPES = {"time": "time", "year": "time", "quantity": "quantity"}  # tail types that are no entities
TRANSITIVE = ("located_in", "part_of", "parent_taxon")
UNTYPED = ("concept",)  # too wide to be asked for as an entity type, unless the table says so itself
ALIAS = "alternative_name"
EVENT = "event"  # the type whose entities, as battles, are events themselves
NAMED = ("id", "name_en", "name_zh")
LANGUAGES = {"english": "en", "chinese": "zh"}


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table by its header; an empty cell is an empty text."""
    with require_file(path).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{name: cell or "" for name, cell in row.items() if name} for row in rows]


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a table, all of these columns filled in.

    Raises ValueError naming the line where one is not.
    """
    found = read_table(path)
    for number, row in enumerate(found, 2):
        if missing := [column for column in columns if not row.get(column)]:
            raise ValueError(f"{path}, line {number}: has no {missing[0]}; the columns are {', '.join(columns)}")
    return found


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
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by language

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
class Role(Label):
    """Who takes it: (relation, ``head`` or ``tail``) of facts."""

    sources: tuple[tuple[str, str], ...] = ()


@dataclass
class EventType(Label):
    """Triggers, and words that only hold one, by language; roles, the key first. Named events have no triggers."""

    triggers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exceptions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    is_key_first: bool = False
    roles: tuple[Role, ...] = ()

    def role(self, relation: str, side: str) -> Role | None:
        return next((role for role in self.roles if (relation, side) in role.sources), None)

    @property
    def relations(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(relation for role in self.roles for relation, _ in role.sources))

    def only(self, relations: Collection[str]) -> "EventType":
        """With the roles that these relations give."""
        roles = [
            replace(role, sources=tuple(source for source in role.sources if source[0] in relations))
            for role in self.roles
        ]
        return replace(self, roles=tuple(role for role in roles if role.sources))


@dataclass
class Schema:
    """Types, relations, topics and events by id; classes where climbing ends; whether the graph may add relations."""

    types: dict[str, Type]
    relations: dict[str, Relation]
    topics: dict[str, Topic]
    classes: dict[str, str]
    events: dict[str, EventType] = field(default_factory=dict)
    is_open: bool = False
    held: tuple[set[str], set[str]] | None = None  # relations and types that the graph has, once it is read
    asked_relations: set[str] = field(default_factory=set)
    asked_types: set[str] = field(default_factory=set)
    asked_events: dict[str, EventType] = field(default_factory=dict)

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
        """Ask only for these relations and entity types; none given: for those that the graph has.

        Disambiguation still sees all. One that the graph never has would only ever be asked for in vain.

        Raises ValueError on one that the schema doesn't have.
        """
        relations, types = set(relations), set(types)
        askable = [kind for kind, row in self.types.items() if row.asked == "yes"]
        for flag, wanted, known in (("relations", relations, self.relations), ("types", types, self.types)):
            if wanted - known.keys():
                raise ValueError(
                    f"--{flag} {sorted(wanted - known.keys())[0]}: the graph has no such; it has {', '.join(known)}"
                )
        held = self.held or (set(self.relations), set(askable))
        self.asked_relations = relations or held[0] & self.relations.keys()
        self.asked_types = types or held[1] & set(askable)
        events = [event.only(self.asked_relations & self.relations.keys()) for event in self.events.values()]
        self.asked_events = {event.id: event for event in [*events, *self.named_events()] if event.roles}

    def named_events(self) -> list[EventType]:
        """The type of events that have a name: it is the trigger, and what relations link it to are its arguments."""
        if EVENT not in self.types or (self.held and EVENT not in self.held[1]):
            return []
        linked = [row for row in self.relations.values() if EVENT in row.head_types and row.id in self.asked_relations]
        roles = tuple(Role(row.id, row.name_en, row.name_zh, ((row.id, "tail"),)) for row in linked)
        kind = self.types[EVENT]
        return [EventType(kind.id, kind.name_en, kind.name_zh, roles=roles)]

    def are_confusable(self, event: str, other: str) -> bool:
        """Whether a fact of one could be taken for one of the other, as birth and death have a place and a time."""
        return event != other and any(
            self.relations[mine].is_like(self.relations[its])
            for mine in self.asked_events[event].relations
            for its in self.asked_events[other].relations
        )

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
        return read_rows(folder / name if (folder / name).is_file() else TABLES / name, *columns)

    types = {
        row["id"]: Type(**label_of(row), asked=row.get("asked") or ("no" if row["id"] in UNTYPED else "yes"))
        for row in rows("types.tsv", *NAMED)
    }
    relations = {}
    for number, row in enumerate(rows("relations.tsv", *NAMED), 2):
        heads, tails = parts(row.get("head_types", "")), parts(row.get("tail_types", ""))
        if unknown := set(heads + tails) - types.keys() - VALUE_TYPES.keys():
            raise ValueError(f"{folder / 'relations.tsv'}, line {number}: {sorted(unknown)[0]} is not in types.tsv")
        transitive = row.get("transitive") == "yes" or row["id"] in TRANSITIVE
        properties = parts(row.get("properties", ""))
        words = {language: parts(row.get(f"words_{short}", "")) for language, short in LANGUAGES.items()}
        names = (row["id"], row["name_en"], row["name_zh"])
        relations[row["id"]] = Relation(*names, heads, tails, properties, transitive, words)
    topics = {
        row["id"]: Topic(**label_of(row), types=parts(row["types"])) for row in rows("topics.tsv", *NAMED, "types")
    }
    classes = {row["class"]: row["type"] for row in rows("classes.tsv", "class", "type") if row["type"] in types}
    return Schema(types, relations, topics, classes, read_events(folder, relations))


def read_events(folder: Path, relations: Collection[str]) -> dict[str, EventType]:
    """Event types of a folder, else the toolkit's: of those, relations that the schema hasn't are passed over.

    Raises ValueError naming file and line at an event without triggers or roles and at a role that no fact can fill.
    """
    own = any((folder / name).is_file() for name in ("events.tsv", "event_roles.tsv"))
    path, roles_path = ((folder if own else TABLES) / name for name in ("events.tsv", "event_roles.tsv"))
    events: dict[str, EventType] = {}
    lines: dict[str, int] = {}
    for number, row in enumerate(read_rows(path, *NAMED), 2):
        triggers, exceptions = (
            {language: parts(row.get(f"{what}_{short}", "")) for language, short in LANGUAGES.items()}
            for what in ("triggers", "except")
        )
        if row["id"] in events or row["id"] == EVENT:
            raise ValueError(f"{path}, line {number}: {row['id']} is taken already")
        if not any(triggers.values()):
            raise ValueError(f"{path}, line {number}: {row['id']} has neither triggers_en nor triggers_zh")
        events[row["id"]] = EventType(
            row["id"], row["name_en"], row["name_zh"], triggers, exceptions, row.get("key_first") == "yes"
        )
        lines[row["id"]] = number
    for number, row in enumerate(read_rows(roles_path, "event", "name_en", "name_zh", "sources"), 2):
        where = f"{roles_path}, line {number}"
        if row["event"] not in events:
            raise ValueError(f"{where}: {row['event']} is not in events.tsv")
        sources = tuple(source_of(cell, where) for cell in parts(row["sources"]))
        unknown = [relation for relation, _ in sources if relation not in relations]
        if unknown and folder != TABLES and own:
            raise ValueError(f"{where}: {unknown[0]} is not in relations.tsv")
        event = events[row["event"]]
        event.roles += (Role(row["name_en"], row["name_en"], row["name_zh"], sources),)
    for event in events.values():
        check_roles(event, f"{path}, line {lines[event.id]}")
    return events


def source_of(cell: str, where: str) -> tuple[str, str]:
    relation, _, side = cell.rpartition(".")
    if not relation or side not in ("head", "tail"):
        raise ValueError(f"{where}: {cell} is no source; write RELATION.head or RELATION.tail")
    return relation, side


def check_roles(event: EventType, where: str) -> None:
    """Raise ValueError unless each relation of an event gives one end the key role and the other a role too."""
    if not event.roles:
        raise ValueError(f"{where}: {event.id} has no role in event_roles.tsv")
    key = event.roles[0]
    for relation in event.relations:
        ends = [event.role(relation, side) for side in ("head", "tail")]
        if None in ends or key not in ends:
            raise ValueError(
                f"{where}: {relation} needs a role of {event.id} for its head and its tail in event_roles.tsv, "
                f"one of them the first, {key.name_en}"
            )
