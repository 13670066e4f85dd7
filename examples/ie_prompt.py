"""Instructions to ask for entities, relations and events with.

    python examples/ie_prompt.py --task RE --schema "founded by,headquarters"
    python examples/ie_prompt.py --task NER --schema 人物,地点 --language chinese --form json
    python examples/ie_prompt.py --task EE --schema "旅游行程:旅游地点/旅游时间/旅游人员" --language chinese

An event type is followed by its roles. Without --task it prints an example of each task in both languages.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.forms import FORMS, INSTRUCTIONS, TASKS, render

EXAMPLES = {
    ("NER", "english"): "person,place,organisation",
    ("RE", "english"): "founded by,headquarters,place of birth",
    ("EE", "english"): "trip:place/time/traveller",
    ("NER", "chinese"): "人物,地点,机构",
    ("RE", "chinese"): "创办者,总部所在地,出生地",
    ("EE", "chinese"): "旅游行程:旅游地点/旅游时间/旅游人员",
}


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--task", choices=TASKS, help="entities, relations or events")
    parser.add_argument("--schema", help="comma-separated labels; an event type is written type:role/role")
    parser.add_argument(
        "--language", choices=["english", "chinese"], default="english", help="of the instruction (default: english)"
    )
    parser.add_argument("--form", choices=FORMS, default="tuple", help="how the answer is asked for (default: tuple)")
    args = parser.parse_args()
    if bool(args.task) != bool(args.schema):
        refuse("--task and --schema go together")
    chosen = {(args.task, args.language): args.schema} if args.task else EXAMPLES
    for (task, language), schema in chosen.items():
        for variant in range(len(INSTRUCTIONS[task, language])):
            print(render(task, parse_schema(task, schema), args.form, language, variant))


def parse_schema(task: str, text: str) -> list:
    """Labels, or for EE event types with their roles.

    >>> parse_schema("EE", "trip:place/time")
    [{'type': 'trip', 'roles': ['place', 'time']}]
    """
    labels = [label.strip() for label in text.replace("，", ",").split(",") if label.strip()]
    if not labels:
        raise ValueError(f"--schema {text}: names no label")
    if task != "EE":
        return labels
    events = []
    for label in labels:
        kind, _, written = label.replace("：", ":").partition(":")
        roles = [role.strip() for role in written.split("/") if role.strip()]
        if not kind or not roles:
            raise ValueError(f"--schema {label}: an event type needs its roles, as in trip:place/time")
        events.append({"type": kind, "roles": roles})
    return events


if __name__ == "__main__":
    run(main)
