"""Does training data hold what is tested on? Runs of words or characters that a case shares with any text of a row."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ahocorasick_rs import AhoCorasick

# A run this long is hardly chance: 13 words is GPT-3's measure (arXiv 2005.14165, appendix C)
LONGEST_CHANCE = {"english": 13, "chinese": 20}


@dataclass(frozen=True)
class Shared:
    """``text``, in the form it was compared in, is in the input of the case and in the row (numbered from 1)."""

    case: str | int
    row: int
    text: str


def shared_text(
    cases: Iterable[dict], rows: Iterable, words: int | None = None, characters: int | None = None
) -> Iterator[Shared]:
    """Every pair of a case and a row that share ``words`` words (English) or ``characters`` characters (Chinese).

    A case shorter than that is found where all of it is shared, and so is every case that equals a row's text. Upper
    and lower case, full and half width, spaces and punctuation don't count. Each pair comes once, with its first run.

    cases: ``{"id", "language", "input"}``.
    rows: records of any shape, such as those of a training file; all strings in them are looked at. They are streamed:
    one pass, in time linear in their length.

    >>> case = {"id": 1, "language": "english", "input": "He said: to be or not to be."}
    >>> [shared.case for shared in shared_text([case], [{"text": "To be, or not to be?"}], words=5)]
    [1]
    """
    limits = {
        "english": LONGEST_CHANCE["english"] if words is None else words,
        "chinese": LONGEST_CHANCE["chinese"] if characters is None else characters,
    }
    if min(limits.values()) < 1:
        raise ValueError("words and characters must be at least 1")
    runs: dict[str, dict[str, list]] = {language: {} for language in limits}
    for case in cases:
        language = case["language"]
        for run in _runs(compared(case["input"], language), language, limits[language]):
            runs[language].setdefault(run, []).append(case["id"])
    automata = {language: AhoCorasick(list(by_run)) for language, by_run in runs.items() if by_run}
    for number, row in enumerate(rows, 1):
        found = set()
        for text in strings_in(row):
            for language, automaton in automata.items():
                for run in automaton.find_matches_as_strings(compared(text, language), overlapping=True):
                    for case_id in runs[language][run]:
                        if case_id not in found:
                            found.add(case_id)
                            yield Shared(case_id, number, run.strip())


def compared(text: str, language: str) -> str:
    """A text as it is compared.

    >>> compared("Paris, FRANCE", "english"), compared("巴黎（Ｐaris）", "chinese")
    (' paris france ', '巴黎paris')
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", text)
    return f" {' '.join(words)} " if language == "english" else "".join(words)


def strings_in(value) -> Iterator[str]:
    """Every string of a JSON value, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for part in value.values() for text in strings_in(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in strings_in(part))


def _runs(text: str, language: str, length: int) -> Iterator[str]:
    """All runs of ``length`` words or characters of a text in the form it is compared in, or the text if shorter."""
    units = text.split() if language == "english" else text
    for start in range(max(len(units) - length, 0) + 1 if units else 0):
        part = units[start : start + length]
        yield f" {' '.join(part)} " if language == "english" else str(part)
