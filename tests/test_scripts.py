"""What every script has in common."""

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # every test starts scripts
REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ("pretrain", "finetune", "examples", "inference", "tools")
    for path in (REPOSITORY / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
FIRE_COMMANDS = {"tools/weight_diff.py": ["recover"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_works_from_any_folder_and_describes_every_flag(run_script, script):
    result = run_script(script, "--help", cwd="/")
    assert result.returncode == 0, result.stderr
    docstring = (REPOSITORY / script).read_text().split('"""')[1]
    assert docstring.split("\n")[0].rstrip(".") in result.stdout + result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_stops_with_one_line_and_code_2(run_script, script):
    result = run_script(script, *FIRE_COMMANDS.get(script, []), "--no_such_flag", "1")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith(Path(script).name)
    assert "no_such_flag" in result.stderr or "required" in result.stderr


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["examples/ie_prompt.py", "--task", "NER", "--schema", " ,"], 1, "names no label"),
        (["examples/ie_prompt.py", "--task", "EE", "--schema", "trip:/"], 1, "an event type needs its roles"),
        (
            ["finetune/kg2instructions.py", "--knowledge=x", "--english=x", "--output_dir=x", "--max_train=-5"],
            2,
            "--max_train and --max_heldout 1 or more",
        ),
        (
            ["pretrain/preprocess.py", "--mode=write", "--file_path=x", "--save_prefix=x", "--tokenizer_path=x"],
            1,
            "x: no such file",
        ),
    ],
)
def test_a_senseless_argument_is_told_in_one_line(run_script, command, code, message):
    result = run_script(*command)
    assert result.returncode == code
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["pretrain/run_train.sh", "finetune/lora/run_lora.sh", "inference/vllm.sh"])
def test_a_shell_script_without_arguments_tells_its_usage(script):
    result = subprocess.run(["bash", REPOSITORY / script], cwd="/", capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: bash ") and len(result.stderr.splitlines()) == 1


def test_no_source_file_is_over_400_lines():
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.sh"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.split()
    assert files
    assert [file for file in files if len((REPOSITORY / file).read_text().splitlines()) > 400] == []


@pytest.mark.parametrize("module", ["packing", "corpus", "prompts", "sampling", "tokenization"])
def test_the_corpus_modules_never_import_torch(module):
    import sys

    code = f"import sys, knowlm.{module}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_both_readmes_have_the_same_commands():
    blocks = [
        [part.split("```")[0] for part in (REPOSITORY / name).read_text(encoding="utf-8").split("```shell\n")[1:]]
        for name in ("README.md", "README_ZH.md")
    ]
    english, chinese = (
        [line.split("  #")[0].rstrip() for block in each for line in block.splitlines()] for each in blocks
    )
    assert english == chinese


@pytest.mark.parametrize("document", ["README.md", "README_ZH.md", "docs/measured.md"])
def test_the_documents_tell_the_figures_of_the_measured_run(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    measured = json.loads((REPOSITORY / "docs/quickstart_metrics.json").read_text(encoding="utf-8"))
    after = measured["scores"]["after"]
    for figure in (measured["heldout_loss"]["after"], after["NER"]["f1"], after["RE"]["f1"]):
        assert f"{figure:.3f}" in text
    assert f"{measured['total_seconds']:.0f}" in text and f"{max(measured['peak_gb'].values()):.1f}" in text
