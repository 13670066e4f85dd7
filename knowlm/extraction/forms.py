"""How a task is asked and how its answer is written, in English and Chinese; the words are in forms.json.

Names in an answer stand bare where they can be read back, and as a JSON string where not:
``(Paris,place)`` but ``("Washington, D.C.",place)``.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

DATA = json.loads(Path(__file__).with_name("forms.json").read_text(encoding="utf-8"))
TASKS = ("NER", "RE", "EE")
LANGUAGES = ("english", "chinese")
FORMS = tuple(DATA["forms"])  # of all tasks together; forms_of tells those of one
LABELS_AT_ONCE = {"NER": 6, "RE": 4, "EE": 4}  # in one question, as IEPile asks (arXiv 2402.14710)
NOTHING = "NAN"  # the published answer for "nothing found", and for a role without argument

# The wordings of each task, the same classes in the same order for each; several, so that a model does not learn one
# by heart. {schema}, {form}, {example} and {nothing} are filled in.
WORDINGS = tuple(DATA["wordings"]["english"]["NER"])
INSTRUCTIONS = {
    (task, language): tuple(DATA["wordings"][language][task].values()) for task in TASKS for language in LANGUAGES
}
TWICE = {"(": "()（）", "（": "()（）", "[": "[]［］【】", "{": "{}｛｝", "<": "<>＜＞"}  # a bracket and its like
OPENING = r"(（\[［【{｛<＜"
QUOTES = "\"'“”‘’"
INVISIBLE = "\u200b\u2060\ufeff"  # zero width, and without meaning; joiners have one, in emoji and Persian


def forms_of(task: str) -> tuple[str, ...]:
    """The forms that an answer of ``task`` can be written in.

    >>> forms_of("NER")
    ('tuple', 'json', 'tuple-joined', 'full-width', 'angle', 'angle-joined', 'iepile')
    """
    return tuple(name for name, form in DATA["forms"].items() if task in form["tasks"])


def render(task: str, schema: Sequence, form: str = "tuple", language: str = "english", variant: int = 0) -> str:
    """The instruction that asks for ``task`` with ``schema``, the answer to be in ``form``.

    >>> render("NER", ["person"])
    'Find the entities of these types in the input: person. Answer as (entity,type), one a line.'

    variant: which wording; any number. Raises ValueError on an unknown task or language, or a form not of the task.
    """
    _check(task, form, language)
    joint = "、" if language == "chinese" else ", "
    if task == "EE":
        labels = joint.join(f"{_label(event['type'])}({joint.join(map(_label, event['roles']))})" for event in schema)
    else:
        labels = joint.join(map(_label, schema))
    wordings = INSTRUCTIONS[task, language]
    return wordings[variant % len(wordings)].format(
        schema=labels,
        form=DATA["asked"][language][task][form],
        example=write_answer(task, _example(task, schema, language), form, language),
        nothing=write_answer(task, [], form),
    )


def _check(task: str, form: str, language: str) -> None:
    if task not in TASKS:
        raise ValueError(f"no task {task}; tasks are {', '.join(TASKS)}")
    if language not in LANGUAGES:
        raise ValueError(f"no instructions in {language}; languages are {', '.join(LANGUAGES)}")
    if form not in forms_of(task):
        raise ValueError(f"{task} answers have no form {form}; their forms are {', '.join(forms_of(task))}")


def _label(label: str) -> str:
    """A label in a list of them: one that holds a mark of the list is quoted."""
    return json.dumps(label, ensure_ascii=False) if re.search(r'[,，、"\n\r]', label) else label


def _example(task: str, schema: Sequence, language: str) -> list[dict]:
    """One or two items with labels of the schema and numbered names."""
    words, space = DATA["placeholders"][language], "" if language == "chinese" else " "

    def named(kind: str, number: int) -> str:
        return f"{words[kind]}{space}{number}"

    items = []
    for number, label in enumerate(schema[:2], 1):
        if task == "NER":
            items.append({"text": named("text", number), "type": label})
        elif task == "RE":
            items.append({"head": named("head", number), "relation": label, "tail": named("tail", number)})
        else:
            arguments = [
                {"text": named("argument", place), "role": role} for place, role in enumerate(label["roles"], 1)
            ]
            items.append({"type": label["type"], "trigger": named("trigger", number), "arguments": arguments})
    return items


def write_answer(
    task: str, items: Sequence[dict], form: str = "tuple", language: str = "english", schema: Sequence = ()
) -> str:
    """The answer that a perfect model gives; ``parse`` reads it back.

    language: of the form "sentence" and of the colons of "labelled". schema: with "iepile", labels without items get an
    empty list and roles without argument "NAN", as that data has it.

    >>> write_answer("RE", [{"head": "Paris", "relation": "country", "tail": "France"}])
    '(Paris,country,France)'

    Equal items come back, if their names are neither empty nor with white space at an end; "iepile"
    puts those of one label (and arguments of one role) together. An argument "NAN" is none. ``parse`` may be told the
    labels, those of the items among them; for "hash-type-first" it must be.

    Raises ValueError on a form not of the task.
    """
    _check(task, form, language)
    if form == "json":
        return json.dumps(list(items), ensure_ascii=False)
    if form.startswith("iepile"):
        return json.dumps(_by_label(task, items, form, schema), ensure_ascii=False)
    if not items:
        return NOTHING
    if form in ("labelled", "sentence"):
        return _labelled(items, form, language)
    marks = DATA["forms"][form]
    opening, closing, comma, joint = marks["open"], marks["close"], marks["comma"], marks["joint"]
    hashed = is_hashed(task, form)
    plain = bare_pattern(opening, hashed)

    def group(*names: str) -> str:
        return f"{opening}{comma.join(_field(plain, name) for name in names)}{closing}"

    if task == "NER":
        return joint.join(group(item["text"], item["type"]) for item in items)
    if task == "RE":
        return joint.join(group(item["head"], item["relation"], item["tail"]) for item in items)
    lines = []
    for item in items:
        arguments = [argument for argument in item["arguments"] if argument["text"] != NOTHING]
        first = [_field(plain, item["trigger"]), _field(plain, item["type"])]
        if form.startswith("angle") or form == "hash-type-first":
            first.reverse()
        if not hashed:
            square = "［］" if opening == "（" else "[]"
            pairs = comma.join(group(argument["text"], argument["role"]) for argument in arguments)
            first.append(f"{square[0]}{pairs}{square[1]}")
        elif arguments:
            order = ("role", "text") if form.startswith("angle") else ("text", "role")
            first.append(
                comma.replace(",", ";").join("#".join(_field(plain, a[part]) for part in order) for a in arguments)
            )
        lines.append(opening + comma.join(first) + closing)
    return joint.join(lines)


def is_hashed(task: str, form: str) -> bool:
    """Whether an event's arguments are pairs with # between."""
    return task == "EE" and form.startswith(("hash", "angle"))


