"""Events of trigger words and facts: which words, which facts, which roles, and the tables that say so."""

import json
from pathlib import Path

import pytest

from knowlm.extraction.cases import check_case, row_of
from knowlm.extraction.forms import forms_of
from knowlm.extraction.parsing import parse
from knowlm.supervision.documents import Unread, document_of
from knowlm.supervision.events import add_events, find_triggers
from knowlm.supervision.gold import case_of, gold_events
from knowlm.supervision.graph import KnowledgeGraph
from knowlm.supervision.graph_builder import build_database, schema_for_graph
from knowlm.supervision.graph_schema import TABLES, default_schema, read_schema
from knowlm.supervision.names import NameFinder
from knowlm.supervision.pieces import find_pieces
from knowlm.supervision.report import Figures, as_markdown
from knowlm.supervision.workers import Supervisor

RELATIONS = [
    "id\tname_en\tname_zh\thead_types\ttail_types",
    "birthplace\tplace of birth\t出生地\tperson\tplace",
    "birth_year\tyear of birth\t出生年份\tperson\tyear",
    "deathplace\tplace of death\t逝世地\tperson\tplace",
    "death_year\tyear of death\t去世年份\tperson\tyear",
    "spouse\tspouse\t配偶\tperson\tperson",
    "discoverer\tdiscovered by\t发现者\tcelestial\tperson",
    "founder\tfounded by\t创办者\torganisation\tperson",
    "year_founded\tyear founded\t成立年份\torganisation\tyear",
    "educated_at\teducated at\t毕业院校\tperson\torganisation",
]
ENTITIES = [
    "id\ttype\tname_en\taliases_en\tname_zh\taliases_zh",
    "einstein\tperson\tAlbert Einstein\tEinstein\t爱因斯坦\t",
    "mileva\tperson\tMileva Marić\tMileva\t米列娃\t",
    "elsa\tperson\tElsa Löwenthal\tElsa\t爱尔莎\t",
    "born\tperson\tMax Born\t\t玻恩\t",
    "hall\tperson\tAsaph Hall\t\t霍尔\t",
    "cai\tperson\tCai Yuanpei\t\t蔡元培\t",
    "ulm\tplace\tUlm\t\t乌尔姆\t",
    "princeton\tplace\tPrinceton\t\t普林斯顿\t",
    "titel\tplace\tTitel\t\t蒂泰尔\t",
    "zurich\tplace\tZurich\t\t苏黎世\t",
    "eth\torganisation\tETH\t\t联邦理工\t",
    "academy\torganisation\tAcademia Sinica\t\t中央研究院\t",
    "phobos\tcelestial\tPhobos\t\t火卫一\t",
    "deimos\tcelestial\tDeimos\t\t火卫二\t",
]
TRIPLES = [
    "head\trelation\ttail",
    "einstein\tbirthplace\tulm",
    "einstein\tbirth_year\t1879",
    "einstein\tdeathplace\tprinceton",
    "einstein\tdeath_year\t1955",
    "einstein\tspouse\tmileva",
    "mileva\tspouse\teinstein",
    "einstein\tspouse\telsa",
    "einstein\teducated_at\teth",
    "mileva\tbirthplace\ttitel",
    "mileva\tbirth_year\t1875",
    "mileva\tdeathplace\tzurich",
    "phobos\tdiscoverer\thall",
    "deimos\tdiscoverer\thall",
    "academy\tfounder\tcai",
    "academy\tyear_founded\t1928",
]
EVENTS = ["id\tname_en\tname_zh\ttriggers_en\ttriggers_zh", "birth\tbirth\t出生\tborn\t生于"]
ROLES = [
    "event\tname_en\tname_zh\tsources",
    "birth\tperson\t人物\tbirthplace.head",
    "birth\tplace\t地点\tbirthplace.tail",
]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "graph"
    folder.mkdir()
    write(folder, "relations.tsv", RELATIONS)
    write(folder, "entities.tsv", ENTITIES)
    write(folder, "triples.tsv", TRIPLES)
    return folder


def write(folder, name, lines):
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def graph(folder):
    database = folder.with_name("graph.db")
    build_database([folder], None, database)
    return KnowledgeGraph(database, schema_for_graph([folder], None))


@pytest.fixture
def piece_of(graph):
    def find(text, language="english"):
        finder = NameFinder(graph.connection, language)
        [piece] = find_pieces(document_of(text, language), graph, finder, 500)
        add_events(piece, graph.schema, graph.type)
        return piece

    return find


@pytest.fixture
def told(piece_of, graph):
    """(type, trigger, {(role, text)}) of the events of a text."""

    def tell(text, language="english"):
        return [
            (item["type"], item["trigger"], {(named["role"], named["text"]) for named in item["arguments"]})
            for item in gold_events(piece_of(text, language), graph.schema)
        ]

    return tell


