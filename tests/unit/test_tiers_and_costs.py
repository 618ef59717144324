from __future__ import annotations

import numpy as np
import pytest

from dimec.core.errors import ContractError, OptionError
from dimec.core.tiers import Depths, Method, Step, Tier, check_step, method_depths, softmax
from dimec.costs.model import CostModel

MOBILE, EDGE, CLOUD = Tier


@pytest.mark.parametrize(
    ("method", "n_layers", "expected"),
    [
        ("dc", 12, (4, 6, 12)),
        ("ee", 12, (3, 6, 12)),
        ("dc", 24, (6, 12, 24)),
        ("ee", 24, (6, 12, 24)),
        ("dc", 6, (2, 3, 6)),
        ("ee", 6, (2, 3, 6)),
        ("dc", 3, (1, 2, 3)),
        ("dc", 22, (7, 11, 22)),
    ],
)
def test_depths_are_the_papers_and_their_proportions(
    method: Method, n_layers: int, expected: tuple[int, int, int]
) -> None:
    assert method_depths(method, n_layers) == Depths(*expected)


@pytest.mark.parametrize("n_layers", range(3, 40))
@pytest.mark.parametrize("method", ["dc", "ee"])
def test_every_encoder_of_three_layers_or_more_can_be_cut(method: Method, n_layers: int) -> None:
    assert method_depths(method, n_layers).cloud == n_layers


def test_depths_that_the_user_sets() -> None:
    assert method_depths("dc", 6, mobile=4) == Depths(4, 5, 6)
    assert method_depths("dc", 12, mobile=1, edge=2) == Depths(1, 2, 12)
    with pytest.raises(OptionError, match="--edge-layers"):
        method_depths("dc", 6, edge=6)
    with pytest.raises(OptionError):
        method_depths("dc", 2)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], 0.0),
        ([Step(MOBILE, 4)], 6.0),
        ([Step(EDGE, 6)], 2.5 + 6),
        ([Step(CLOUD, 12)], 3 + 12),
        ([Step(MOBILE, 1), Step(MOBILE, 4)], 6.0),
        ([Step(MOBILE, 4), Step(EDGE, 6)], 6 + 2.5 + 6),
        ([Step(MOBILE, 4), Step(CLOUD, 12, resumes=True)], 6 + 3 + 8),
        ([Step(EDGE, 6), Step(CLOUD, 12)], 2.5 + 6 + 3 + 12),
        ([Step(EDGE, 6), Step(MOBILE, 4)], 2.5 + 6 + 6),
    ],
)
def test_whatever_happens_is_charged(steps: list[Step], expected: float) -> None:
    assert CostModel().of(steps) == pytest.approx(expected)


def test_the_papers_own_sst2_row() -> None:
    # Paper 1: 71.04 / 8.71 / 20.24 % of SST-2 at m=4, n=6, l=12 are printed as -55 % of BERT on the device.
    costs = CostModel()
    shares = (0.7104, 0.0871, 0.2024)
    steps = (Step(MOBILE, 4), Step(EDGE, 6), Step(CLOUD, 12))
    cost = sum(share * costs.of([step]) for share, step in zip(shares, steps, strict=True))
    assert cost == pytest.approx(8.04, abs=0.005)
    assert costs.reference(12) == 18
    assert round(100 * (cost / 18 - 1)) == -55


def test_a_charge_for_every_request() -> None:
    assert CostModel(cloud_request=2).of([Step(CLOUD, 6)]) == 3 + 2 + 6


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_prices_must_be_prices(value: float) -> None:
    with pytest.raises(OptionError, match="to_edge"):
        CostModel(to_edge=value)
    with pytest.raises(OptionError, match="--price"):
        CostModel().unit_price(6, price=value)


def test_a_free_reference_is_refused() -> None:
    with pytest.raises(OptionError, match="mobile_layer"):
        CostModel(mobile_layer=0)


def test_lambda_in_units_of_confidence() -> None:
    assert CostModel().unit_price(12, price=0.1) == pytest.approx(0.1 / 18)


@pytest.mark.parametrize(
    ("steps", "step"),
    [
        ([], Step(MOBILE, 7)),
        ([Step(MOBILE, 2)], Step(MOBILE, 2)),
        ([Step(MOBILE, 2)], Step(MOBILE, 1)),
        ([], Step(CLOUD, 6, resumes=True)),
        ([Step(MOBILE, 2)], Step(MOBILE, 3, resumes=True)),
        ([Step(MOBILE, 3)], Step(CLOUD, 3, resumes=True)),
    ],
)
def test_illegal_steps(steps: list[Step], step: Step) -> None:
    with pytest.raises(ContractError):
        check_step(steps, step, exits=range(1, 7))


@pytest.mark.parametrize(
    ("steps", "step"),
    [
        ([], Step(CLOUD, 6)),
        ([Step(MOBILE, 2)], Step(MOBILE, 3)),
        ([Step(MOBILE, 3)], Step(EDGE, 1)),
        ([Step(MOBILE, 2)], Step(CLOUD, 6, resumes=True)),
    ],
)
def test_legal_steps(steps: list[Step], step: Step) -> None:
    check_step(steps, step, exits=range(1, 7))


def test_softmax_survives_large_logits() -> None:
    probabilities = softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], dtype=np.float32))
    assert probabilities.tolist() == [[1.0, 0.0], [0.5, 0.5]]
