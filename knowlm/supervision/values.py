"""Dates and quantities: as a knowledge graph writes them, and in the forms that texts give them.

A date is ``YYYY``, ``YYYY-MM`` or ``YYYY-MM-DD`` as text, before Christ with a minus sign; a quantity is a float.
"""

import calendar
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

Value = str | float

MONTHS = [*calendar.month_name][1:]
MONTH = "|".join(f"{month}|{month[:3]}\\.?" if month != "May" else month for month in MONTHS) + "|Sept\\.?"
DATES = (
    rf"(?P<d1>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m1>{MONTH}),? (?P<y1>\d{{3,4}})(?!\d|,\d|%)",  # 6 May 1889
    rf"(?P<m2>{MONTH}) (?P<d2>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y2>\d{{3,4}})(?!\d|,\d|%)",  # May 6, 1889
    rf"(?P<m3>{MONTH}) (?P<y3>\d{{3,4}})(?!\d|,\d|%)",
    r"(?P<y4>\d{4})(?P<between>[-/.])(?P<m4>\d{1,2})(?P=between)(?P<d4>\d{1,2})(?!\d)",
    r"(?P<d0>\d{1,2})\.(?P<m0>\d{1,2})\.(?P<y0>\d{4})(?!\d)",
    r"(?P<y5>\d{3,4})年(?P<m5>\d{1,2})月(?:(?P<d5>\d{1,2})日)?",
    r"(?:公元)?(?P<bc>前)?(?P<y6>\d{3,4})(?!\d|,\d|%|s\b)(?P<ce>年| BCE?\b)?",
    r"(?:公元)?(?P<bc7>前)(?P<y7>\d{1,2})年",
    r"(?<!\w)(?P<y8>\d{1,2}) BCE?\b",
    r"(?P<y9>[一二三四五六七八九][〇○零一二三四五六七八九]{3})年",
)
UNIT = re.compile(  # behind three or four digits, that are no year then
    r"[ -]?(?:(?:square |cubic |nautical )?(?:(?:kilo|centi|milli)?met(?:re|er)s?|miles?|feet|foot|yards?|inch(?:es)?"
    r"|tons?|tonnes|kilograms?|grams?|pounds|dollars|euros|hectares|acres|lit(?:re|er)s|degrees|hours|minutes|days|years"
    r"|per ?cent|km²?|m²?|cm|mm|kg|kW|MW|kph|mph|pages|copies|species|islands|inhabitants|residents)\b|°)"
    r"|[多余]?(?:公里|千米|[厘毫]?米|人|吨|公斤|千?克|平方|立方|公顷|亩|℃|摄氏|华氏|度|岁|天|小时|户|座|个|种|名|位|艘|架"
    r"|颗|所|次|册|页|卷|首|枚|块|美?元|英镑|英尺|英里|海里)"
)
BEGINS = r"(?=[\dADFJMNOS公前一二三四五六七八九])"  # looked at first: nearly every place is passed over by it
DATE = re.compile(BEGINS + r"(?<![\d.,$€£¥-])(?:" + "|".join(DATES) + ")")
TIMES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12} | {"千": 1e3, "万": 1e4, "亿": 1e8}
DIGITS = r"(?<![A-Za-z0-9_.,])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
NUMBER = re.compile(DIGITS + "(?: ?(?P<times>" + "|".join(TIMES) + r"))?(?!\d|s\b)")
HAS_DIGIT = re.compile(r"\d|[〇○零一二三四五六七八九]{4}年")
GRAPH_DATE = re.compile(r"([+-]?)(\d{3,18})(?:-(\d\d)(?:-(\d\d))?)?(?:T[\d:.]+)?(?:Z|[+-]\d\d:\d\d)?")
GRAPH_NUMBER = re.compile(r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?")
HAN_DIGITS = {digit: str(number) for number, digit in enumerate("〇一二三四五六七八九")} | {"零": "0", "○": "0"}
YEAR = re.compile(r"\d{4}")
NOWHERE = (0, 0)
LEAST = 10  # a smaller quantity stands in every text


@dataclass(frozen=True)
class ValueMention:
    """``text[start:stop]`` is a date (``value`` a text) or a quantity (a float, right to ``tolerance``)."""

    start: int
    stop: int
    value: Value
    year: tuple[int, int] = NOWHERE  # where a date's year stands, or a number that a graph may have taken for one
    tolerance: float = 0.0


def find_values(text: str) -> list[ValueMention]:
    """Dates and quantities in reading order; three or four digits are taken for a year unless a unit follows.

    >>> [mention.value for mention in find_values("Built on 6 May 1889 for 3.5 million people.")]
    ['1889-05-06', 3500000.0]
    >>> [mention.value for mention in find_values("公元前44年，350万人；1889年5月，一八九〇年")]
    ['-0044', 3500000.0, '1889-05', '1890']
    """
    if not HAS_DIGIT.search(text):  # most sentences: the patterns below are slow
        return []
    dates = list(_find_dates(text))
    taken = {place for date in dates for place in range(date.start, date.stop)}
    numbers = [number for number in _find_numbers(text) if number.start not in taken]
    return sorted(dates + numbers, key=lambda mention: mention.start)


def _find_dates(text: str) -> Iterator[ValueMention]:
    for match in DATE.finditer(text):
        parts = {name[0]: name for name, part in match.groupdict().items() if part and name[0] in "ymd"}
        year = parts["y"]
        digits = "".join(HAN_DIGITS.get(digit, digit) for digit in match[year])
        before = match["bc"] or match["bc7"] or match["y8"] or (match["ce"] or "").strip() in ("BC", "BCE")
        value = f"{'-' if before else ''}{int(digits):04d}"
        where = match.span(year)
        if "m" not in parts:
            following = text[match.end() : match.end() + 10]
            if not match["ce"] and re.match(r" ?(?:thousand|million|billion|trillion|万|亿|千)|\.\d", following):
                continue
            if not match["ce"] and not before and UNIT.match(text, match.end()):
                continue
            yield ValueMention(*where, value, where)
            continue
        month = match[parts["m"]]
        number = int(month) if month.isdigit() else [name[:3] for name in MONTHS].index(month[:3]) + 1
        day = int(match[parts["d"]]) if "d" in parts else 0
        if 1 <= number <= 12 and day <= 31:
            yield ValueMention(*match.span(), f"{value}-{number:02d}" + (f"-{day:02d}" if day else ""), where)


def _find_numbers(text: str) -> Iterator[ValueMention]:
    for match in NUMBER.finditer(text):
        digits = match["digits"].replace(",", "")
        times = TIMES[match["times"]] if match["times"] else 1.0
        value = float(digits) * times
        if not LEAST <= value < math.inf:  # hundreds of digits are no quantity
            continue
        decimals = len(digits.partition(".")[2])
        significant = digits.replace(".", "").lstrip("0")
        zeros = 0 if decimals else len(significant) - len(significant.rstrip("0"))
        rounded = len(significant) - zeros >= 2  # "300" may be exact, "3.5 million" hardly is
        year = match.span() if UNIT.match(text, match.end()) else NOWHERE
        tolerance = 0.5 * times * 10.0 ** (zeros - decimals) if rounded else 0.0
        yield ValueMention(*match.span(), value, year, tolerance)


def read_value(text: str) -> Value | None:
    """A graph's literal as a date or a quantity; None if it is neither. Three or four digits are a year.

    >>> [read_value(text) for text in ("1889-05-06", "-0044", "+1889-00-00T00:00:00Z", "643,801", "-44", "Paris")]
    ['1889-05-06', '-0044', '1889', 643801.0, -44.0, None]
    """
    date = GRAPH_DATE.fullmatch(text)
    if date and (len(date[2]) <= 4 or date[3]):
        return write_date(date[1], int(date[2]), int(date[3] or 0), int(date[4] or 0))
    return float(text.replace(",", "")) if GRAPH_NUMBER.fullmatch(text) else None


def write_date(sign: str, year: int, month: int = 0, day: int = 0) -> str:
    value = f"{'-' if sign == '-' else ''}{year:04d}"
    return value + (f"-{month:02d}" + (f"-{day:02d}" if day else "") if month else "")


def kind_of(value: Value) -> str:
    return "time" if isinstance(value, str) else "quantity"


def matching_span(value: Value, mention: ValueMention) -> tuple[int, int] | None:
    """Where ``mention`` says ``value``: all of it, or the year of a fuller date; None if it doesn't.

    Three or four digits alone, that either has for a year, may be a quantity for the other.
    """
    if isinstance(value, str) != isinstance(mention.value, str):
        date, number = (value, mention.value) if isinstance(value, str) else (mention.value, value)
        is_alike = mention.year != NOWHERE and YEAR.fullmatch(str(date)) and float(date) == number
        return (mention.start, mention.stop) if is_alike else None
    if isinstance(value, str):
        said = str(mention.value)
        if value == said or value.startswith(f"{said}-"):
            return mention.start, mention.stop
        return mention.year if said.startswith(f"{value}-") and "-" not in value[1:] else None
    return (mention.start, mention.stop) if abs(value - float(mention.value)) <= mention.tolerance else None


def value_range(mention: ValueMention) -> tuple[Value, Value]:
    """The least and the greatest value that a mention may say: those of SQLite's order, for its index."""
    if isinstance(mention.value, str):
        return mention.value, f"{mention.value}-99"
    return mention.value - mention.tolerance, mention.value + mention.tolerance