def test_two_events_of_a_sentence_have_each_its_own_place_and_time(told):
    english = "Albert Einstein was born in Ulm in 1879 and died in Princeton in April 1955."
    assert told(english) == [
        ("birth", "born", {("person", "Albert Einstein"), ("place", "Ulm"), ("time", "1879")}),
        ("death", "died", {("person", "Albert Einstein"), ("place", "Princeton"), ("time", "April 1955")}),
    ]
    assert told("爱因斯坦１８７９年生於烏爾姆，1955年4月18日在普林斯顿去世。", "chinese") == [
        ("出生", "生於", {("人物", "爱因斯坦"), ("地点", "烏爾姆"), ("时间", "１８７９年")}),
        ("去世", "去世", {("人物", "爱因斯坦"), ("地点", "普林斯顿"), ("时间", "1955年4月18日")}),
    ]


def test_no_trigger_no_event(told):
    assert told("Einstein came from Ulm (1879).") == told("爱因斯坦是乌尔姆人（1879年）。", "chinese") == []


def test_a_fact_of_another_sentence_is_no_argument(told):
    assert told("Einstein was born in 1879. Ulm is proud of him.") == [
        ("birth", "born", {("person", "Einstein"), ("time", "1879")})
    ]
    assert told("Einstein was born late; Ulm is old.") == []
    assert told("爱因斯坦出生了。乌尔姆很老。", "chinese") == []


def test_each_fact_goes_to_the_nearest_trigger_of_its_type(told):
    assert told("Einstein, born in 1879, knew Mileva, who was born in Titel.") == [
        ("birth", "born", {("person", "Einstein"), ("time", "1879")}),
        ("birth", "born", {("person", "Mileva"), ("place", "Titel")}),
    ]


def test_a_place_beyond_a_trigger_that_may_claim_it_is_no_argument(told):
    assert told("Einstein died in Zurich, where Mileva was born.") == []  # where Mileva died


def test_a_trigger_belongs_to_the_nearest_key_entity_and_those_listed_with_it(told):
    moons = {("discoverer", "Asaph Hall"), ("thing discovered", "Phobos"), ("thing discovered", "Deimos")}
    assert told("Asaph Hall discovered Phobos and Deimos.") == [("discovery", "discovered", moons)]
    assert told("Einstein was born in 1879 and loved Mileva, who was from Titel.") == [
        ("birth", "born", {("person", "Einstein"), ("time", "1879")})
    ]


def test_a_person_stands_before_what_happens_to_him(told):
    assert told("She was born in 1875 in Titel like Mileva.") == []
    assert told("Born in Titel, Mileva left early.") == [("birth", "Born", {("person", "Mileva"), ("place", "Titel")})]
    assert told("生于蒂泰尔的米列娃走了。", "chinese") == [("出生", "生于", {("人物", "米列娃"), ("地点", "蒂泰尔")})]


def test_a_marriage_has_all_its_spouses_once(told):
    wed = {("spouse", "Einstein"), ("spouse", "Mileva"), ("spouse", "Elsa")}
    assert told("Einstein married Mileva and then Elsa.") == [("marriage", "married", wed)]


def test_triggers_are_whole_words_outside_of_names(piece_of, graph):
    def triggers(text, language="english"):
        piece = piece_of(text, language)
        return [text[trigger.start : trigger.stop] for trigger in find_triggers(piece, graph.schema)]

    assert triggers("Airborne and stillborn, Max Born was re-born; Born Free was BORN.") == []
    assert triggers("Born here. He passed\n away.") == ["Born", "passed\n away"]
    assert triggers("The Black Death came") == triggers("His interest died out") == []
    assert triggers("战役发生于1815年，他出生于乌尔姆，发现者不详，后来成立了。", "chinese") == ["出生", "成立"]


def test_what_a_trigger_without_a_fact_may_tell_is_not_asked_in_vain(piece_of, graph):
    piece = piece_of("Einstein was born in Ulm; somebody else died; Asaph Hall studied.")
    assert piece.silent_triggers == {"death": 1, "education": 1}
    for seed in range(5):
        case = case_of("EE", piece, graph.schema, graph.type, seed)
        check_case(case)
        asked = {entry["type"] for entry in case["schema"]}
        assert "birth" in asked and len(asked) == 4 and not asked & {"death", "education"}


def test_confusable_event_types_are_asked_first(piece_of, graph):
    piece = piece_of("Einstein was born in Ulm.")
    for seed in range(10):
        [death] = [e for e in case_of("EE", piece, graph.schema, graph.type, seed)["schema"] if e["type"] == "death"]
        assert death["roles"] == ["person", "place", "time"]
    assert graph.schema.are_confusable("birth", "death") and not graph.schema.are_confusable("birth", "discovery")


