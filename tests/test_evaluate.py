import json

import pytest

CASES = [
    {
        "id": "1",
        "task": "RE",
        "language": "english",
        "schema": ["country"],
        "input": "Paris, France",
        "gold": [{"head": "Paris", "relation": "country", "tail": "France"}],
    },
    {
        "id": "2",
        "task": "NER",
        "language": "chinese",
        "schema": ["地点"],
        "input": "我在杭州。",
        "gold": [{"text": "杭州", "type": "地点"}],
    },
]

NONE_KEPT = ["--threshold", "1"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(case, ensure_ascii=False) + "\n" for case in CASES), encoding="utf-8")
    return path


def test_a_file_of_answers_is_scored(run_script, data, tmp_path):
    answers = [{"id": "2", "output": "(杭州,地点)"}, {"id": "1", "output": "(Paris,country,Spain)"}]
    (tmp_path / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    result = run_script(
        "finetune/evaluate.py",
        "--data",
        data,
        "--predictions",
        tmp_path / "answers.json",
        "--report",
        tmp_path / "report",
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert (metrics["NER"]["f1"], metrics["RE"]["f1"], metrics["unparsable"]) == (1, 0, 0)
    assert "NER F1 1.000" in result.stdout and "| RE | 1 | 0.0% | 0.000" in (tmp_path / "report/report.md").read_text()


def test_answers_to_no_case_are_left_out_and_other_words_for_a_language_are_known(run_script, data, tmp_path):
    data.write_text(json.dumps(CASES[0] | {"language": "en", "task": "re"}))
    answers = [{"id": "1", "output": "(Paris,country,France)"}, {"id": "2", "output": "(杭州,地点)"}]
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    flags = ["--data", data, "--predictions", tmp_path / "answers.json", "--report", tmp_path / "report"]
    result = run_script("finetune/evaluate.py", *flags)
    assert "RE F1 1.000; 0.0% of 1 answer unparsable" in result.stdout
    assert "1 answer to no case left out" in result.stderr


def test_nesting_without_end_is_told_with_its_line(run_script, data, tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "output": ' + "[" * 100_000)
    flags = ["--data", data, "--predictions", tmp_path / "answers.jsonl", "--report", tmp_path / "report"]
    result = run_script("finetune/evaluate.py", *flags)
    assert result.returncode == 1
    assert "answers.jsonl, line 1: not valid JSON" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_missing_answer_counts_as_unparsable(run_script, data, tmp_path):
    (tmp_path / "answers.jsonl").write_text(
        '{"id": "1", "output": "(Paris,country,France)"}\n{"id": "2", "output": null}\n'
    )
    run_script(
        "finetune/evaluate.py", "--data", data, "--predictions", tmp_path / "answers.jsonl", "--report", tmp_path / "r"
    )
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())
    assert (metrics["RE"]["f1"], metrics["NER"]["f1"], metrics["unparsable"]) == (1, 0, 0.5)


@pytest.mark.slow
def test_a_model_is_scored(run_warm, data, tiny_llama, tmp_path):
    result = run_warm(
        "finetune/evaluate.py",
        "--data",
        data,
        "--base_model",
        tiny_llama,
        "--max_new_tokens",
        5,
        "--report",
        tmp_path / "report",
    )
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "report/predictions.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_other_orders_of_the_schema_are_asked_too(run_warm, data, tiny_llama, tmp_path):
    flags = ["--base_model", tiny_llama, "--max_new_tokens", 5, "--schema_orders", 2]
    result = run_warm("finetune/evaluate.py", "--data", data, *flags, "--report", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    orders = json.loads((tmp_path / "report/metrics.json").read_text())["schema_orders"]
    assert {name: len(figures["f1"]) for name, figures in orders.items()} == {"NER": 2, "RE": 2}
    assert not list((tmp_path / "report").glob("answers-*"))


@pytest.fixture
def talkative_llama(tiny_llama, tmp_path):
    """Random weights that find something: what made "NAN" likelier than "(" is turned round."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(tiny_llama) for kind in (AutoModelForCausalLM, AutoTokenizer))
    pair = [tokenizer.convert_tokens_to_ids(token) for token in "N("]
    with torch.no_grad():
        model.lm_head.weight[pair] = model.lm_head.weight[pair[::-1]]
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "talkative")
    return tmp_path / "talkative"


@pytest.mark.slow
def test_grounded_answers_parse_and_their_threshold_is_taken_to_other_cases(run_warm, data, talkative_llama, tmp_path):
    command = ["finetune/evaluate.py", "--data", data, "--base_model", talkative_llama, "--grounded"]
    command += ["--max_new_tokens", 30]
    for name, flags in (("fitted", ["--schema_orders", 2]), ("taken", ["--threshold", "fitted"]), ("none", NONE_KEPT)):
        result = run_warm(*command, *flags, "--report", tmp_path / name)
        assert result.returncode == 0, result.stderr
    fitted, taken, none = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("fitted", "taken", "none"))
    assert fitted["thresholds"].keys() == {"NER", "RE"} and fitted["unparsable"] == 0
    assert fitted["NER"]["predicted"] + fitted["RE"]["predicted"] > 0
    assert all(figures["deviation"] == 0 for figures in fitted["schema_orders"].values())
    for case, line in zip(CASES, (tmp_path / "fitted/predictions.jsonl").read_text().splitlines(), strict=True):
        for item in json.loads(json.loads(line)["output"]):
            assert 0 < item["score"] <= 1
            assert all(item[name] in case["input"] for name in ("text", "head", "tail") if name in item)
    for task in ("NER", "RE"):
        assert taken[task]["f1"] == fitted["thresholds"][task]["f1"]
        assert none[task]["predicted"] == 0


@pytest.mark.slow
def test_filtered_answers_parse_and_have_no_scores(run_warm, data, talkative_llama, tmp_path):
    """What is filtered from them is told in test_locating.py."""
    command = ["finetune/evaluate.py", "--data", data, "--base_model", talkative_llama, "--max_new_tokens", 30]
    for name, flags in (("free", []), ("filtered", ["--filtered"])):
        result = run_warm(*command, *flags, "--report", tmp_path / name)
        assert result.returncode == 0, result.stderr
    free, filtered = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("free", "filtered"))
    assert free["unparsable"] > 0 and filtered["unparsable"] == 0
    assert "thresholds" not in filtered


def test_an_answer_that_ends_in_half_a_character_is_scored_and_kept(run_script, data, tmp_path):
    answers = [{"id": case["id"], "output": "(Rome,place)\ud83d"} for case in CASES]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    flags = ["--data", data, "--predictions", tmp_path / "answers.jsonl", "--report", tmp_path / "report"]
    result = run_script("finetune/evaluate.py", *flags)
    assert result.returncode == 0, result.stderr
    kept = (tmp_path / "report" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in kept] == answers


def test_lines_of_an_extraction_are_scored_each_item_once(run_script, data, tmp_path):
    ends = {"head": {"text": "Paris", "start": 0, "end": 5}, "tail": {"text": "France", "start": 7, "end": 13}}
    rows = [
        {"id": "1", "relations": [{**ends, "relation": "country", "score": 0.9}] * 2},
        {"id": 2, "entities": [{"text": "杭州", "type": "地点", "start": 2, "end": 4, "score": 0.2}]},
    ]
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["finetune/evaluate.py", "--data", data, "--predictions", tmp_path / "found.jsonl", "--report"]
    result = run_script(*command, tmp_path / "all")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "all/metrics.json").read_text())
    assert (metrics["NER"]["f1"], metrics["RE"]["f1"], metrics["RE"]["predicted"]) == (1, 1, 1)
    result = run_script(*command, tmp_path / "some", "--threshold", "0.5", "--compare", tmp_path / "all")
    assert "NER F1 0.000; RE F1 1.000;" in result.stdout and "NER -1.000 (-1.000 to -1.000)" in result.stdout


def test_an_extraction_of_another_task_is_told(run_script, data, tmp_path):
    (tmp_path / "found.jsonl").write_text('{"id": 1, "entities": []}')
    flags = ["--data", data, "--predictions", tmp_path / "found.jsonl", "--report", tmp_path / "report"]
    result = run_script("finetune/evaluate.py", *flags)
    assert result.returncode == 1
    assert "record 1: holds no relations" in result.stderr and len(result.stderr.splitlines()) == 1


def test_two_answers_to_a_case_are_refused(run_script, data, tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "output": "NAN"}\n' * 2)
    result = run_script(
        "finetune/evaluate.py", "--data", data, "--predictions", tmp_path / "answers.jsonl", "--report", tmp_path / "r"
    )
    assert result.returncode == 1 and "a second answer to '1'" in result.stderr
    assert not (tmp_path / "r").exists()


def test_the_report_has_pictures_and_examples_of_errors(run_script, data, tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": 1, "output": [["Paris", "country", "Spain"]]}\n')
    result = run_script(
        "finetune/evaluate.py", "--data", data, "--predictions", tmp_path / "answers.jsonl", "--report", tmp_path / "r"
    )
    assert "1 of 2 cases without an answer" in result.stderr
    report = (tmp_path / "r/report.md").read_text()
    assert "| missed | 1 |" in report and "地点: 杭州" in report
    for picture in ("scores.png", "errors.png"):
        assert (tmp_path / "r" / picture).read_bytes().startswith(b"\x89PNG") and f"]({picture})" in report


def test_the_report_shows_answers_that_can_not_be_parsed_and_errors_of_several_cases(run_script, data, tmp_path):
    cases = [CASES[1] | {"id": name, "schema": ["<地点|`>"], "gold": []} for name in "123"]
    data.write_text("\n".join(map(json.dumps, cases)))
    answers = ["(甲,<地点|`>)(乙,<地点|`>)", "(丙,<地点|`>)", "I `do`\x1b[31m not <know>"]
    rows = ({"id": case["id"], "output": answer} for case, answer in zip(cases, answers, strict=True))
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--data", data, "--predictions", tmp_path / "answers.jsonl", "--report", tmp_path / "r"]
    assert run_script("finetune/evaluate.py", *flags).returncode == 0
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())
    assert [error["id"] for error in metrics["NER"]["errors"]["invented"]["examples"]] == ["1", "2"]
    report = (tmp_path / "r/report.md").read_text()
    assert "| NER | 3 | 33.3% |" in report and r"| &lt;地点\|\`> | 0.000 |" in report
    assert "- 3: `` I `do` [31m not <know> ``\n" in report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "QA"}, "record 1: task 'QA' is none of NER, RE, EE"),
        ({"task": "EE", "schema": [{"type": "trip", "roles": "who"}], "gold": []}, "record 1: gold or schema"),
        ({"gold": [{"head": "x"}]}, "record 1: gold or schema"),
        ({"schema": None}, "record 1: gold or schema"),
        ({"input": "half \ud83d"}, "record 1: holds half a character"),
    ],
)
def test_a_bad_case_is_named(run_script, data, tmp_path, change, message):
    data.write_text(json.dumps(CASES[0] | change))
    result = run_script("finetune/evaluate.py", "--data", data, "--predictions", data, "--report", tmp_path / "report")
    assert result.returncode == 1
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_case_that_no_grammar_can_be_made_of_is_named_before_a_model_loads(run_script, data, tmp_path):
    data.write_text(json.dumps(CASES[0]) + "\n" + json.dumps(CASES[1] | {"schema": [], "gold": []}))
    flags = ["--data", data, "--base_model", "nowhere", "--grounded", "--report", tmp_path / "report"]
    result = run_script("finetune/evaluate.py", *flags)
    assert result.returncode == 1
    assert "case 2: schema: for NER a list like" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_a_threshold_of_no_report_is_told(run_script, data, tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    flags = ["--data", data, "--base_model", "nowhere", "--grounded", "--threshold", tmp_path / "list.json"]
    result = run_script("finetune/evaluate.py", *flags, "--report", tmp_path / "report")
    assert result.returncode == 1
    assert "list.json: has no threshold for NER" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_misspelled_file_is_answered_with_the_nearest(run_script, data, tmp_path):
    result = run_script(
        "finetune/evaluate.py", "--data", tmp_path / "case.jsonl", "--predictions", data, "--report", "r"
    )
    assert result.returncode == 1
    assert f"did you mean {data}?" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--server", "127.0.0.1:8090"], "an address such as http://127.0.0.1:8090 is needed"),
        (["--predictions", "x", "--load_8bit"], "go with --base_model"),
        (["--predictions", "x", "--batch_size", "0"], "must be at least 1"),
        (["--server", "http://127.0.0.1:9", "--labels_at_once", "8"], "--labels_at_once goes with --grounded"),
        (["--server", "http://127.0.0.1:9", "--filtered"], "--filtered asks a --base_model"),
        (["--base_model", "x", "--filtered", "--grounded"], "--grounded and --form don't go with it"),
        (["--predictions", "x", "--schema_orders", "2"], "answers in a file have one order"),
    ],
)
def test_a_wrong_command_stops_in_one_line(run_script, data, flags, message):
    result = run_script("finetune/evaluate.py", "--data", data, "--report", "report", *flags)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_server_that_is_not_there_is_told(run_script, data, tmp_path):
    result = run_script(
        "finetune/evaluate.py", "--data", data, "--server", "http://127.0.0.1:9", "--report", tmp_path / "r"
    )
    assert result.returncode == 1
    assert "can't be reached" in result.stderr and "launch_vllm.py" in result.stderr
