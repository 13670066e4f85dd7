"""Cases: a text, a task with its schema, and the gold answer; and the instruction rows that are made of them."""

import itertools
import json
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from knowlm.extraction.forms import DATA, INSTRUCTIONS, TASKS, forms_of, render, write_answer
from knowlm.extraction.parsing import read_answer
from knowlm.files import HALF, read_records

MOST_LINES = 3  # of an instruction's beginning that tells its schema
FIELDS = {"id", "task", "language", "schema", "input", "gold"}
LANGUAGES = {"en": "english", "英文": "english", "zh": "chinese", "cn": "chinese", "中文": "chinese"}  # others' words


def schema_labels(case: dict) -> list[str]:
    """The labels of a case's schema; event types for EE."""
    return [entry["type"] for entry in case["schema"]] if case["task"] == "EE" else list(case["schema"])


def read_cases(path: str | Path) -> list[dict]:
    """Cases of a JSON or JSONL file. Raises ValueError naming the record that is none, or whose id was there before."""
    cases = [in_our_words(record) for record in read_records(path)]
    for number, case in enumerate(cases, 1):
        try:
            check_case(case)
        except ValueError as error:
            raise ValueError(f"{path}, record {number}: {error}") from None
    if len({str(case["id"]) for case in cases}) < len(cases):
        raise ValueError(f"{path}: two cases have the same id; give each its own")
    if not cases:
        raise ValueError(f"{path}: holds no cases")
    return cases


def in_our_words(record: dict) -> dict:
    """A record whose task and language, if it has them, are written as a case has them: ``en`` and ``English``, too."""
    words = {name: record[name] for name in ("task", "language") if isinstance(record.get(name), str)}
    if "task" in words:
        words["task"] = words["task"].upper()
    if "language" in words:
        language = words["language"].lower()
        words["language"] = LANGUAGES.get(language, language)
    return record | words


def check_case(case: dict) -> None:
    """Raise ValueError saying what keeps a record from being a case."""
    missing = FIELDS - case.keys()
    if missing:
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    if case["task"] not in TASKS:
        raise ValueError(f"task {case['task']!r} is none of {', '.join(TASKS)}")
    if case["language"] not in ("english", "chinese"):
        raise ValueError(f"language {case['language']!r} is neither english nor chinese")
    if not isinstance(case["id"], str | int) or not isinstance(case["input"], str):
        raise ValueError("id and input must be texts")
    try:
        texts = _texts(case)
    except (KeyError, TypeError, AttributeError):
        texts = [None]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("gold or schema is not of the form that finetune/README.md shows")
    if any(map(HALF.search, (case["input"], *texts))):
        raise ValueError("holds half a character (a lone surrogate); leave it out")


def _texts(case: dict) -> list:
    """Every text of schema and gold."""
    task, schema, gold = case["task"], case["schema"], case["gold"]
    if not isinstance(schema, list) or not isinstance(gold, list):
        return [None]
    if task == "NER":
        return [*schema, *(item[name] for item in gold for name in ("text", "type"))]
    if task == "RE":
        return [*schema, *(item[name] for item in gold for name in ("head", "relation", "tail"))]
    if not all(isinstance(event["roles"], list) for event in schema):
        return [None]
    roles = [role for event in schema for role in (event["type"], *event["roles"])]
    arguments = [argument[name] for item in gold for argument in item["arguments"] for name in ("text", "role")]
    return [*roles, *(item[name] for item in gold for name in ("type", "trigger")), *arguments]


def row_of(case: dict, forms: Sequence[str] = ("tuple",), wordings: int = 1, seed: int = 0) -> dict[str, str]:
    """A case as an instruction with its answer: one of so many wordings, and one of the forms that its task has, drawn
    at random from seed and id. Raises ValueError if it has none of them.
    """
    generator = random.Random(f"{seed} {case['id']}")
    variant = generator.randrange(wordings)
    task, language, schema = case["task"], case["language"], case["schema"]
    fitting = [form for form in forms if form in forms_of(task)]
    if not fitting:
        raise ValueError(f"{task} has no form {', '.join(forms)}; its forms are {', '.join(forms_of(task))}")
    form = generator.choice(fitting)
    return {
        "instruction": render(task, schema, form, language, variant),
        "input": case["input"],
        "output": write_answer(task, case["gold"], form, language, schema),
    }


