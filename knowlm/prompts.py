"""The one prompt template reader: tuning, generation and serving build the same prompt."""

import re
from pathlib import Path

from knowlm.files import read_json

TEMPLATES = Path(__file__).parent / "templates"


class Prompter:
    """Builds prompts from a template file with ``prompt_input``, ``prompt_no_input`` and ``response_split``.

    template: the name of a file in ``knowlm/templates`` or a path to one elsewhere.
    """

    def __init__(self, template: str = "alpaca"):
        shipped = TEMPLATES / f"{template}.json"
        path = shipped if shipped.is_file() else Path(template)
        self.template = read_json(path)
        missing = {"prompt_input", "prompt_no_input", "response_split"} - self.template.keys()
        if missing:
            raise ValueError(f"{path}: lacks {', '.join(sorted(missing))}; see {TEMPLATES / 'alpaca.json'}")

    def prompt(self, instruction: str, input: str | None = None) -> str:
        """The prompt up to where the answer begins.

        >>> Prompter().prompt("Say hello.").endswith("### Response:\\n")
        True
        """
        text = self.template["prompt_input" if input else "prompt_no_input"]
        values = {"{instruction}": instruction, "{input}": input or ""}
        return re.sub(r"\{instruction\}|\{input\}", lambda match: values[match[0]], text)

    def response(self, text: str) -> str:
        """The answer within a text that still holds its prompt."""
        return text.split(self.template["response_split"])[-1].strip()
