"""Drop facts that a text doesn't state, by the word of a model of natural language inference.

The premise is the sentences from the one mention to the other, the hypothesis the fact as a sentence.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from knowlm.files import read_json, require_file
from knowlm.models import check_model_folder
from knowlm.supervision.documents import sentences
from knowlm.supervision.graph_schema import Schema
from knowlm.supervision.pieces import Match, Piece

BATCH = 32  # facts that the model reads at once
PREPOSITIONS = ("of", "in", "by", "with", "at", "on", "to", "from", "for", "as")


def entailment_label(folder: str | Path) -> int:
    """The number of the label "entailment"; nothing is loaded for it.

    Raises ValueError if ``folder`` holds no sequence classification model with such a label.
    """
    check_model_folder(str(require_file(Path(folder) / "config.json").parent))
    config = read_json(Path(folder) / "config.json")
    require_file(Path(folder) / "tokenizer_config.json")
    names = {int(number): str(name).lower() for number, name in (config.get("id2label") or {}).items()}
    found = [number for number, name in names.items() if name == "entailment"]
    if not any("ForSequenceClassification" in name for name in config.get("architectures") or ()):
        raise ValueError(f"{folder}: is no sequence classification model; an NLI model is needed")
    if not found:
        known = ", ".join(names.values()) or "none"
        raise ValueError(f'{folder}: has no label "entailment", only {known}; write it under id2label in config.json')
    return found[0]


def hypothesis_of(match: Match, piece: Piece, schema: Schema) -> str:
    """A fact as a sentence in its piece's language.

    ``Louvre is located in Paris.``, ``The capital of France is Paris.``, ``法国的首都是巴黎。``
    """
    head, tail = piece.text[slice(*match.head_span)], piece.text[slice(*match.tail_span)]
    relation = schema.relations[match.relation].name(piece.language)
    if piece.language == "chinese":
        return f"{head}的{relation}是{tail}。"
    if relation.endswith(PREPOSITIONS) and relation.split()[-1] in PREPOSITIONS:
        return f"{head} is {relation} {tail}."
    return f"The {relation} of {head} is {tail}."


def premise_of(match: Match, piece: Piece) -> str:
    """The sentences that hold both mentions and what lies between them."""
    first, last = min(match.head_span[0], match.tail_span[0]), max(match.head_span[1], match.tail_span[1])
    spans = list(sentences(piece.text, piece.language))
    start = max((start for start, _ in spans if start <= first), default=0)
    stop = min((stop for _, stop in spans if stop >= last), default=len(piece.text))
    return piece.text[start:stop].strip()


@dataclass
class EntailmentFilter:
    """Keeps the facts whose probability of being entailed is at least ``least``; each tells it as evidence.

    The model is loaded where it is first needed, so in each process that matches. It computes with one thread and in
    32 bits there, and the same facts always stand in a batch together: any number of processes gives the same bytes.
    """

    folder: str
    least: float
    label: int = field(init=False)
    model: Any = field(init=False, default=None)
    tokenizer: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.label = entailment_label(self.folder)

    def drop(self, pieces: Sequence[Piece], schema: Schema) -> list[Counter[str]]:
        """Take the facts that aren't entailed out of the pieces; of each how many, by relation."""
        facts = [(piece, match) for piece in pieces for match in piece.triples]
        pairs = [(premise_of(match, piece), hypothesis_of(match, piece, schema)) for piece, match in facts]
        for (_, match), probability in zip(facts, self.probabilities(pairs), strict=True):
            match.evidence["entailment"] = probability
        dropped = []
        for piece in pieces:
            out = [match for match in piece.triples if match.evidence["entailment"] < self.least]
            dropped.append(Counter(match.relation for match in out))
            piece.triples = [match for match in piece.triples if match.evidence["entailment"] >= self.least]
        return dropped

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Of each premise and hypothesis, to four decimals."""
        found: list[float] = []
        rows = iter(pairs)
        while batch := list(islice(rows, BATCH)):
            found += self.ask(batch)
        return found

    def ask(self, pairs: list[tuple[str, str]]) -> list[float]:
        import torch

        if self.model is None:
            self.load()
        settings = {"padding": True, "truncation": True, "max_length": self.length(), "return_tensors": "pt"}
        batch = self.tokenizer(*map(list, zip(*pairs, strict=True)), **settings).to(self.model.device)
        with torch.inference_mode():
            logits_BL = self.model(**batch).logits.float()
        return [round(p, 4) for p in logits_BL.softmax(-1)[:, self.label].tolist()]

    def length(self) -> int:
        """Most tokens that the model reads."""
        known = getattr(self.model.config, "max_position_embeddings", None) or 512
        return min(known - 2, self.tokenizer.model_max_length, 1024)  # RoBERTa's positions begin at 2

    def load(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        model = AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
