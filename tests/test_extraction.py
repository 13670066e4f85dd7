import pytest

from knowlm.extraction.scoring import score

PARIS = {"head": "Paris", "relation": "country", "tail": "France"}


def case(task, gold, **more):
    return {"id": "1", "task": task, "language": "english", "schema": ["country"], "input": "", "gold": gold, **more}


def test_scores_are_strict_and_micro():
    lyon = {"head": "Lyon", "relation": "country", "tail": "France"}
    cases = [case("RE", [PARIS]), case("RE", [PARIS, lyon])]
    metrics = score(cases, ["(Paris,country,France)", "(Paris,country,france)(Lyon,country,France)"])
    assert (metrics["RE"]["right"], metrics["RE"]["predicted"], metrics["RE"]["gold"]) == (2, 3, 3)
    assert metrics["RE"]["f1"] == pytest.approx(2 / 3)
    assert metrics["RE"]["labels"]["country"]["gold"] == 3
    low, high = metrics["RE"]["interval"]
    assert low <= metrics["RE"]["f1"] <= high


def test_an_unparsable_answer_is_a_miss_and_is_counted():
    metrics = score([case("RE", [PARIS])], ["I do not know"])
    assert metrics["RE"]["recall"] == 0 and metrics["unparsable"] == 1


def test_events_are_scored_by_trigger_and_argument():
    event = {
        "type": "trip",
        "trigger": "went",
        "arguments": [{"text": "John", "role": "who"}, {"text": "LA", "role": "where"}],
    }
    cases = [case("EE", [event], schema=[{"type": "trip", "roles": ["who", "where"]}])]
    metrics = score(cases, ["(went,trip,[(John,who)])"])
    assert metrics["EE"]["trigger"]["f1"] == 1
    assert metrics["EE"]["argument"]["recall"] == 0.5
