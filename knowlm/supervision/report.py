"""What a run of distant supervision found, how much of it chance alone would explain, and examples."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from knowlm.supervision.graph import KnowledgeGraph
from knowlm.supervision.names import NameFinder
from knowlm.supervision.workers import Found

EXAMPLES = 3  # of each relation
CONTEXT = 150  # characters of an example's text on both sides of what was found


class Figures:
    """Counts of a run, filled piece by piece; memory doesn't grow with it."""

    def __init__(self, graph: KnowledgeGraph, finders: Mapping[str, NameFinder]):
        self.graph = {
            "entities": graph.count("entities"),
            "triples": graph.count("triples") + graph.count("literals"),
            "triples_left_out": graph.dropped(),
            "names": sum(len(finder) for finder in {id(finder): finder for finder in finders.values()}.values()),
        }
        self.counts: Counter[str] = Counter()
        self.relations: Counter[str] = Counter()
        self.topics: Counter[str] = Counter()
        self.matched: Counter[str] = Counter()
        self.events: dict[str, Counter[str]] = {}
        self.event_examples: dict[str, list[dict]] = {}
        self.by_chance: Counter[str] = Counter()
        self.examples: dict[str, list[dict]] = {}
        self.rows: dict[str, Counter[tuple[str, str]]] = {}

    def add(self, piece: Found) -> None:
        self.counts.update(
            pieces=1,
            pieces_with_triples=bool(piece.evidence),
            mentions=piece.mentions,
            ambiguous_mentions=piece.ambiguous,
            undecided_mentions=piece.undecided,
            predicted_triples=piece.predicted,
        )
        self.matched.update(piece.matched)
        for relation, expected in piece.by_chance.items():
            self.by_chance[relation] += expected  # type: ignore[assignment]
        if piece.evidence:
            self.topics[piece.topic] += 1
            for triple in piece.evidence["triples"]:
                self.relations[triple["relation"]] += 1
                kept = self.examples.setdefault(triple["relation"], [])
                if len(kept) < EXAMPLES:
                    spans = triple["head_span"], triple["tail_span"]
                    kept.append({"text": around(piece.evidence["text"], spans), **triple})
        for kind, count in piece.silent_triggers.items():
            self.events.setdefault(kind, Counter()).update(triggers_without_fact=count)
        evidence = piece.evidence or {"events": ()}
        for event in evidence.get("events", ()):
            self.events.setdefault(event["type"], Counter()).update(events=1, arguments=len(event["arguments"]))
            kept = self.event_examples.setdefault(event["type"], [])
            if len(kept) < EXAMPLES:
                kept.append({"text": around(evidence["text"], [event["trigger_span"]]), **event})

    def report(self, matched: int, heldout: list[dict]) -> dict:
        """Everything as JSON; ``matched``: different triples found; heldout: cases to show."""
        noise = {
            relation: {
                "matches": count,
                "by_chance": round(self.by_chance[relation], 2),
                "share": round(self.by_chance[relation] / count, 4),
            }
            for relation, count in self.matched.most_common()
        }
        total = sum(self.matched.values())
        return {
            **self.graph,
            "matched": matched,
            **self.counts,
            "noise": round(sum(self.by_chance[relation] for relation in self.matched) / total, 4) if total else None,
            "rows": {
                f"{side} {task} {language}": count
                for side, counts in self.rows.items()
                for (task, language), count in sorted(counts.items())
            },
            "topics": dict(self.topics.most_common()),
            "relations": dict(self.relations.most_common()),
            "noise_by_relation": noise,
            "events": {
                kind: {name: counts[name] for name in ("events", "arguments", "triggers_without_fact")}
                for kind, counts in sorted(self.events.items(), key=lambda item: (-item[1]["events"], item[0]))
            },
            "examples_by_relation": self.examples,
            "examples_by_event": self.event_examples,
            "examples": [{"input": case["input"], "gold": case["gold"]} for case in heldout],
        }


def around(text: str, spans: Iterable[Sequence[int]]) -> str:
    """The text near ``spans``."""
    starts, stops = zip(*spans, strict=True)
    start, stop = max(min(starts) - CONTEXT, 0), max(stops) + CONTEXT
    return "…" * (start > 0) + text[start:stop] + "…" * (stop < len(text))


def as_markdown(report: dict) -> str:
    figures = [f"| {name.replace('_', ' ')} | {value} |" for name, value in report.items() if isinstance(value, int)]
    return "\n".join(
        [
            "# Instructions from a knowledge graph",
            "",
            "| figure | count |",
            "|---|---|",
            *figures,
            "",
            "| rows | count |",
            "|---|---|",
            *(f"| {name} | {count} |" for name, count in report["rows"].items()),
            "",
            "| topic | pieces with triples |",
            "|---|---|",
            *(f"| {name} | {count} |" for name, count in report["topics"].items()),
            "",
            "## Matches per relation",
            "",
            "By chance: how many matches a graph would give whose tails were shuffled within each relation, the mean",
            "over all shuffles. The share is what chance alone explains. A match may be noise beyond that: where two",
            "entities are linked in the graph by a fact that the text does not state. Where a relation has few",
            "different tails, shuffling changes little, and the share tells little.",
            "",
            "| relation | in the data | matches | by chance | share |",
            "|---|---|---|---|---|",
            *(noise_row(report, name) for name in report["noise_by_relation"] | report["relations"]),
            "",
            "## Examples of each relation",
            "",
            *(
                line
                for name, examples in report["examples_by_relation"].items()
                for line in of_relation(name, examples)
            ),
            "",
            *events_told(report),
            "## Examples held out",
            "",
            *(line for example in report["examples"] if example["gold"] for line in held_out(example)),
            "",
        ]
    )


def events_told(report: dict) -> list[str]:
    if not report["events"]:
        return []
    return [
        "## Events",
        "",
        "An event is a trigger word in one sentence with both ends of a fact. A trigger without a fact may tell",
        "of an event that the graph doesn't know: its type is not asked for in vain in that piece.",
        "",
        "| event type | events | arguments | triggers without a fact |",
        "|---|---|---|---|",
        *(f"| {name} | {' | '.join(str(count) for count in row.values())} |" for name, row in report["events"].items()),
        "",
        *(line for name, examples in report["examples_by_event"].items() for line in of_event(name, examples)),
        "",
    ]


def of_event(name: str, examples: list[dict]) -> list[str]:
    lines = [f"- {name}"]
    for example in examples:
        arguments = " · ".join(f"{argument['role']}: {argument['text']}" for argument in example["arguments"])
        lines.append(f"  - **{example['trigger']}** · {arguments}: {' '.join(example['text'].split())}")
    return lines


def noise_row(report: dict, name: str) -> str:
    noise = report["noise_by_relation"].get(name)
    told = f"{noise['matches']} | {noise['by_chance']} | {noise['share']:.1%}" if noise else " | | "
    return f"| {name} | {report['relations'].get(name, 0)} | {told} |"


def of_relation(name: str, examples: list[dict]) -> list[str]:
    lines = [f"- {name}"]
    for example in examples:
        text = " ".join(example["text"].split())
        lines.append(f"  - **{example['head_alias']}** · {name} · **{example['tail_alias']}**: {text}")
    return lines


def held_out(example: dict) -> list[str]:
    return [
        f"- {' '.join(example['input'].split())}",
        *(f"  - {' · '.join(map(told, item.values()))}" for item in example["gold"]),
    ]


def told(part: str | list[dict]) -> str:
    """A name or a label; of an event's arguments each with its role."""
    return part if isinstance(part, str) else " · ".join(f"{named['role']}: {named['text']}" for named in part)
