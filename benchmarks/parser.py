"""Whether reading an answer takes time in proportion to its length, on whole answers and on hostile ones.

    python benchmarks/parser.py --characters 250000

Every text is read at that length and at twice it: the ratio of the times is 2 where time is linear, 4 where it is
quadratic. Each is repeated for a twentieth of a second, the fastest counts. The last lines give the speed on ordinary
answers.
"""

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.extraction.forms import TASKS, forms_of, write_answer
from knowlm.extraction.parsing import parse

# What is repeated: each once made, or could make, some reader of answers look again and again at the same letters.
HOSTILE = [
    *("(", "[", "{", "<", "（", ")", "]", "[{", "((a,", "(a,(b,", "(a,b,[(", '{"a":', '{"a":[', "[[],"),
    *("(a,b,c", "(a,b,c)(", '"', "'", ',"', ' "', "('", '("a', '"\\', ',"\\', "\\", "“", "”", ':"'),
    *('{"a":"b', "{'a':'b' ", "[{'head':'", "(a,b,c) ", "(a,b) prose ", "(a, b) and ", "1. ", "(1) "),
    *("- ", "\n", "\n ", "\n(", "\n1. (", " ", "\u3000", ": ", "：", "a:", "#", ";", "a#b;"),
    *("(t,y,a#b;", "<a, b, c#d; ", "<<", "->", "<-", "x < y > ", "《", "、", "，", ",", "a,", "a:b,c\n"),
    *("NAN", "NAN\n", "</s>", "<s>", "<|", "<|a", "```", "### Response:", "### Instruction:"),
    *("[INST]", "no ", "no a ", "没有", "\u200b", "\ufeff", "\r", "\r\n", "。", "*", "**("),
    *("输入中包含的关系三元组是：", "{a:", "[a,b,c),(", "[(a,b),", "0", "-", "a", " a", "李", "\ud83d", "🏝", "\x00"),
    *("\x01", '"\x01"', "null,", "[null,", "[1,", '{"text":"a","type":"b"},', "|", "| a "),
    *("| a | b |\n", "|---|---|\n", "a (b), ", "a (b", "Head: a, Relation: b, ", "type: a\n"),
    *('{"a":"{', '"{\\"a\\":', "a\tb\n", "a:\nb\n", "NAN a\n", "a：b；"),
]
LONGEST = 4  # letters joined at random into a repeated text
RANDOM = 60


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--characters", type=int, default=250_000, help="of the shorter text (default: 250000)")
    args = parser.parse_args()
    if args.characters < 1000:
        refuse("--characters must be at least 1000")
    worst = []
    for name, make in texts():
        for task in TASKS:
            short, long = (seconds(task, make(length)) for length in (args.characters, 2 * args.characters))
            worst.append((long / short, long, task, name))
    worst.sort(reverse=True)
    slowest = sorted(worst, key=lambda row: -row[1])
    print(f"{len(worst)} texts of {args.characters} and twice as many characters")
    print("| text | task | seconds for the longer | ratio |")
    print("|---|---|---|---|")
    for ratio, long, task, name in [*worst[:5], *slowest[:5]]:
        print(f"| {name} | {task} | {long:.3f} | {ratio:.2f} |")
    for task in TASKS:
        for form in forms_of(task):
            answer = write_answer(task, items_of(task, 5), form)
            labels = sorted({item["relation" if task == "RE" else "type"] for item in items_of(task, 5)})
            print(f"{task} {form}: {1 / seconds(task, answer, labels):,.0f} answers of 5 items a second")


def texts():
    """(name, maker of a text of so many characters)."""
    pieces = random.Random(0)
    repeated = HOSTILE + ["".join(pieces.choices(HOSTILE, k=pieces.randint(2, LONGEST))) for _ in range(RANDOM)]
    for piece in repeated:
        yield f"`{piece!a} …`", lambda length, piece=piece: (piece * (length // len(piece) + 1))[:length]
    for task in TASKS:
        for form in forms_of(task):
            line = write_answer(task, items_of(task, 1000), form)
            yield f"{task} {form}", lambda length, line=line: (line * (length // len(line) + 1))[:length]
    yield "marks at random", lambda length: "".join(random.Random(0).choices("([{<)]}>,:;#\"'\\ \nab（，）", k=length))


def items_of(task: str, count: int) -> list[dict]:
    if task == "NER":
        return [{"text": f"entity {i}", "type": f"type {i % 4}"} for i in range(count)]
    if task == "RE":
        return [{"head": f"head {i}", "relation": f"relation {i % 4}", "tail": f"tail {i}"} for i in range(count)]
    arguments = [{"text": "Ann", "role": "who"}, {"text": "Rome", "role": "where"}]
    return [{"type": f"type {i % 4}", "trigger": f"trigger {i}", "arguments": arguments} for i in range(count)]


def seconds(task: str, text: str, labels=("a", "type 1", "relation 1")) -> float:
    """The fastest of some readings."""
    fastest, spent = float("inf"), 0.0
    while spent < 0.05:
        start = time.process_time()
        parse(task, text, labels)
        took = time.process_time() - start
        fastest, spent = min(fastest, took), spent + max(took, 1e-6)
    return fastest


if __name__ == "__main__":
    run(main)
