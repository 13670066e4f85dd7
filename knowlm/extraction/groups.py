"""Items of bracketed groups in any bracket, in a text that may be damaged. One pass, a stack of its own: linear."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from knowlm.extraction.forms import NOTHING
from knowlm.extraction.items import SWAPPED, Found, Schema, event_item, named, ner_item, relation_item
from knowlm.extraction.literals import unquoted

CLOSING = {")": "(", "]": "[", "}": "{", ">": "<"}
BULLET = r"(?:[-•·①-⑳]|\*(?!\*)|\(?\d{1,4}[.)、:])"
# A bracket that begins a line, perhaps behind a list's mark, is told apart from one within a line.
MARK = re.compile(rf"\n[ \t]*+(?:{BULLET}[ \t]*+)?(?=[(\[{{<])|[()\[\]{{}}<>,]")
MASK = "\x01"  # stands for what is in quotes
MASKED = re.compile(
    r"""(?<=[(\[{<,;:#\s])(?:"(?:[^"\\\n]++|\\.)*+"|'(?:[^'\\\n]++|\\.|(?<=\w)'(?=\w))*+')"""
    r"""(?=[ \t]*+(?:[)\]}>,;:#\n]|\Z))"""
)
# What may stand between an item and the one before it; anything else is prose.
BETWEEN = re.compile(rf"[\s,;.、。|&*`\"']*+(?:{BULLET}|and|和|与|及|以及)?+[\s,*`\"']*+")
DEEPEST = 8  # groups further in are letters of a name: so each letter is looked at a bounded number of times
FIELDS = {"NER": 2, "RE": 3, "EE": 2}


@dataclass(slots=True)
class Group:
    """A bracket pair: where it opens, where it closes, the commas on its own level, the groups within."""

    start: int
    stop: int = -1
    commas: list[int] = field(default_factory=list)
    children: list["Group"] = field(default_factory=list)
    opened: bool = True  # by a bracket of its own; not where its line begins, or the group before it ends
    closed: bool = True  # by a bracket, its own or that of a group around it; not by the answer's end


def mask_quotes(structure: str) -> str:
    """``structure`` with every quoted field made of one letter, so that the marks within count as none."""
    return MASKED.sub(lambda match: MASK * len(match[0]), structure)


def find_groups(structure: str) -> tuple[list[Group], set[str]]:
    """The outermost groups in reading order, and what was wrong with their brackets."""
    roots: list[Group] = []
    stack: list[int] = []  # where each bracket that is open opens
    groups: list[Group] = []  # of the outer ones among them
    depth = dict.fromkeys("([{<", 0)
    repairs: set[str] = set()
    at_line = False
    loose: list[int] = []  # commas outside of all groups, since the last one

    def close(stop: int, closed: bool = True) -> None:
        depth[structure[stack.pop()]] -= 1
        if len(stack) < DEEPEST:
            group = groups.pop()
            group.stop, group.closed = stop, closed
            (groups[-1].children if groups else roots).append(group)

    for match in MARK.finditer(structure):
        mark, place = match[0], match.start()
        if mark[0] == "\n":
            at_line = True
            if stack and _before(structure, place) not in "([{<,":  # the group on the line before wasn't closed
                repairs.add("unbalanced brackets")
                while stack:
                    close(place)
            continue
        if mark == ",":
            if not stack:
                loose.append(place)
            if 0 < len(stack) <= DEEPEST:
                groups[-1].commas.append(place)
        elif mark in depth:
            if mark != "<" or at_line or _opens(structure, place, bool(stack), depth["<"] > 0):
                if len(stack) < DEEPEST:
                    groups.append(Group(place))
                stack.append(place)
                depth[mark] += 1
        elif stack and (mark != ">" or depth["<"] or _closes(structure, place)):
            opening = CLOSING[mark]
            if structure[stack[-1]] != opening and depth[opening]:
                repairs.add("unbalanced brackets")
                while structure[stack[-1]] != opening:
                    close(place)
            elif structure[stack[-1]] != opening:
                repairs.add("mixed brackets")
            close(place)
            loose.clear()
        elif loose and mark != ">":
            begin = structure.rfind("\n", roots[-1].stop if roots else 0, place)
            begin = max(begin, roots[-1].stop if roots else -1)
            roots.append(Group(begin, place, [comma for comma in loose if comma > begin], opened=False))
            loose.clear()
            repairs.add("unbalanced brackets")
        at_line = False
    while stack:
        close(len(structure), closed=False)
    return roots, repairs


def _before(structure: str, place: int) -> str:
    while place and structure[place - 1].isspace():
        place -= 1
    return structure[place - 1] if place else "("


def _opens(structure: str, place: int, inside: bool, angle: bool) -> bool:
    """Whether < is a bracket and not "less than"; inside of another bracket, of an angle one or not."""
    if inside and not angle:
        return structure[place - 1] in "([{<," or structure[place - 2 : place] in (", ", "[ ")
    return structure[place + 1 : place + 2] not in ("", " ", "=", "-", "/")


def _closes(structure: str, place: int) -> bool:
    """Whether > closes a bracket of another kind."""
    return structure[place - 1] not in "-=" and structure[place + 1 : place + 2] in ("", "\n", ",", "(", "[", "{", "<")


class GroupReader:
    """Items of groups: ``structure`` has ASCII marks and masked quotes, ``text`` the letters; equally long."""

    def __init__(self, task: str, structure: str, text: str, schema: Schema):
        self.task, self.structure, self.text, self.schema = task, structure, text, schema
        self.found = Found()
        self.outside: list[str] = []  # what stands before, between and after the items

    def read(self) -> Found:
        roots, repairs = find_groups(self.structure)
        end, listed = 0, True
        for root in roots:
            lead = self.structure[end : max(root.start, end)]
            listed = root.opened and self._is_listed(lead, listed)
            before = len(self.found.items), self.found.nothing
            self.found.items += self._with_item(root, listed)
            listed = (len(self.found.items), self.found.nothing) != before
            end = root.stop + root.closed
            self.outside.append(lead if listed or not root.closed else self.structure[root.start - len(lead) : end])
            if not root.closed:
                self.found.repairs.add("cut off")
        self.outside.append(self.structure[end:])
        self.found.repairs |= repairs
        return self.found

    @staticmethod
    def _is_listed(lead: str, listed: bool) -> bool:
        """Whether a group behind ``lead`` stands in a list, as the one before did or not, and not in a sentence."""
        line = lead[lead.rfind("\n") + 1 :]
        line = line[line.rfind(":") + 1 :]
        return bool(BETWEEN.fullmatch(line)) and (listed or len(line) < len(lead))

    def _with_item(self, root: Group, listed: bool) -> Iterator[dict]:
        """Items of a group, or else of those within it."""
        work = [(root, listed)]
        while work:
            group, listed = work.pop()
            item = self.item(group, listed)
            if item:
                marks = [place for place in (group.start, group.stop, *group.commas) if place < len(self.text)]
                if len({self.text[place] == self.structure[place] for place in marks}) > 1:
                    self.found.repairs.add("full-width marks")
                yield item
                continue
            if not group.children:
                continue
            first = group.children[0]
            if self._swallows(group, first):
                prefix = Group(group.start, first.start, [c for c in group.commas if c < first.start])
                item = self.item(prefix, listed)
                if item:  # "(a,b,c(d,e,f)": the first wasn't closed
                    self.found.repairs.add("unbalanced brackets")
                    yield item
            work.extend((child, listed) for child in reversed(group.children))

    def item(self, group: Group, listed: bool) -> dict | None:
        """The item that a group is, if it is one."""
        commas = group.commas
        if len(commas) + 1 < FIELDS[self.task] or self._is_list_of_groups(group):
            return None
        if group.children and group.children[-1].start > commas[-1] and self._swallows(group, group.children[-1]):
            return None
        if self.task == "EE":
            return self._event(group, listed)
        if not group.closed and not self._is_whole(commas[-1] + 1, group.stop):
            return None
        return self._entity(group, listed) if self.task == "NER" else self._triple(group, listed)

    def _is_whole(self, start: int, stop: int) -> bool:
        """Whether a name at the answer's end can't be half of one: it is in quotes, or the schema's."""
        is_quoted = set(self.structure[start:stop].strip()) == {MASK}
        return is_quoted or self.text[start:stop].strip() in self.schema.labels | self.schema.roles

    def _swallows(self, group: Group, child: Group) -> bool:
        """Whether a group that wasn't closed holds the next: "(a,b,c(d,e,f)"."""
        inside = self.structure[group.start + 1 : child.start].strip()
        marked = "#" in inside if self.task == "EE" else bool(inside)  # (trigger,type,(text,role)) is whole
        return marked and len(child.commas) + 1 >= FIELDS[self.task]

    def _is_list_of_groups(self, group: Group) -> bool:
        """Whether a field is nothing but a group with fields of its own; for events, the first or second."""
        edge = group.commas[1] if self.task == "EE" and len(group.commas) > 1 else group.stop
        for child in group.children:
            if child.start > edge:
                break
            if child.commas and _before(self.structure, child.start) in "([{<,":
                rest = self.structure[child.stop + 1 : child.stop + 3].lstrip()[:1]
                if rest in ("", ",", ")", "]", "}", ">"):
                    return True
        return False

    def _name(self, start: int, stop: int) -> str:
        """The name between two marks, without its quotes; "" for none, also where a bare NAN says so."""
        name = self.text[start:stop].strip()
        if name == NOTHING:
            self.found.nothing = True
            return ""
        if name[:1] == "'" and self.structure[start:stop].strip() == MASK * len(name):
            self.found.repairs.add("single quotes")
            return unquoted(name).strip()
        return clean(name)

    def _names(self, group: Group, cuts: list[int]) -> list[str]:
        edges = [group.start, *cuts, group.stop]
        return [self._name(a + 1, b) for a, b in pairwise(edges)]

    def _entity(self, group: Group, listed: bool) -> dict | None:
        names = self._names(group, group.commas[-1:])
        if len(group.commas) > 1:  # the type is last, or first if only there is a label
            turned = self._names(group, group.commas[:1])
            if turned[0] in self.schema.labels and names[1] not in self.schema.labels:
                names = turned
        if not all(names):
            return None
        item, swapped = ner_item(names[0], names[1], self.schema)
        return self._accept(item, item["type"], listed, swapped, len(group.commas) > 1)

    def _triple(self, group: Group, listed: bool) -> dict | None:
        commas = group.commas
        if len(commas) == 2:
            names = self._names(group, commas)
            if not all(names):
                return None
            item, swapped = relation_item(names, self.schema)
            return self._accept(item, item["relation"], listed, swapped)
        for left, right in pairwise(commas):  # a name holds a comma: only a label tells which
            if self._name(left + 1, right) in self.schema.labels:
                names = self._names(group, [left, right])
                return self._accept(named("RE", *names), names[1], listed, False, True) if all(names) else None
        return None

    def _accept(self, item: dict, label: str, listed: bool, swapped: bool, comma: bool = False) -> dict | None:
        """The item, unless it looks like a sentence's aside: neither its label is known nor does it stand in a list."""
        if not listed and label not in self.schema.labels:
            return None
        if swapped:
            self.found.repairs.add(SWAPPED)
        if comma:
            self.found.repairs.add("comma in a name")
        return item

    def _event(self, group: Group, listed: bool) -> dict | None:
        commas, angle = group.commas, self.structure[group.start] == "<"
        if not group.closed and len(commas) < 2 and not self._is_whole(commas[0] + 1, group.stop):
            return None
        stop = commas[1] if len(commas) > 1 else group.stop
        first, second = self._name(group.start + 1, commas[0]), self._name(commas[0] + 1, stop)
        if not first or not second:
            return None
        pairs = self._pairs(group, stop, angle)
        item, swapped = event_item(
            first, second, pairs, self.schema, angle, either="#" in self.structure[stop : group.stop]
        )
        rest = self.structure[stop + 1 : group.stop].strip("()[]{}<>, ")
        plain = pairs or rest in ("", NOTHING) or item["type"] in self.schema.labels
        return self._accept(item, item["type"], listed and bool(plain), swapped)

    def _pairs(self, group: Group, after: int, angle: bool) -> list[tuple[str, str]]:
        """(text, role) of arguments: groups of two, or text#role (in angle brackets role#text)."""
        pairs = self._grouped_pairs([child for child in group.children if child.start > after])
        if not pairs:
            pairs = self._hashed_pairs(after + 1, group.stop, group.closed, angle)
            pairs = [(text, role) for role, text in pairs] if angle else pairs
        return [(text, role) for text, role in pairs if text and role]

    def _grouped_pairs(self, groups: list[Group]) -> list[tuple[str, str]]:
        pairs = []
        work = groups[::-1]
        while work:
            group = work.pop()
            if any(inner.commas for inner in group.children):
                work.extend(reversed(group.children))
            elif group.commas:
                cut = group.commas[-1]
                if group.closed or self._is_whole(cut + 1, group.stop):
                    pairs.append((self._name(group.start + 1, cut), self._name(cut + 1, group.stop)))
        return pairs

    def _hashed_pairs(self, start: int, stop: int, closed: bool, role_first: bool) -> list[tuple[str, str]]:
        """Pairs of "text#role;text#role", or of "role#text" if ``role_first`` or the first one's role tells so; as
        they are written."""
        pairs = []
        begin = re.compile(r"\s*+([^#:;]*+)[#:]([^#,;]*+)").match(self.structure, start, stop)
        if begin:
            sides = [self.text[slice(*begin.span(side))].strip() in self.schema.roles for side in (1, 2)]
            role_first = sides[0] if sides[0] != sides[1] else role_first
        for first, after in self._hashed_parts(start, stop, role_first):
            part = self.structure[first:after]
            if not closed and (after == stop or '"' in part) and not self._is_whole(first + part.find("#") + 1, after):
                break  # half a name; or a quote that never ends, and what follows is within
            cut = part.find("#") if role_first else part.rfind("#")
            if cut < 0 and begin and any(sides):
                cut = part.find(":")
            if cut >= 0:
                pairs.append((self._name(first, first + cut), self._name(first + cut + 1, after)))
        return pairs

    def _hashed_parts(self, start: int, stop: int, role_first: bool) -> Iterator[tuple[int, int]]:
        """Where each pair stands. A comma ends one where a semicolon should, but names hold commas, too: between two
        pairs the last comma, or the first where roles come last."""
        hashed, comma = False, -1
        for match in re.compile("[#,;]").finditer(self.structure, start, stop):
            place, mark = match.start(), match[0]
            if mark == "," and (role_first or comma < 0) and hashed:
                comma = place
            elif mark == ";" or (mark == "#" and comma >= 0):
                end = place if mark == ";" else comma
                yield start, end
                start, hashed, comma = end + 1, False, -1
            hashed |= mark == "#"
        yield start, stop


def clean(name: str) -> str:
    """A name without white space and quotes around it.

    >>> clean(" 'Paris' "), clean("“神舟”飞船")
    ('Paris', '“神舟”飞船')
    """
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        try:
            return json.loads(name, strict=False).strip()
        except ValueError:
            return name[1:-1].strip()
    for pair in ("''", "“”", "‘’", "``", "＂＂"):
        if len(name) > 1 and name[0] == pair[0] and name[-1] == pair[1] and pair[1] not in name[1:-1]:
            return name[1:-1].strip()
    if name.count('"') == 1:
        return name.strip('"').strip()  # half of a pair
    return name