@cache
def bare_pattern(opening: str, hashed: bool = False) -> re.Pattern:
    """A name that needs no quotes in a group of that bracket, or in "relation: head, tail" with ``opening`` empty.

    No comma, line break or invisible character, no quote or bracket at its start, no white space at its ends, and the
    group's own brackets only in pairs. Linear: every choice is made by one character and never taken back.
    """
    marks = ",，\n\r" + INVISIBLE + ("#＃;；" if hashed else ":：" if opening == "{" else "")
    if not opening:
        marks += ":：;；"
        start = rf"(?![\s{QUOTES}{OPENING}《*•·-]|\d+[.)、])"  # nor what begins a group or a list's line
        return re.compile(rf"{start}[^{marks}]++(?<![\s。])")
    brackets = re.escape(TWICE[opening])
    pairs = [(re.escape(TWICE[opening][i]), re.escape(TWICE[opening][i + 1])) for i in range(0, len(TWICE[opening]), 2)]
    inner = "|".join(f"{a}[^{marks}{brackets}]*+{b}" for a, b in pairs)
    return re.compile(rf"(?![\s{QUOTES}{OPENING}])(?:[^{marks}{brackets}]++|{inner})++(?<!\s)")


def _field(plain: re.Pattern, name: str) -> str:
    return name if name != NOTHING and plain.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def tuple_field(name: str) -> str:
    """A name or label as the form "tuple" has it.

    >>> tuple_field("Paris"), tuple_field("Washington, D.C.")
    ('Paris', '"Washington, D.C."')
    """
    return _field(bare_pattern("("), name)


def _labelled(items: Iterable[dict], form: str, language: str) -> str:
    plain = bare_pattern("")
    chinese = language == "chinese"
    colon, comma = ("：", "，" if form == "sentence" else ",") if chinese else (": ", ", ")
    lines = [
        f"{_field(plain, item['relation'])}{colon}{_field(plain, item['head'])}{comma}{_field(plain, item['tail'])}"
        for item in items
    ]
    if form == "labelled":
        return "\n".join(lines)
    return DATA["sentence"][language] + ("；" if chinese else "; ").join(lines)


def _by_label(task: str, items: Iterable[dict], form: str, schema: Sequence) -> dict[str, list]:
    """IEPile's object: what was found, under each label. A name "NAN" stands with its label: alone it says "none"."""
    roles = {entry["type"]: entry["roles"] for entry in schema} if task == "EE" else {}
    found: dict[str, list] = {entry["type"] if task == "EE" else entry: [] for entry in schema}
    head, tail = ("head", "tail") if form == "iepile-head-tail" else ("subject", "object")
    for item in items:
        if task == "NER":
            found.setdefault(item["type"], []).append(item if item["text"] == NOTHING else item["text"])
        elif task == "RE":
            own = {"relation": item["relation"]} if NOTHING in (item["head"], item["tail"]) else {}
            found.setdefault(item["relation"], []).append({head: item["head"], **own, tail: item["tail"]})
        else:
            names: dict[str, list[str]] = {role: [] for role in roles.get(item["type"], ())}
            for argument in item["arguments"]:
                names.setdefault(argument["role"], []).append(argument["text"])
            arguments = {r: (n if len(n) > 1 else n[0]) if n else NOTHING for r, n in names.items()}
            own = {"type": item["type"]} if item["trigger"] == NOTHING else {}
            found.setdefault(item["type"], []).append({**own, "trigger": item["trigger"], "arguments": arguments})
    return found
