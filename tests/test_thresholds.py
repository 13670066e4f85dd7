import json

import pytest

CASES = [
    {
        "id": name,
        "task": "NER",
        "language": "english",
        "schema": ["place"],
        "input": "Paris and Ann",
        "gold": [{"text": "Paris", "type": "place"}],
    }
    for name in ("1", "2")
]
ITEMS = [{"text": "Paris", "type": "place", "score": 0.9}, {"text": "Ann", "type": "place", "score": 0.4}]


@pytest.fixture
def evaluate(run_script, tmp_path):
    def call(outputs, *flags):
        (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, CASES)))
        rows = ({"id": case["id"], "output": output} for case, output in zip(CASES, outputs, strict=True))
        (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files = ["--data", tmp_path / "cases.jsonl", "--predictions", tmp_path / "answers.jsonl"]
        return run_script("finetune/evaluate.py", *files, "--report", tmp_path / "report", *flags)

    return call


def test_items_below_a_threshold_are_dropped_also_one_that_a_report_fitted(evaluate, tmp_path):
    answer = json.dumps(ITEMS)
    (tmp_path / "fitted").mkdir()
    (tmp_path / "fitted/metrics.json").write_text('{"thresholds": {"NER": {"threshold": 0.9, "f1": 1.0}}}')
    for threshold, f1 in (("0.3", 2 / 3), ("0.5", 1.0), (tmp_path / "fitted", 1.0), ("0.95", 0.0)):
        result = evaluate([answer, answer], "--threshold", threshold)
        assert result.returncode == 0, result.stderr
        assert json.loads((tmp_path / "report/metrics.json").read_text())["NER"]["f1"] == pytest.approx(f1)


def test_a_case_without_an_answer_has_nothing_to_drop_and_does_not_keep_a_threshold_from_being_fitted(
    evaluate, tmp_path
):
    result = evaluate([json.dumps(ITEMS), None], "--threshold", "0.5")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert (metrics["NER"]["predicted"], metrics["unparsable"]) == (1, 0.5)
    assert metrics["thresholds"]["NER"]["threshold"] == 0.9


@pytest.mark.parametrize(
    ("threshold", "message"),
    [("0.5", "has no scores"), ("2", "must be from 0 to 1"), ("nowhere", "neither a number nor a report")],
)
def test_a_threshold_that_can_not_be_used_is_told(evaluate, threshold, message):
    result = evaluate(["(Paris,place)"] * 2, "--threshold", threshold)
    assert result.returncode == 1
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
