"""The numpy embedding of one sample, against the formula written out in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from dimec.core.errors import DataError, RunError
from dimec.policies.embedding import EmbeddingTable

D = 12


def table(**special: Any) -> EmbeddingTable:
    draws = np.random.default_rng(0)

    def some(*shape: int) -> NDArray[np.float32]:
        return draws.standard_normal(shape).astype(np.float32)

    parts: dict[str, Any] = {
        "words": some(30, D),
        "positions": some(10, D),
        "types": some(2, D),
        "norm_weight": some(D),
        "norm_bias": some(D),
        "norm_epsilon": 1e-5,
        **special,
    }
    return EmbeddingTable(**parts)


def written_out(
    of: EmbeddingTable, ids: NDArray[np.int64], types: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    rows = []
    for place, word in enumerate(ids):
        x = of.words[word].astype(np.float64)
        if of.positions is not None:
            x = x + of.positions[of.position_offset + place]
        if of.types is not None:
            x = x + of.types[0 if types is None else types[place]]
        rows.append((x - x.mean()) / np.sqrt(x.var() + of.norm_epsilon) * of.norm_weight)
    mean: NDArray[np.float64] = np.mean(rows, axis=0) + of.norm_bias
    return mean


VARIANTS: list[dict[str, Any]] = [
    {},
    {"types": None},
    {"positions": None},
    {"positions": None, "types": None},
    {"position_offset": 2},
    {"norm_epsilon": 0.5},
]


@pytest.mark.parametrize("special", VARIANTS)
@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("n_tokens", [1, 2, 8])
def test_mean_is_the_formula(special: dict[str, Any], typed: bool, n_tokens: int) -> None:
    of = table(**special)
    ids = np.random.default_rng(1).integers(0, 30, n_tokens)
    types = (np.arange(n_tokens) > 0).astype(np.int64) if typed else None
    before = of.state()
    mean = of.mean(ids, types)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, written_out(of, ids, types), atol=2e-6)
    for name, array in of.state().items():  # computed in place, but not in the table's own arrays
        np.testing.assert_array_equal(array, before[name])


def test_a_large_common_offset_does_not_cost_the_variance() -> None:
    words = table().words + np.float32(100)
    of, shifted = table(), table(words=words)
    ids = np.arange(5)
    np.testing.assert_allclose(shifted.mean(ids), of.mean(ids), atol=1e-3)


def test_the_longest_sample() -> None:
    assert table().max_tokens == 10
    assert table(position_offset=2).max_tokens == 8
    assert table(positions=None).max_tokens is None
    table(position_offset=2).mean(np.zeros(8, dtype=np.int64))
    table(positions=None).mean(np.zeros(500, dtype=np.int64))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "without tokens"),
        ([1] * 9, "9 tokens, only 8 have a position"),
        ([1, 30], "outside of 0 to 29"),
    ],
)
def test_bad_samples_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        table(position_offset=2).mean(np.array(ids, dtype=np.int64))


@pytest.mark.parametrize("special", VARIANTS)
def test_state_survives_safetensors(special: dict[str, Any]) -> None:
    of, ids = table(**special), np.arange(6)
    again = EmbeddingTable.from_state(load(save(of.state())))
    assert again.norm_epsilon == of.norm_epsilon
    assert again.position_offset == of.position_offset
    np.testing.assert_array_equal(again.mean(ids), of.mean(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": None}, "missing: words"),
        ({"stray": np.zeros(1)}, "unknown: stray"),
        ({"words": np.zeros(3)}, "are .v, d., not"),
        ({"positions": np.zeros((10, 3))}, "positions .* 12 wide"),
        ({"norm_bias": np.zeros((1, D))}, "norm_bias .* 12 wide"),
        ({"norm_epsilon": np.zeros(2)}, "norm_epsilon .* one number"),
        ({"position_offset": np.array([11])}, "position_offset"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    state = {
        name: array for name, array in {**table().state(), **change}.items() if array is not None
    }
    with pytest.raises(RunError, match=message):
        EmbeddingTable.from_state(state)
