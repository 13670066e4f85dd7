"""How instructions from a knowledge graph scale: time and memory of each stage, at one size and at twice that.

    python benchmarks/kg2instructions.py
    python benchmarks/kg2instructions.py --megabytes 100 --triples 1000000 --num_workers 8

Texts and graph are made on the spot: invented names, a sentence for some of the triples among sentences that state
none. Each stage runs in a process of its own. CPU seconds count all its processes, so they hold on a busy machine; peak
is the most memory that one process of the stage had, which for several workers counts what they share in each.
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, run
from knowlm.files import read_json

SCRIPT = Path(__file__).resolve().parents[1] / "finetune/kg2instructions.py"
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "an", "er")]
RELATIONS = ("birthplace", "author", "located_in", "employer", "borders", "spouse", "member_of", "founder")
SENTENCES = (
    "{head} is linked with {tail} in every account of that time.",
    "Those who knew {head} also knew {tail}.",
    "The archive keeps a letter from {head} that tells of {tail}.",
)
FILLER = (
    "The harvest of {year} was poor, and few travellers came before the first snow.",
    "A narrow road leads from the mill to the river, where boats wait for the evening tide.",
    "{name} had never been described so well, the newspapers wrote.",
)


def main() -> None:
    args = parse_args()
    print("| text | triples | stage | CPU s | wall s | peak MB | what it made |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for scale in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            measure(Path(name), args.megabytes * scale, args.triples * scale, args.num_workers)


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--megabytes", type=float, default=10, help="of text, and then twice that (default: 10)")
    parser.add_argument("--triples", type=int, default=100_000, help="likewise (default: 100000)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that match (default: 2)")
    return parser.parse_args()


def measure(folder: Path, megabytes: float, triples: int, num_workers: int) -> None:
    write_input(folder, megabytes, triples)
    size = f"| {megabytes:g} MB | {triples} "
    stages: list[tuple[str, Callable, tuple]] = [
        ("graph into SQLite", build, (folder,)),
        ("names' automaton", load_names, (folder,)),
    ]
    stages += [(f"match, {n} processes", match, (folder, n)) for n in dict.fromkeys((1, num_workers))]
    for stage, function, arguments in stages:
        with get_context("spawn").Pool(1) as apart:
            cpu, wall, peak, made = apart.apply(timed, (function, arguments))
            apart.close()
            apart.join()
        print(f"{size}| {stage} | {cpu:.1f} | {wall:.1f} | {peak / 1e6:.0f} | {made} |", flush=True)


def timed(function: Callable, arguments: tuple) -> tuple[float, float, int, str]:
    """(CPU seconds, wall seconds, bytes of memory at most, what the function says that it made)."""
    start = time.perf_counter()
    made = function(*arguments)
    wall = time.perf_counter() - start
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return cpu, wall, max(usage.ru_maxrss for usage in usages) * 1024, made


def write_input(folder: Path, megabytes: float, triples: int) -> None:
    """``graph.tsv`` and ``texts.txt``: ten sentences a document, one in five of them names both ends of a triple."""
    generator = random.Random(0)

    def name() -> str:
        return " ".join("".join(generator.choices(SYLLABLES, k=generator.randint(2, 4))).title() for _ in range(2))

    names = [name() for _ in range(triples // 3)]
    facts = [(generator.choice(names), generator.choice(RELATIONS), generator.choice(names)) for _ in range(triples)]
    with (folder / "graph.tsv").open("w") as file:
        file.writelines(f"{head}\t{relation}\t{tail}\n" for head, relation, tail in facts)
    with (folder / "texts.txt").open("w") as file:
        while file.tell() < megabytes * 1e6:
            sentences = []
            for _ in range(2):
                head, _, tail = generator.choice(facts)
                sentences.append(generator.choice(SENTENCES).format(head=head, tail=tail))
            for _ in range(8):
                filler = generator.choice(FILLER)
                sentences.append(filler.format(name=generator.choice(names), year=generator.randint(1500, 2000)))
            generator.shuffle(sentences)
            file.write(" ".join(sentences) + "\n")


def build(folder: Path) -> str:
    from knowlm.supervision.graph_builder import build_database

    build_database([folder / "graph.tsv"], None, folder / "graph.db")
    return f"{(folder / 'graph.db').stat().st_size / 1e6:.0f} MB of SQLite"


def load_names(folder: Path) -> str:
    import psutil

    from knowlm.supervision.graph import KnowledgeGraph
    from knowlm.supervision.graph_builder import schema_for_graph
    from knowlm.supervision.names import NameFinder

    graph = KnowledgeGraph(folder / "graph.db", schema_for_graph([folder / "graph.tsv"], None))
    before = psutil.Process().memory_info().rss
    finder = NameFinder(graph.connection, "english")
    grown = psutil.Process().memory_info().rss - before
    return f"{len(finder)} names, {grown / len(finder):.0f} bytes a name"


def match(folder: Path, num_workers: int) -> str:
    output = folder / f"out{num_workers}"
    command = [sys.executable, SCRIPT, "--texts", folder / "texts.txt", "--knowledge", folder / "graph.tsv"]
    command += ["--database", folder / "graph.db", "--output_dir", output, "--tasks", "RE"]
    command += ["--piece_length", "60", "--num_workers", str(num_workers)]
    first, memory = watched(list(map(str, command)))
    report = read_json(output / "report.json")
    return (
        f"{report['pieces']} pieces, {report['matched']} different triples, {report['noise']:.1%} by chance; "
        f"{first:.1f} CPU s of them in the first process, at most {memory / 1e6:.0f} MB in all processes together"
    )


def watched(command: list[str]) -> tuple[float, int]:
    """(CPU seconds of a command's first process alone, bytes of memory of all its processes, shared pages once)."""
    import psutil

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first, seconds, memory = psutil.Process(process.pid), 0.0, 0
    while process.poll() is None:
        with suppress(psutil.Error):  # some may end meanwhile
            memory = max(memory, sum(p.memory_full_info().pss for p in [first, *first.children(recursive=True)]))
            seconds = sum(first.cpu_times()[:2])
        time.sleep(0.2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, memory


if __name__ == "__main__":
    run(main)
