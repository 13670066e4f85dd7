import pytest

from knowlm.generation import GenerationSettings, encode_prompts, generate, stream
from knowlm.models import load_for_generation
from knowlm.prompts import Prompter


@pytest.fixture(scope="module")
def loaded(tiny_llama):
    return load_for_generation(str(tiny_llama))


SETTINGS = GenerationSettings(max_new_tokens=12)


def test_a_batch_answers_as_its_prompts_do_alone(loaded):
    prompts = ["Hello", "床前明月光，疑是", "a b c d e f g"]
    assert generate(*loaded, prompts, SETTINGS) == [generate(*loaded, [prompt], SETTINGS)[0] for prompt in prompts]


def test_an_answer_holds_no_prompt_and_no_special_token(loaded):
    answer = generate(*loaded, ["Hello"], SETTINGS)[0]
    assert not answer.startswith("Hello") and "<s>" not in answer and "</s>" not in answer


def test_prompts_begin_with_one_bos_and_are_padded_on_the_left(loaded):
    model, tokenizer = loaded
    encoded = encode_prompts(tokenizer, ["Hello", "Hello again and again"], model.device)
    assert (encoded["input_ids"] == tokenizer.bos_token_id).sum(dim=1).tolist() == [1, 1]
    assert encoded["attention_mask"][0, 0] == 0 and encoded["attention_mask"][:, -1].tolist() == [1, 1]


def test_a_stream_grows_to_the_whole_answer(loaded):
    parts = list(stream(*loaded, "Hello", SETTINGS))
    assert len(parts) > 1
    assert parts[-1] == generate(*loaded, ["Hello"], SETTINGS)[0]


def test_beams_stream_as_one_piece(loaded):
    settings = SETTINGS.updated(num_beams=2)
    assert list(stream(*loaded, "Hello", settings)) == generate(*loaded, ["Hello"], settings)


def test_closing_a_stream_ends_its_thread(loaded):
    import threading

    before = threading.active_count()
    pieces = stream(*loaded, "Hello", GenerationSettings(max_new_tokens=1500))
    next(pieces)
    pieces.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("change", [{"temperature": -1}, {"top_p": 2}, {"max_new_tokens": 0}, {"num_beams": "x"}])
def test_a_setting_out_of_range_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SETTINGS.updated(**change)


def test_int8_weights_generate(tiny_llama):
    model, tokenizer = load_for_generation(str(tiny_llama), load_8bit=True)
    assert model.is_loaded_in_8bit
    assert isinstance(generate(model, tokenizer, ["Hello"], SETTINGS)[0], str)


def test_braces_in_a_prompt_stay_as_they_are():
    prompt = Prompter().prompt("as {'head': ''} and {input}", "{x} {instruction}")
    assert "as {'head': ''} and {input}" in prompt and "{x} {instruction}" in prompt


def test_a_template_without_a_field_is_named(tmp_path):
    (tmp_path / "bad.json").write_text('{"prompt_input": ""}')
    with pytest.raises(ValueError, match=r"bad\.json: lacks prompt_no_input, response_split"):
        Prompter(str(tmp_path / "bad.json"))


@pytest.mark.slow
def test_interactive_mode_changes_settings_and_streams(tiny_llama):
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).resolve().parents[1] / "examples/generate_finetune.py"
    result = subprocess.run(
        [sys.executable, script, "--base_model", tiny_llama, "--interactive", "--max_new_tokens", "5"],
        input="/temperature 0.7\n/nonsense 1\nHello\n\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "temperature=0.7" in result.stderr and "no setting nonsense" in result.stderr


@pytest.mark.slow
def test_published_cases_are_answered(run_warm, tiny_llama):
    result = run_warm("examples/generate_lora.py", "--base_model", tiny_llama, "--run_ie_cases", "--max_new_tokens", 4)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("### Response:") == 4
