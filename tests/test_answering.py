import pytest

from knowlm.extraction.answering import answer_all, reordered

QUESTIONS = [{"instruction": str(number)} for number in range(5)]


@pytest.fixture
def stopped(tmp_path):
    """The journal of a run that was stopped after two of five answers, amid the third line."""

    def two_answers(questions):
        yield 3, "three\nlines\u2028"
        yield 0, "zero"
        raise KeyboardInterrupt

    journal = tmp_path / "report" / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_all(QUESTIONS, lambda: two_answers, journal, {"model": "a"})
    with journal.open("a") as lines:
        lines.write('[1, "on')
    return journal


def echo(asked):
    def answer(questions):
        asked.extend(question["instruction"] for question in questions)
        return ((number, question["instruction"]) for number, question in enumerate(questions))

    return lambda: answer


def test_answers_of_a_stopped_run_are_kept(stopped):
    asked = []
    answers = answer_all(QUESTIONS, echo(asked), stopped, {"model": "a"})
    assert answers == ["zero", "1", "2", "three\nlines\u2028", "4"]
    assert asked == ["1", "2", "4"]
    assert answer_all(QUESTIONS, echo(asked), stopped, {"model": "a"}) == answers and len(asked) == 3


def test_answers_of_another_job_are_not_taken(stopped):
    asked = []
    assert answer_all(QUESTIONS, echo(asked), stopped, {"model": "b"}) == ["0", "1", "2", "3", "4"]
    assert len(asked) == 5


def test_another_order_holds_the_same_labels_and_roles():
    schema = [{"type": str(number), "roles": list("abcdefgh")} for number in range(8)]
    orders = [reordered({"id": "1", "schema": schema}, seed)["schema"] for seed in (1, 2)]
    assert schema != orders[0] != orders[1] and orders[0] == reordered({"id": "1", "schema": schema}, 1)["schema"]
    for order in orders:
        assert sorted(entry["type"] for entry in order) == [entry["type"] for entry in schema]
        assert all(sorted(entry["roles"]) == list("abcdefgh") for entry in order)
