"""Cases on disk while a run goes on: any number of them, chosen and ordered in the end."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

CaseRow = tuple[str, str, str, bytes, bool, str]  # id, task, language, place in a random order, is empty, JSON


def case_row(case: dict, seed: int) -> CaseRow:
    """What a store keeps of a case: made by the worker that found it."""
    place = hash_of(case["id"], seed)
    return case["id"], case["task"], case["language"], place, not case["gold"], json.dumps(case, ensure_ascii=False)


def hash_of(text: str, seed: int) -> bytes:
    return blake2b(f"{seed} {text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


class CaseStore:
    """A scratch database of cases on two sides: ``train`` and ``heldout``.

    A piece of text belongs to the side and the document that showed it first: no case is on both.
    """

    def __init__(self, path: Path, seed: int):
        self.seed = seed
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.executescript("""
            PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-16384;
            CREATE TABLE cases(side TEXT, id TEXT PRIMARY KEY, task TEXT, language TEXT, place BLOB, is_empty INTEGER,
                content TEXT) WITHOUT ROWID;
            CREATE TABLE facts(hash BLOB PRIMARY KEY) WITHOUT ROWID;
            CREATE TABLE pieces(id TEXT PRIMARY KEY) WITHOUT ROWID;
        """)
        self.connection.execute("BEGIN")

    def is_new(self, piece: str) -> bool:
        """Whether this piece comes for the first time."""
        return self.connection.execute("INSERT OR IGNORE INTO pieces VALUES (?)", (piece,)).rowcount == 1

    def add_case(self, side: str, case: CaseRow) -> None:
        self.connection.execute("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?, ?)", (side, *case))

    def add_fact(self, *fact: str) -> None:
        self.connection.execute("INSERT OR IGNORE INTO facts VALUES (?)", (hash_of("\t".join(fact), self.seed),))

    def num_facts(self) -> int:
        """Different facts seen."""
        return self.connection.execute("SELECT count(*) FROM facts").fetchone()[0]

    def choose(self, side: str, empty_share: float, most: int | None) -> Counter[tuple[str, str]]:
        """Leave in ``side`` all cases with an answer and so many empty ones as a share of them, at most ``most``.

        In a fixed random order, tasks and languages taking turns. Returns how many stay, by task and language.
        """
        keep = f"CREATE TABLE {side}_kept AS SELECT id FROM cases WHERE side = '{side}' AND is_empty = "
        self.connection.execute(f"{keep} 0")
        full = self.connection.execute(f"SELECT count(*) FROM {side}_kept").fetchone()[0]
        self.connection.execute(
            f"INSERT INTO {side}_kept SELECT id FROM cases WHERE side = ? AND is_empty = 1 "
            "ORDER BY substr(id, instr(id, '-')), id LIMIT ?",  # not by place: they would all come first
            (side, round(full * empty_share)),
        )
        self.connection.execute(
            f"CREATE TABLE {side}_chosen AS SELECT id, task, language FROM (SELECT id, task, language, "
            "row_number() OVER (PARTITION BY task, language ORDER BY place) AS turn "
            f"FROM {side}_kept JOIN cases USING (id)) ORDER BY turn, language, task LIMIT ?",
            (-1 if most is None else most,),
        )
        counts = self.connection.execute(f"SELECT task, language, count(*) FROM {side}_chosen GROUP BY task, language")
        return Counter({(task, language): count for task, language, count in counts})

    def chosen(self, side: str) -> Iterator[dict]:
        """The cases that ``choose`` left, in its order."""
        rows = self.connection.execute(
            f"SELECT content FROM {side}_chosen t JOIN cases c ON c.id = t.id ORDER BY t.rowid"
        )
        return (json.loads(row[0]) for row in rows)

    def close(self) -> None:
        self.connection.close()
