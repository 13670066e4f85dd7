"""Read a schema as a user gives it: labels, or event types with their roles, on the command line or in a file."""

import json
import os
import re
from pathlib import Path
from typing import Any

from knowlm.files import require_file


def read_schema(task: str, given: str) -> list:
    """A list of labels, each once; for EE of ``{"type", "roles"}``.

    given: a JSON list, or labels with commas between (an event type is written type:role/role), or the path of a file
    of either. Raises ValueError where that names no label.

    >>> read_schema("EE", "trip:place/time")
    [{'type': 'trip', 'roles': ['place', 'time']}]
    >>> read_schema("NER", '["person", "place"]')
    ['person', 'place']
    """
    where = f"--schema {given}"
    text = given
    if os.path.isfile(given) or given.endswith((".json", ".txt")):
        require_file(given)
        where = given
        try:
            text = Path(given).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{given}: is not UTF-8 text; save it as such") from error
    if text.lstrip()[:1] in ("[", "{"):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{where}: is not JSON; write labels with commas between, or a JSON list") from None
    else:
        entries = [label.strip() for label in re.split("[,，、\n]", text) if label.strip()]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where}: names no label; write labels with commas between, or a JSON list")
    if task != "EE":
        return list(dict.fromkeys(_label(entry, where) for entry in entries))
    roles: dict[str, list[str]] = {}
    for event in (_event(entry, where) for entry in entries):
        roles.setdefault(event["type"], []).extend(event["roles"])
    return [{"type": kind, "roles": list(dict.fromkeys(listed))} for kind, listed in roles.items()]


def _label(entry: Any, where: str) -> str:
    if not isinstance(entry, str) or not entry.strip():
        raise ValueError(f"{where}: {json.dumps(entry, ensure_ascii=False)} is no label; a text is needed")
    return entry.strip()


def _event(entry: Any, where: str) -> dict:
    if isinstance(entry, str):
        kind, _, written = entry.replace("：", ":").partition(":")
        roles = [role.strip() for role in written.replace("／", "/").split("/") if role.strip()]
        entry = {"type": kind.strip(), "roles": roles or None}  # [] has to be written as such
    if not isinstance(entry, dict) or not entry.get("type") or entry.get("roles") is None:
        raise ValueError(f"{where}: an event type needs its roles, as in trip:place/time")
    roles = entry["roles"]
    if not isinstance(roles, list):
        raise ValueError(f'{where}: "roles" must be a list')
    return {"type": _label(entry["type"], where), "roles": [_label(role, where) for role in roles]}