def test_only_types_whose_relations_are_asked_exist(graph):
    assert "discovery" in graph.schema.asked_events and "award" not in graph.schema.asked_events
    graph.schema.ask_only(relations=["birth_year"])
    assert [role.id for role in graph.schema.asked_events["birth"].roles] == ["person", "time"]
    assert list(graph.schema.asked_events) == ["birth"]


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_events_come_back_from_every_form(piece_of, graph, language):
    text = {
        "english": "Einstein was born in Ulm in 1879 and died in 1955.",
        "chinese": "爱因斯坦1879年生于乌尔姆，1955年去世。",
    }[language]
    case = case_of("EE", piece_of(text, language), graph.schema, graph.type, seed=0)
    labels = [entry["type"] for entry in case["schema"]]
    assert len(case["gold"]) == 2
    for form in forms_of("EE"):
        row = row_of(case, [form], 3, seed=0)
        assert parse("EE", row["output"], labels).items == case["gold"], form


def test_evidence_and_report_tell_where_an_event_stands(folder, graph):
    text = "Einstein was born in Ulm in 1879. Others died."
    finders = {"english": NameFinder(graph.connection, "english")}
    supervisor = Supervisor(folder.with_name("graph.db"), graph.schema, finders, ["EE"], 100, 0)
    [found] = supervisor.find([Unread(text, Path("texts.txt"), 1, False, "english", ())])
    [event] = found.evidence["events"]
    assert text[slice(*event["trigger_span"])] == event["trigger"] == "born"
    assert all(text[slice(*named["span"])] == named["text"] for named in event["arguments"])
    assert event["facts"] == [["einstein", "birthplace", "ulm"], ["einstein", "birth_year", "1879"]]
    figures = Figures(graph, finders)
    figures.add(found)
    report = figures.report(2, [])
    assert report["events"]["birth"] == {"events": 1, "arguments": 3, "triggers_without_fact": 0}
    assert report["events"]["death"] == {"events": 0, "arguments": 0, "triggers_without_fact": 1}
    assert "| birth | 1 | 3 | 0 |" in as_markdown(report)
    assert "**born** · person: Einstein · place: Ulm · time: 1879" in as_markdown(report)
    json.dumps(report)


@pytest.mark.parametrize(
    ("events", "roles", "message"),
    [
        (["birth\tbirth\t出生\tborn\t"], [], "events.tsv, line 3: birth is taken already"),
        (["x\tx\t某\t\t"], [], "events.tsv, line 3: x has neither triggers_en nor triggers_zh"),
        (["x\tx\t\tx\tx"], [], "events.tsv, line 3: has no name_zh"),
        (["x\tx\t某\tx\t"], [], "events.tsv, line 3: x has no role in event_roles.tsv"),
        ([], ["x\tx\tx\tbirthplace.head"], "event_roles.tsv, line 4: x is not in events.tsv"),
        ([], ["birth\ttime\t时间\tborn_in.tail"], "event_roles.tsv, line 4: born_in is not in relations.tsv"),
        ([], ["birth\ttime\t时间\tbirthplace"], "event_roles.tsv, line 4: birthplace is no source"),
        ([], ["birth\ttime\t时间\tbirth_year.tail"], "events.tsv, line 2: birth_year needs a role of birth"),
        ([], ["birth\ttime\t时间\t"], "event_roles.tsv, line 4: has no sources"),
    ],
)
def test_mistakes_in_the_tables_are_named_by_line(folder, events, roles, message):
    write(folder, "events.tsv", EVENTS + events)
    write(folder, "event_roles.tsv", ROLES + roles)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        read_schema(folder)


def test_a_folder_s_own_event_types_replace_the_toolkit_s(folder):
    assert {"birth", "death"} <= read_schema(folder).asked_events.keys()
    write(folder, "events.tsv", EVENTS)
    write(folder, "event_roles.tsv", ROLES)
    assert list(read_schema(folder).asked_events) == ["birth"]
    (folder / "event_roles.tsv").unlink()
    with pytest.raises(ValueError, match=r"event_roles\.tsv"):
        read_schema(folder)


@pytest.mark.parametrize("schema", [default_schema, lambda: read_schema("finetune/data/encyclopedia")])
def test_the_toolkit_s_event_types_serve_both_sets_of_relations(schema, monkeypatch):
    monkeypatch.chdir(TABLES.parents[2])
    asked = schema().asked_events
    assert len(asked) >= 15
    assert [role.id for role in asked["birth"].roles] == ["person", "place", "time"]
