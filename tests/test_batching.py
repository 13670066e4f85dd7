import time
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knowlm.batching import IGNORED, Batching, MicroBatches, collate, pack_rows
from knowlm.instructions import Example

LENGTHS = st.lists(st.integers(2, 64), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 8))
def test_packing_puts_each_example_into_one_row_and_no_row_is_too_long(lengths, at_least):
    rows = pack_rows(lengths, 64, at_least)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= 64 for row in rows)
    assert len(rows) >= min(at_least, len(lengths))


def test_packed_short_examples_need_no_padding_to_speak_of():
    lengths = np.random.default_rng(0).integers(40, 200, 128).tolist()
    rows = [sum(lengths[number] for number in row) for row in pack_rows(lengths, 512)]
    assert sum(lengths) > 0.97 * max(rows) * len(rows)
    assert len(rows) <= 1.05 * sum(lengths) / 512 + 1


def test_examples_that_share_no_row_are_packed_at_once():
    begin = time.process_time()
    assert len(pack_rows([300] * 20_000, 512)) == 20_000
    assert time.process_time() - begin < 5  # one row more at a time took 90 s


@given(
    LENGTHS,
    st.builds(
        Batching,
        batch_size=st.integers(1, 40),
        micro_batch_size=st.integers(1, 4),
        cutoff_len=st.just(64),
        pack=st.booleans(),
        group_by_length=st.booleans(),
        processes=st.integers(1, 3),
        epochs=st.just(2),
        seed=st.integers(0, 3),
    ),
)
def test_every_step_takes_just_its_examples_in_micro_batches_that_fit(lengths, batching):
    batches = MicroBatches(lengths, batching)
    for epoch in range(2):
        batches.set_epoch(epoch)
        drawn = list(batches)
        assert len(drawn) == len(batches)
        assert all(len(rows) <= batching.micro_batch_size for rows in drawn)
        taken = [[number for row in rows for number in row] for rows in drawn]
        assert sorted(chain(*taken)) == list(range(len(lengths)))
        per_step = batches.accumulation * batching.processes
        order = batches.order(epoch)
        for step in range(batches.steps_per_epoch - 1):
            together = chain(*taken[step * per_step : (step + 1) * per_step])
            assert sorted(together) == sorted(order[step * batching.batch_size : (step + 1) * batching.batch_size])
        assert len(drawn) <= batches.steps_per_epoch * per_step


def test_packing_processes_and_micro_batches_do_not_change_what_a_step_takes():
    lengths = np.random.default_rng(0).integers(2, 64, 100).tolist()

    def first_step(**changes):
        batches = MicroBatches(
            lengths, Batching(**{"batch_size": 12, "micro_batch_size": 3, "cutoff_len": 64} | changes)
        )
        batches.set_epoch(1)
        drawn = list(batches)[: batches.accumulation * batches.batching.processes]
        return sorted(number for rows in drawn for row in rows for number in row)

    for changes in ({"pack": True}, {"processes": 3}, {"micro_batch_size": 5}, {"pack": True, "processes": 2}):
        assert first_step(**changes) == first_step()
    assert first_step(seed=1) != first_step()


def test_like_lengths_share_a_micro_batch():
    lengths = [10, 60] * 8
    batches = MicroBatches(lengths, Batching(batch_size=16, micro_batch_size=4, cutoff_len=64))
    assert all(len({lengths[number] for row in rows for number in row}) == 1 for rows in batches)


@pytest.fixture(scope="module")
def examples():
    draw = np.random.default_rng(0)
    lengths = [3, 17, 9, 30, 5, 12]
    return [Example(draw.integers(3, 600, n).astype(np.int32), int(draw.integers(1, n)), False) for n in lengths]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation=request.param).eval()
    model.config.use_cache = False
    return model


def logits(model, batch):
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def test_the_logits_of_a_packed_row_are_those_of_each_example_alone(model, examples):
    rows = [[0, 3, 1], [2, 5, 4]]
    together = logits(model, collate([[examples[number] for number in row] for row in rows], pad_id=0))
    for row_logits, row in zip(together, rows, strict=True):
        start = 0
        for number in row:
            alone = logits(model, collate([[examples[number]]], pad_id=0))[0]
            assert torch.allclose(row_logits[start : start + len(alone)], alone, atol=1e-5)
            start += len(alone)


def step_of(model, micro_batches, examples):
    """(loss, gradients) of a step, as the Trainer takes them: summed over tokens, divided by the step's tokens."""
    batches = [collate([[examples[n] for n in row] for row in rows], pad_id=0) for rows in micro_batches]
    tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    model.zero_grad()
    loss = sum(model(**batch, num_items_in_batch=tokens).loss for batch in batches)
    loss.backward()
    return loss.item(), tokens, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("answer_start", [None, 1])
def test_a_packed_step_has_the_loss_and_the_gradients_of_the_padded_one(model, examples, answer_start):
    if answer_start:  # as with --train_on_inputs
        examples = [example._replace(answer_start=answer_start) for example in examples]
    lengths = [len(example.ids) for example in examples]
    settings = {"batch_size": 6, "micro_batch_size": 2, "cutoff_len": 40}
    padded, packed = (list(MicroBatches(lengths, Batching(**settings, pack=pack))) for pack in (False, True))
    assert sum(map(len, packed)) < sum(map(len, padded)) == 6
    loss, tokens, gradients = step_of(model, padded, examples)
    packed_loss, packed_tokens, packed_gradients = step_of(model, packed, examples)
    assert tokens == packed_tokens == sum(len(example.ids) - example.answer_start for example in examples)
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(packed_gradients[name], gradient, atol=1e-5), name
    alone = sum(model(**collate([[example]], pad_id=0), num_items_in_batch=tokens).loss.item() for example in examples)
    assert alone == pytest.approx(loss, abs=1e-5)


def test_an_empty_micro_batch_changes_neither_loss_nor_gradients(model, examples):
    rows = [[[0], [1]], [[2]]]
    one, other = step_of(model, rows, examples), step_of(model, [*rows, []], examples)
    assert one[:2] == other[:2]
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])


def test_a_model_that_looks_across_examples_is_not_packed(model):
    from transformers import BloomConfig, BloomForCausalLM

    from knowlm.models import small_model
    from knowlm.tuning import check_packing

    check_packing(model)
    check_packing(small_model(model.config.name_or_path))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=600, hidden_size=32, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match="bloom lets examples of a row see each other"):
        check_packing(bloom)