def case_of_row(row: dict, name: str) -> dict:
    """The case that ``row_of`` made a row of, also where its input stands below the instruction, as in a chat;
    ValueError if its instruction is none that ``render`` writes, or its answer can't be read.
    """
    instruction, text = row["instruction"], row.get("input", "")
    if not text:
        instruction, text = without_input(instruction)
    asked = read_instruction(instruction)
    if asked is None:
        raise ValueError("the instruction isn't one of examples/ie_prompt.py's, so its schema can't be read")
    case = {"id": name, **asked, "input": text}
    return case | {"gold": read_answer(case["task"], row["output"], case["schema"])}


def without_input(question: str) -> tuple[str, str]:
    """Instruction and input of a chat's question that has the one above the other; no input if it isn't so.

    >>> without_input(render("NER", ["place"]) + "\\nAnn lives\\nin Rome.")[1]
    'Ann lives\\nin Rome.'
    """
    lines = question.split("\n")
    for number in range(1, min(len(lines), MOST_LINES) + 1):
        asked = read_instruction("\n".join(lines[:number]))
        if asked:
            task, language, schema = asked["task"], asked["language"], asked["schema"]
            variants = range(len(INSTRUCTIONS[task, language]))
            for form, variant in itertools.product(forms_of(task), variants):  # an example in it may have lines, too
                instruction = render(task, schema, form, language, variant)
                if question.startswith(instruction + "\n"):
                    return instruction, question[len(instruction) + 1 :]
    return question, ""


def read_instruction(instruction: str) -> dict | None:
    """``{"task", "language", "schema"}`` of an instruction that ``render`` wrote; None if it didn't.

    >>> read_instruction(render("EE", [{"type": "trip", "roles": ["who", "where"]}]))["schema"]
    [{'type': 'trip', 'roles': ['who', 'where']}]
    """
    for (task, language), pattern in _patterns().items():
        if match := pattern.fullmatch(instruction):
            listed = next(group for group in match.groups() if group is not None)
            joint = "、" if language == "chinese" else ", "
            schema: list = _labels(listed, joint)
            if task == "EE":
                events = re.findall(rf"(.+?)\(([^()]*)\)(?:{joint}|$)", listed)
                schema = [{"type": _labels(kind, joint)[0], "roles": _labels(roles, joint)} for kind, roles in events]
            return {"task": task, "language": language, "schema": schema}
    return None


def _labels(listed: str, joint: str) -> list[str]:
    """The labels that ``render`` wrote with ``joint`` between, those in quotes as JSON strings."""
    found = re.findall(rf'("(?:[^"\\]|\\.)*"|.+?)(?:{joint}|$)', listed, re.DOTALL)
    return [_unquoted(label) for label in found]


def _unquoted(label: str) -> str:
    try:
        return json.loads(label) if label.startswith('"') else label
    except ValueError:  # an instruction of another's
        return label


@cache
def _patterns() -> dict[tuple[str, str], re.Pattern]:
    """For each task and language a pattern of all its instructions, the labels in groups."""
    patterns = {}
    for (task, language), wordings in INSTRUCTIONS.items():
        texts = []
        for form, wording in itertools.product(forms_of(task), dict.fromkeys(wordings)):
            known = {"form": DATA["asked"][language][task][form], "nothing": write_answer(task, [], form)}
            parts = {**{name: re.escape(text) for name, text in known.items()}, "schema": "(.+)", "example": ".+"}
            pieces = re.split(r"\{(\w+)\}", wording)  # text and names by turns
            texts.append("".join(parts[piece] if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)))
        patterns[task, language] = re.compile("|".join(texts), re.DOTALL)
    return patterns
