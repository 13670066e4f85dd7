"""Names of entities in text: Aho–Corasick automata hold all of a language, the longest name wins."""

import heapq
import re
import sqlite3
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from ahocorasick_rs import AhoCorasick, Implementation

from knowlm.chinese import simplified
from knowlm.sentences import CHINESE_LETTER
from knowlm.supervision.values import find_values

LONGEST = 100  # characters of a name
SHARD = 1_000_000  # names of one automaton: building it takes three times the memory that it keeps
# Names that nearly always are a word of the language instead; written in capitals (IT, US, WHO) they stay names.
FUNCTION_WORDS = frozenset(
    """
    a about above after again all also am an and any are as at be been before being below between both but by can
    could did do does done down each few for from had has have having he her here him his how i if in into is it
    its just less made many may me more most much must my near no nor not now of off on one only or other our out
    over own per same she should so some such than that the their them then there these they this those through to
    too two under until up upon us used very was we were what when where which while who whom whose why will with
    within without would you your
    """.split()  # noqa: SIM905
)
LEAST_SMALL = 4  # letters of a name that is found with a capital of its sentence: shorter ones are often other words
NO_WORD = re.compile(r"\W*")
INVISIBLE = dict.fromkeys([*range(0x20), *range(0x7F, 0xA1), 0xAD, 0x202F, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF], " ")
del INVISIBLE[ord("\n")]


class _Folded(dict):
    """What each character becomes, found when it is first met."""

    def __missing__(self, code: int) -> int:
        plain = chr(code)
        if 0xFF01 <= code <= 0xFF5E or code == 0x3000:
            plain = unicodedata.normalize("NFKC", plain)
        elif CHINESE_LETTER.match(plain):
            plain = simplified(plain)
        self[code] = ord(plain) if len(plain) == 1 else code
        return self[code]


ALIKE = {"-": "‐‑‒–−", "·": "・‧•", "'": "’ʼ"}  # hyphens, dots between names, apostrophes
FOLDED = _Folded({code: code for code in range(0x80)} | {ord(m): ord(plain) for plain in ALIKE for m in ALIKE[plain]})


def fold(text: str) -> str:
    """Full-width letters and marks as ASCII, traditional Chinese as simplified, marks that look alike as one.

    Names are sought in this form.

    Character by character, so spans hold.

    >>> fold("ＮＡＳＡ（臺灣）"), fold("Huxley–Wilberforce")
    ('NASA(台湾)', 'Huxley-Wilberforce')
    """
    return text if text.isascii() else text.translate(FOLDED)


def clean(text: str) -> str:
    """Control and invisible characters as spaces, so that spans hold; line breaks stay."""
    return text.replace("\r\n", " \n").translate(INVISIBLE)


def is_name(name: str) -> bool:
    """Whether a folded name is sought in texts: no number, no date, no function word, not a single character.

    >>> [name for name in ("Paris", "1889", "在", "It", "IT", "3.5 million") if is_name(name)]
    ['Paris', 'IT']
    """
    if not 1 < len(name) <= LONGEST or not any(character.isalpha() for character in name):
        return False
    if name.lower() in FUNCTION_WORDS and not name.isupper():
        return False
    return not (name[0].isdigit() or name[-1].isdigit() or name[-1] in "年月日") or all(
        (value.start, value.stop) != (0, len(name)) for value in find_values(name)
    )


def is_whole(text: str, start: int, stop: int) -> bool:
    """Whether no word of letters goes on beyond ``text[start:stop]``; in Chinese only a dot binds names.

    >>> [is_whole(text, 0, 5) for text in ("Paris is", "Parisian", "Paris的")]
    [True, False, True]
    >>> [is_whole(text, 0, 2) for text in ("雨果写了", "雨果·阿尔文")]
    [True, False]
    """
    return not (_joined(text, start) or _joined(text, stop))


def _joined(text: str, place: int) -> bool:
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if "·" in (before, after):  # between the parts of a foreign name
        return True
    return before.isalnum() and after.isalnum() and not (CHINESE_LETTER.match(before) or CHINESE_LETTER.match(after))


def sentence_capitals(text: str, starts: Iterable[int]) -> list[int]:
    """Where the first word of a sentence has a capital and then small letters.

    >>> sentence_capitals('“Lead is grey. DNA is not. He', [0, 15, 26])
    [1, 27]
    """
    firsts = (NO_WORD.match(text, start).end() for start in starts)  # type: ignore[union-attr]
    return [place for place in firsts if text[place : place + 1].isupper() and text[place + 1 : place + 2].islower()]


def with_small(text: str, places: Sequence[int]) -> str:
    """With small letters at these places, where they are as long as the capitals."""
    letters = list(text) if places else [text]
    for place in places:
        small = letters[place].lower()
        letters[place] = small if len(small) == 1 else letters[place]
    return "".join(letters)


class NameFinder:
    """Finds every name of a language's entities in a text.

    Holds 100 to 200 bytes a name, outside of Python's objects, so that forked processes share them.
    """

    def __init__(self, connection: sqlite3.Connection, language: str):
        rows = connection.execute("SELECT DISTINCT name FROM names WHERE language IN (?, '')", (language,))
        self._names = 0
        self._automata: list[AhoCorasick] = []
        while shard := [name for (name,) in islice(rows, SHARD)]:
            self._names += len(shard)
            compact = AhoCorasick(shard, store_patterns=False, implementation=Implementation.ContiguousNFA)
            self._automata.append(compact)

    def __len__(self) -> int:
        return self._names

    def find(
        self, text: str, taken: Iterable[tuple[int, int]] = (), capitals: Sequence[int] = ()
    ) -> list[tuple[int, int]]:
        """Spans of a folded text in reading order, the longest first, none touching another or one that is taken.

        capitals: where a capital may stand for a small letter. A name that begins with it has LEAST_SMALL letters.
        """
        found = set(self._matches(text))
        if capitals:
            places = set(capitals)
            small = self._matches(with_small(text, capitals))
            found.update(span for span in small if span[0] in places and span[1] - span[0] >= LEAST_SMALL)
        return longest([span for span in found if is_whole(text, *span)], taken)

    def _matches(self, text: str) -> Iterator[tuple[int, int]]:
        for automaton in self._automata:
            for _, start, stop in automaton.find_matches_as_indexes(text, overlapping=True):
                yield start, stop


def name_finders(connection: sqlite3.Connection, languages: Sequence[str]) -> dict[str, NameFinder]:
    """A finder for each language; one for all where the graph doesn't say of which language a name is."""
    (differ,) = connection.execute("SELECT EXISTS (SELECT 1 FROM names WHERE language != '')").fetchone()
    if differ:
        return {language: NameFinder(connection, language) for language in languages}
    return dict.fromkeys(languages, NameFinder(connection, ""))


def longest(spans: Iterable[tuple[int, int]], taken: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """Of spans that overlap the longest, then the first; those taken aren't given back.

    >>> longest([(0, 5), (0, 12), (9, 12), (14, 16)])
    [(0, 12), (14, 16)]
    """
    starts = sorted(start for start, _ in taken)
    stops = sorted(stop for _, stop in taken)
    queue = [(start - stop, start, stop) for start, stop in set(spans)]
    heapq.heapify(queue)
    kept = []
    while queue:
        _, start, stop = heapq.heappop(queue)
        place = bisect_left(stops, start + 1)  # the first that ends behind this one's start
        if place == len(starts) or starts[place] >= stop:
            starts.insert(place, start)
            stops.insert(place, stop)
            kept.append((start, stop))
    return sorted(kept)
