import numpy as np
import pytest

from knowlm.sampling import proportional_order


@pytest.mark.parametrize(("mode", "batches"), [(0, 1), (1, 2), (2, 5), (3, 5)])
def test_every_batch_holds_each_types_share(mode, batches):
    order = proportional_order([10, 3], [2, 2], mode, seed=1).reshape(-1, 4)
    assert len(order) == batches
    assert ((order < 10).sum(axis=1) == 2).all()
    assert order.max() < 13


def test_filling_and_repeating_uses_every_sample():
    order = proportional_order([10, 3], [2, 2], mode=3, seed=1)
    assert set(order.tolist()) == set(range(13))


def test_the_seed_decides_the_order():
    first = proportional_order([10, 3], [2, 2], 3, seed=1)
    assert np.array_equal(first, proportional_order([10, 3], [2, 2], 3, seed=1))
    assert not np.array_equal(first, proportional_order([10, 3], [2, 2], 3, seed=2))


def test_a_share_for_each_type_is_asked_for():
    with pytest.raises(ValueError, match="has 1 numbers, the corpus has 2 types"):
        proportional_order([10, 3], [4], 3, 0)
