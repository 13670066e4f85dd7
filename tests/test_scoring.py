import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.extraction.forms import write_answer
from knowlm.extraction.scoring import difference, score, spread

PARIS = {"head": "Paris", "relation": "country", "tail": "France"}
LYON = {"head": "Lyon", "relation": "country", "tail": "France"}


def case(task, gold, **more):
    return {"id": "1", "task": task, "language": "english", "schema": ["country"], "input": "", "gold": gold, **more}


def test_scores_are_strict_and_micro():
    cases = [case("RE", [PARIS]), case("RE", [PARIS, LYON])]
    metrics = score(cases, ["(Paris,country,France)", "(Paris,country,france)(Lyon,country,France)"])
    assert (metrics["RE"]["right"], metrics["RE"]["predicted"], metrics["RE"]["gold"]) == (2, 3, 3)
    assert metrics["RE"]["f1"] == pytest.approx(2 / 3)
    assert metrics["RE"]["labels"]["country"]["gold"] == 3
    low, high = metrics["RE"]["interval"]
    assert low <= metrics["RE"]["f1"] <= high


def test_an_unparsable_answer_is_a_miss_and_is_counted():
    metrics = score([case("RE", [PARIS])], ["I do not know"])
    assert metrics["RE"]["recall"] == 0 and metrics["unparsable"] == 1


def test_an_answer_of_nothing_is_right_where_there_is_nothing():
    metrics = score([case("RE", []), case("RE", [PARIS])], ["NAN", "(Paris,country,France)"])
    assert (metrics["RE"]["f1"], metrics["unparsable"]) == (1, 0)


def test_an_item_given_twice_is_wrong_once_unless_sets_are_compared():
    twice = "(Paris,country,France)\n(Paris,country,France)"
    assert score([case("RE", [PARIS])], [twice])["RE"]["precision"] == 0.5
    assert score([case("RE", [PARIS, PARIS])], [twice])["RE"]["f1"] == 1
    assert score([case("RE", [PARIS, PARIS])], [twice], counting="set")["RE"]["gold"] == 1


EVENT = {
    "type": "trip",
    "trigger": "went",
    "arguments": [{"text": "John", "role": "who"}, {"text": "LA", "role": "where"}],
}


def test_events_are_scored_by_trigger_and_argument():
    cases = [case("EE", [EVENT], schema=[{"type": "trip", "roles": ["who", "where"]}])]
    metrics = score(cases, ["(went,trip,[(John,who)])"])
    assert metrics["EE"]["trigger"]["f1"] == 1
    assert metrics["EE"]["argument"]["recall"] == 0.5


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        ("(Ann,place)", ["missed", "wrong type"]),
        ("(Ann Lee of Rome,person)", ["missed", "wrong span"]),
        ("(Bob,person)", ["invented", "missed", "missed"]),
        ("(met,person)", ["missed", "missed", "not in gold"]),
        ("(Rome,person)", ["missed", "wrong type"]),
    ],
)
def test_every_error_has_a_kind_and_an_example(answer, kinds):
    gold = [{"text": "Ann", "type": "person"}, {"text": "Rome", "type": "place"}]
    metrics = score([case("NER", gold, schema=["person", "place"], input="Ann Lee of Rome met us.")], [answer])
    errors = metrics["NER"]["errors"]
    assert sorted(kind for kind, found in errors.items() for _ in range(found["count"])) == kinds, errors
    assert all(len(found["examples"]) == 1 for found in errors.values())


def test_scores_are_told_by_source_and_language():
    cases = [case("RE", [PARIS], source="news"), case("RE", [PARIS], source="books", language="chinese")]
    metrics = score(cases, ["(Paris,country,France)", "NAN"])["RE"]
    assert {name: f["f1"] for name, f in metrics["by_source"].items()} == {"news": 1, "books": 0}
    assert {name: f["f1"] for name, f in metrics["by_language"].items()} == {"english": 1, "chinese": 0}


def test_other_orders_of_the_schema_give_mean_and_worst_and_no_best():
    reports = [score([case("RE", [PARIS])], [answer]) for answer in ("(Paris,country,France)", "NAN")]
    assert spread(reports)["RE"] == {"f1": [1, 0], "mean": 0.5, "deviation": 0.5, "worst": 0}


def test_the_difference_of_two_answers_has_an_interval_of_its_own():
    cases, right, wrong = [case("RE", [PARIS])] * 20, "(Paris,country,France)", "NAN"
    better = difference(cases, [right] * 20, [right] * 5 + [wrong] * 15)["RE"]
    assert better["difference"] == pytest.approx(1 - 2 * 5 / 25) and better["interval"][0] > 0
    same = difference(cases, [right] * 10 + [wrong] * 10, [right] * 10 + [wrong] * 10)["RE"]
    assert same == {"difference": 0, "interval": [0, 0]}


names = st.sampled_from(["Paris", "Lyon", "Rome"])
entities = st.lists(
    st.builds(lambda text, kind: {"text": text, "type": kind}, names, st.sampled_from("ab")), max_size=5
)


@given(st.lists(st.tuples(entities, entities), min_size=1, max_size=4))
def test_scores_agree_with_counting_by_hand(pairs):
    """The plainest reading of "multisets": cross a gold item out for every prediction that equals one."""
    right = 0
    for gold, predicted in pairs:
        left = list(gold)
        for item in predicted:
            if item in left:
                left.remove(item)
                right += 1
    cases = [case("NER", gold, schema=["a", "b"]) for gold, _ in pairs]
    metrics = score(cases, [write_answer("NER", predicted) for _, predicted in pairs], resamples=1)["NER"]
    total = sum(len(gold) + len(predicted) for gold, predicted in pairs)
    assert metrics["right"] == right
    assert metrics["f1"] == (pytest.approx(2 * right / total) if total else 0)
    assert sum(f["gold"] for f in metrics["labels"].values()) == metrics["gold"]
