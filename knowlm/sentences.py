"""Where sentences end: English and code by Punkt, Chinese and mixed text by its marks."""

import re
import string
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

# A Chinese or mixed sentence ends at these marks or at a line break; further marks and closing quotes belong to it.
CHINESE_END = re.compile(r"[;!?；。！？\n][;!?；。！？\n”’」』）)\"']*")
# The same in 2023: no closing quotes, but a bracket, a backslash or an n alone between two marks counts as a mark.
CHINESE_END_2023 = re.compile(r"[;!?；。！？\n]+(?:(?:[()\[\]\\n]|\\n)(?:[;!?；。！？\n]+|\Z))*")
CHINESE_LETTER = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]")
CODE_LINE = re.compile(r"(?m)^(?:\t+|(?: {2}){1,})\S|[{};]\s*$|^\s*(?:def|class|import|from|#include|return|func)\b")
PLAIN_END = re.compile(r"(?:([^\W\d_]{2,})\.|[^\W\d_]+[?!])(?=[ \t\r\n])")
HEAD = 4000  # characters of a text by which its language is guessed
MEMO = 1 << 16  # Punkt's decisions kept in memory, some 20 MB
LONGEST_WORD = 200  # characters that Punkt looks at on each side of a mark


def guess_language(text: str) -> str:
    """``chinese`` if a tenth of the first characters are Chinese, ``code`` if half the lines look so, else ``english``.

    >>> [guess_language(text) for text in ("床前明月光", "def f(x):\\n    return x", "It rains.")]
    ['chinese', 'code', 'english']
    """
    head = text[:HEAD]
    if len(CHINESE_LETTER.findall(head)) > len(head) / 10:
        return "chinese"
    lines = [line for line in head.split("\n") if line.strip()]
    return "code" if 2 * sum(bool(CODE_LINE.search(line)) for line in lines) > len(lines) > 1 else "english"


def language_of(text: str) -> str:
    """``chinese`` or, of anything else, ``english``: the two in which we ask and split.

    >>> language_of("def f(x):\\n    return x")
    'english'
    """
    return "chinese" if guess_language(text) == "chinese" else "english"


def sentence_ends(text: str, language: str) -> list[int]:
    """Character offsets at which the sentences of ``text`` end, the last being ``len(text)``.

    White space between two English sentences belongs to the second, as word pieces begin with it.
    language: ``chinese`` (also for mixed text), ``english`` or ``code``.

    >>> sentence_ends("你好。再见！", "chinese")
    [3, 6]
    >>> sentence_ends("Dr. Li left. She is back.", "english")
    [12, 25]
    """
    if not text:
        return []
    if language == "chinese":
        ends = [match.end() for match in CHINESE_END.finditer(text)]
    else:
        last = len(text.rstrip())
        ends = [stop for _, stop in punkt_spans(text) if stop < last]
        if language == "code":  # a line is a natural unit too
            ends = sorted({*ends, *(match.start() for match in re.finditer(r"\n", text))})
    ends = [end for end in ends if 0 < end < len(text)]
    return [*ends, len(text)]


def sentences_of_2023(text: str, language: str, keep_newlines: bool) -> list[tuple[int, int]]:
    """(start, stop) of the sentences as the release of 2023 split a document.

    Without ``keep_newlines`` it lost what lies between them: marks of Chinese, white space of English sentences.

    >>> sentences_of_2023("你好。再见！", "chinese", keep_newlines=True)
    [(0, 3), (3, 6)]
    >>> sentences_of_2023("你好。再见！", "chinese", keep_newlines=False)
    [(0, 2), (3, 5), (6, 6)]
    """
    if language != "chinese":
        return punkt_spans(text, keep_newlines)
    if keep_newlines:
        ends = [match.end() for match in CHINESE_END_2023.finditer(text)]
        return list(pairwise([0, *ends] if ends[-1:] == [len(text)] else [0, *ends, len(text)]))
    marks = [match.start() for match in re.finditer(r"[;!?；。！？\n]", text)]
    return list(zip([0, *(mark + 1 for mark in marks)], [*marks, len(text)], strict=True))


def punkt_spans(text: str, keep_space: bool = False) -> list[tuple[int, int]]:
    """(start, stop) of an English text's sentences as nltk's Punkt (Kiss & Strunk 2006) finds them.

    The same as ``PunktSentenceTokenizer.span_tokenize``, several times as fast: one scan for marks that may end a
    sentence, and Punkt asked only where it may say no. keep_space: with the pattern of 2023, which leaves the white
    space behind a mark with the sentence before.
    """
    marks, closing, is_end = _punkt(keep_space)
    last, begin = len(text.rstrip()), 0
    raw: list[tuple[int, int]] = []
    for stop, after, context_start in _marks(marks, text):
        if is_end(text, context_start, stop, after):
            raw.append((begin, stop))
            begin = after.start("next_tok") if after["next_tok"] else stop
    spans, skipped = [], 0
    raw += [(begin, last), (last, last)]
    for (begin, stop), (next_begin, next_stop) in pairwise(raw):
        closed = closing.match(text, next_begin, next_stop) if next_begin < next_stop else None
        if closed:  # quotes and brackets behind the mark belong to its sentence
            spans.append((begin + skipped, next_begin + len(closed[0].rstrip())))
        elif begin + skipped < stop:
            spans.append((begin + skipped, stop))
        skipped = closed.end() - next_begin if closed else 0
    return spans


def _marks(candidate, text: str) -> Iterator[tuple[int, Any, int]]:
    """(end, match, where the word before it begins) of each mark; of several behind one word the last."""
    start = stop = 0
    last = None
    for match in candidate.finditer(text):
        position = match.start()
        space = max(text.rfind(character, stop, position) for character in string.whitespace)
        word = space + 1 if space > stop else start
        if last and stop <= word:
            yield last.end(), last, start
        last, start, stop = match, word, position
    if last:
        yield last.end(), last, start


@cache
def _punkt(keep_space: bool):
    """(pattern of marks, pattern of closing quotes, whether a mark ends a sentence) of Punkt with English parameters.

    Behind a plain word a mark ends a sentence: Punkt sees no end only behind abbreviations, initials, numbers and
    collocations. What it says of the others depends on two words alone, so that is remembered.
    """
    import regex

    punkt = load_punkt()
    special = punkt._params.abbrev_types | {first for first, _ in punkt._params.collocations}
    decide = lru_cache(MEMO)(punkt.text_contains_sentbreak)

    def is_end(text: str, start: int, stop: int, after) -> bool:
        word = PLAIN_END.match(text, start)
        plain = word and not text[word.end() : stop].strip() and (word[1] is None or word[1].lower() not in special)
        if plain and after["after_tok"].strip():
            return True
        return decide(text[max(start, stop - LONGEST_WORD) : stop] + after["after_tok"][:LONGEST_WORD])

    if keep_space:
        # `\S*[.?!]\s*(?=…)` was the pattern of 2023; begun at words alone, it can't run away on a long one.
        form = r"(?<!\S)(?:[^\s.?!]*+[.?!])+\s*+(?=(?P<after_tok>%s|(?P<next_tok>\S++)))"
        marks = regex.compile(form % punkt._lang_vars._re_non_word_chars)
    else:
        pattern = punkt._lang_vars.period_context_re()
        marks = regex.compile(pattern.pattern, pattern.flags)
    closing = punkt._lang_vars.re_boundary_realignment
    return marks, regex.compile(closing.pattern, closing.flags), is_end


def load_punkt():
    """nltk's Punkt with its English parameters, read from a package without pickles."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt.data import english

    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)
