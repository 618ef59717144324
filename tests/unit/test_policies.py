"""The contract that every registered policy keeps, and what each of this package's decides on hand-made tables."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dimec.core.errors import ContractError, OptionError, RunError
from dimec.core.tiers import TIERS, Depths, Method, Step, Tier, layers_done
from dimec.costs.model import CostModel
from dimec.policies import (
    POLICIES,
    Calibration,
    Policy,
    View,
    fit_policies,
    load_policies,
    save_policies,
)
from dimec.policies.base import Group, GroupReading, Groups, PolicyState
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcAdaptive, DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable, TierTables
from tests.unit.tables import meet, outcomes, random_table, restored_of, table_of

MOBILE, EDGE, CLOUD = Tier
Fitted = Callable[[], Policy]
DEPTHS: dict[Method, Depths] = {"dc": Depths(2, 3, 6), "ee": Depths(2, 4, 6)}


def calibration(name: str, table: ExitTable, *, seed: int = 0) -> Calibration:
    """Give what a policy is fitted from: with a bottleneck of its kind, where it needs one."""
    kind = POLICIES[name].bottleneck
    restored = None if kind is None else restored_of(table, kind)
    return Calibration(table, DEPTHS, seed=seed, restored=restored)


def tables_for(name: str, table: ExitTable) -> TierTables:
    """Give what the tiers say to a policy."""
    return TierTables(table, restored=calibration(name, table).restored)


def fit(name: str, *, n_classes: int = 2) -> Policy:
    table = random_table(300, seed=1, n_classes=n_classes)
    return POLICIES[name].fit(calibration(name, table, seed=3))


@pytest.fixture(scope="module")
def fits() -> dict[tuple[str, int], Policy]:
    return {}


@pytest.fixture
def fitted(name: str, n_classes: int, fits: dict[tuple[str, int], Policy]) -> Fitted:
    """Give what returns the policy as it was fitted, once for all tests."""
    key = (name, n_classes)
    if key not in fits:
        fits[key] = fit(name, n_classes=n_classes)
    return lambda: copy.deepcopy(fits[key])


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", POLICIES)
class TestContract:
    def test_replay_does_what_one_by_one_does(
        self, name: str, n_classes: int, fitted: Fitted
    ) -> None:
        costs = CostModel()
        tables = tables_for(name, random_table(400, n_classes=n_classes))
        played = replay(fitted(), tables, costs=costs)
        policy, tables = fitted(), tables.with_exit_zero
        for row in range(len(tables)):
            view = meet(policy, tables, row)
            assert view.steps[-1] in policy.endpoints()
            answer = policy.answer(view)
            assert played.predictions[row] == answer.label
            assert played.confidence[row] == pytest.approx(answer.confidence, abs=1e-12)
            assert TIERS[played.tiers[row]] is answer.tier
            assert played.layers[row] == answer.layer
            assert played.costs[row] == pytest.approx(costs.of(view.steps))

    def test_leaves_its_input_alone(self, name: str, n_classes: int) -> None:
        table = random_table(50, n_classes=n_classes)
        given = calibration(name, random_table(300, seed=1, n_classes=n_classes))
        before = copy.deepcopy((given.table.logits, given.table.embeddings))
        policy = POLICIES[name].fit(given)
        state = copy.deepcopy(policy.state())
        embeddings = table.embeddings.copy()
        replay(policy, tables_for(name, table), costs=CostModel())
        np.testing.assert_array_equal(given.table.logits, before[0])
        np.testing.assert_array_equal(given.table.embeddings, before[1])
        np.testing.assert_array_equal(table.embeddings, embeddings)
        assert policy.state().settings == state.settings
        for key, array in policy.state().arrays.items():
            np.testing.assert_array_equal(array, state.arrays[key])

    def test_the_same_seed_and_every_replay_give_the_same(
        self, name: str, n_classes: int, fitted: Fitted
    ) -> None:
        tables = tables_for(name, random_table(300, n_classes=n_classes))
        policy = fitted()
        one, two, three = (
            replay(each, tables, costs=CostModel())
            for each in (policy, policy, fit(name, n_classes=n_classes))
        )
        for other in (two, three):
            np.testing.assert_array_equal(one.tiers, other.tiers)
            np.testing.assert_array_equal(one.predictions, other.predictions)

    def test_survives_a_save_and_load(
        self, name: str, n_classes: int, fitted: Fitted, tmp_path: Path
    ) -> None:
        policy, table = fitted(), random_table(300, n_classes=n_classes)
        save_policies(tmp_path, {name: policy}, Calibration(table, DEPTHS))
        again = load_policies(tmp_path, POLICIES)[name]
        assert again.depths == policy.depths
        assert again.operating_point() == policy.operating_point()
        tables = tables_for(name, table)
        one, two = (replay(each, tables, costs=CostModel()) for each in (policy, again))
        np.testing.assert_array_equal(one.tiers, two.tiers)
        np.testing.assert_array_equal(one.layers, two.layers)

    def test_fits_where_validation_is_awkward(self, name: str, n_classes: int) -> None:
        whole = random_table(300, seed=1, n_classes=n_classes)
        single_class = whole.take(whole.labels == 0)
        assert len(set(single_class.labels)) == 1
        one_sample = whole.take(np.array([0]))
        for table in (single_class, one_sample):
            policy = POLICIES[name].fit(calibration(name, table))
            stream = tables_for(name, random_table(50, n_classes=n_classes))
            played = replay(policy, stream, costs=CostModel())
            assert np.isfinite(played.costs).all()


# One that learns is replayed one by one.
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if not policy.learns])
def test_a_group_is_decided_like_its_rows(name: str, n_classes: int, fitted: Fitted) -> None:
    tables = tables_for(name, random_table(100, n_classes=n_classes)).with_exit_zero
    everyone = np.arange(len(tables))
    waiting: list[tuple[Step, ...]] = [()]
    while waiting:
        steps = waiting.pop()
        read = [
            (step, tables.read_by(step, after=layers_done(steps[:place], step)))
            for place, step in enumerate(steps)
        ]
        readings = tuple(
            GroupReading.of(step.tier, table, table.exit(step.layer), everyone)
            for step, table in read
        )
        unseen = tables.of(Tier.MOBILE).unseen
        group = Group(tables.embeddings, everyone, steps, readings, unseen)
        together, alone = fitted(), fitted()
        choices = together.decide_group(group)
        decided = [choices.options[pick] for pick in choices.picks]
        assert decided == [alone.decide(group.row(row)) for row in range(len(tables))]
        if None in decided:
            answer = together.answer_group(group)
            for row in range(len(tables)):
                one = alone.answer(group.row(row))
                assert one.label == answer.labels[row] == one.probabilities.argmax()
                assert one.confidence == pytest.approx(answer.confidence[row], abs=1e-12)
                assert one.probabilities == pytest.approx(answer.probabilities[row], abs=1e-12)
                assert group.readings[answer.places[row]].layer == one.layer
        waiting.extend((*steps, step) for step in set(decided) if step is not None)


# Devices with many texts have them decided side by side, but for those that ship hidden states.
@pytest.mark.parametrize(
    "name", [name for name, each in POLICIES.items() if not (each.learns or each.bottleneck)]
)
@pytest.mark.parametrize("n_classes", [3])
def test_groups_of_several_ways_are_decided_like_their_rows(
    name: str, n_classes: int, fitted: Fitted
) -> None:
    tables = tables_for(name, random_table(200, n_classes=n_classes)).with_exit_zero
    unseen = tables.of(Tier.MOBILE).unseen
    together, alone = fitted(), fitted()
    said: dict[Step, NDArray[np.float64]] = {}
    ways: list[tuple[Step, ...]] = [()]
    way = np.zeros(len(tables), dtype=np.intp)
    going = np.arange(len(tables))
    rng = np.random.default_rng(0)
    answered = 0
    while going.size:
        # Some wait, so that those which have run further are decided beside those which have not.
        now = np.sort(rng.permutation(going)[: max(1, 2 * going.size // 3)])
        groups = Groups(tables.embeddings, now, tuple(ways), way[now], said, unseen)
        choices = together.decide_groups(groups)
        decided = [choices.options[pick] for pick in choices.picks]
        views = np.empty(len(now), dtype=object)
        for places, group in groups.each():
            views[places] = [group.row(index) for index in range(len(group))]
        assert decided == [alone.decide(view) for view in views]
        ends = np.array([step is None for step in decided])
        if ends.any():
            answer = together.answer_groups(groups.take(ends))
            for place, view in enumerate(views[ends]):
                one = alone.answer(view)
                assert one.label == answer.labels[place]
                assert one.probabilities == pytest.approx(answer.probabilities[place], abs=1e-12)
                assert view.steps[answer.places[place]].layer == one.layer
            answered += int(ends.sum())
        for row, step in zip(now[~ends].tolist(), filter(None, decided), strict=True):
            taken = (*ways[way[row]], step)
            if taken not in ways:
                ways.append(taken)
            way[row] = ways.index(taken)
            if step not in said:
                table = tables.read_by(step, after=layers_done(taken[:-1], step))
                everyone = np.arange(len(tables))
                of_all = GroupReading.of(step.tier, table, table.exit(step.layer), everyone)
                said[step] = of_all.probabilities
        going = np.setdiff1d(going, now[ends])
    assert answered == len(tables)


def test_dimec_dc_sends_each_sample_to_its_nearest_pool() -> None:
    easy, medium, hard = [0.9, 0.9, 0.9], [0.5, 0.9, 0.9], [0.2, 0.1, 0.3]
    validation = table_of(
        [[0.9] * 6] * 3,
        labels=[1] * 3,
        embeddings=[[0, 0], [4, 0], [0, 4]],
        dynamics=[easy, medium, hard],
    )
    policy = DimecDcFixed.fit(Calibration(validation, DEPTHS, price=0.01))
    stream = table_of([[0.6] * 6] * 3, labels=[1] * 3, embeddings=[[0.5, 0], [3.5, 1], [1, 5]])
    played = replay(policy, stream, costs=CostModel())
    assert outcomes(played) == [(MOBILE, 2, 3.0), (EDGE, 3, 5.5), (CLOUD, 6, 9.0)]
    # d(hard) - d(easy): larger where mobile is preferred
    assert played.routing_scores == pytest.approx(
        [
            np.hypot(0.5, 4) - 0.5,
            np.hypot(3.5, 3) - np.hypot(3.5, 1),
            np.hypot(1, 1) - np.hypot(1, 5),
        ],
        rel=1e-6,
    )


def test_adaptive_centroids_follow_the_stream_in_order() -> None:
    sums, counts = np.array([[0.0], [10.0], [20.0]]), np.array([1, 1, 1])
    stream = table_of([[0.6] * 6] * 3, labels=[1] * 3, embeddings=[[4.0], [6.4], [5.5]])
    thresholds = {"alpha": 0.5, "beta": 0.1}
    fixed = DimecDcFixed(DEPTHS["dc"], Centroids(sums, counts), **thresholds)
    moving = DimecDcAdaptive(DEPTHS["dc"], Centroids(sums, counts), **thresholds)
    assert replay(fixed, stream, costs=CostModel()).tiers.tolist() == [0, 1, 1]
    # 4 moves easy to 2; 6.4 is nearer to 10 and moves medium to 8.2; 5.5 is then nearer to 8.2 than to 2
    assert replay(moving, stream, costs=CostModel()).tiers.tolist() == [0, 1, 1]
    back = stream.take(np.array([0, 2, 1]))
    # 4 moves easy to 2; 5.5 is nearer to 2 (3.5) than to 10 (4.5) and moves it to 3.17; 6.4 is then nearer to 3.17
    assert replay(moving, back, costs=CostModel()).tiers.tolist() == [0, 0, 0]
    assert moving.centroids.counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("place", "step", "means"),
    [
        (1.0, Step(MOBILE, 2), [0.5, 10.0, 20.0]),
        (8.0, Step(EDGE, 3), [0.0, 9.0, 20.0]),
        (18.0, Step(CLOUD, 6), [0.0, 10.0, 19.0]),
    ],
)
def test_the_centroid_of_the_tier_that_ran_is_moved(
    place: float, step: Step, means: list[float]
) -> None:
    centroids = Centroids(np.array([[0.0], [10.0], [20.0]]), np.array([1, 1, 1]))
    policy = DimecDcAdaptive(DEPTHS["dc"], centroids, alpha=0.5, beta=0.1)
    view = View(embedding=np.array([place], dtype=np.float32))
    assert policy.decide(view) == step
    policy.learn(View([step], embedding=view.embedding))
    assert policy.centroids.means.ravel().tolist() == means


def test_the_map_is_that_of_the_mobile_tiers_last_exit() -> None:
    sure = np.full((6, 4, 6), 0.1)
    sure[:, :, 1] = 0.9  # the exit after layer 2, where DIMEC-DC's mobile tier ends
    table = table_of([[0.9] * 6] * 6, labels=[1] * 6, dynamics=sure)
    policy = DimecDcFixed.at(Calibration(table, DEPTHS), 0.5, 0.2)
    assert policy.centroids.counts.tolist() == [6, 0, 0]


def test_dimee_leaves_at_the_first_sure_exit() -> None:
    sums, counts = np.array([[0.0], [10.0], [20.0]]), np.array([1, 1, 1])
    policy = DimeeFixed(
        DEPTHS["ee"], Centroids(sums, counts), thresholds={"alpha": 0.8}, layers=(1, 2, 3, 4, 5, 6)
    )
    sure_at = {"first": [0.9] * 6, "third": [0.6, 0.6, 0.9, 0.6, 0.6, 0.6], "never": [0.6] * 6}
    samples = [
        ("first", 0.0, (MOBILE, 1, 1.5)),
        ("third", 0.0, (MOBILE, 2, 3.0)),
        ("first", 10.0, (EDGE, 1, 3.5)),
        ("third", 10.0, (EDGE, 3, 5.5)),
        ("never", 10.0, (EDGE, 4, 6.5)),
        ("first", 20.0, (CLOUD, 6, 9.0)),
    ]
    table = table_of(
        [sure_at[kind] for kind, _, _ in samples],
        labels=[1] * len(samples),
        embeddings=[[place] for _, place, _ in samples],
    )
    played = replay(policy, table, costs=CostModel())
    assert outcomes(played) == [expected for _, _, expected in samples]


def test_random_is_uniform_over_tiers() -> None:
    played = replay(fit("random"), random_table(6000), costs=CostModel())
    assert np.bincount(played.tiers) / 6000 == pytest.approx([1 / 3] * 3, abs=0.02)
    assert played.routing_scores is None


def test_policies_by_name() -> None:
    given = Calibration(random_table(100), DEPTHS)
    alone = [name for name, policy in POLICIES.items() if policy.bottleneck is None]
    assert list(fit_policies(given)) == alone
    assert list(fit_policies(given, ["random", "bottlenet"])) == ["random"]
    behind = calibration("bottlefit", random_table(100))
    assert set(fit_policies(behind)) == {*alone, "bottlefit"}
    with pytest.raises(OptionError, match="dimec-dc-fixed"):
        fit_policies(given, ["rendom"])


def test_the_whole_grid_is_kept(tmp_path: Path) -> None:
    given = Calibration(random_table(100), DEPTHS)
    save_policies(tmp_path, fit_policies(given), given)
    document = json.loads((tmp_path / "router.json").read_text())
    search = document["policies"]["dimec-dc-fixed"]["search"]
    assert np.shape(search["rewards"]) == (5, 5)
    assert np.shape(document["policies"]["dimee-fixed"]["search"]["rewards"]) == (10,)
    assert document["price"] == 0.1


@pytest.mark.parametrize("text", ["", "{", '{"format": 99}', '{"format": 1}', "[]"])
def test_stored_policies_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(RunError, match=r"router\.json"):
        load_policies(tmp_path, POLICIES)
    given = Calibration(random_table(100), DEPTHS)
    save_policies(tmp_path, fit_policies(given), given)
    (tmp_path / "router.json").write_text(text)
    with pytest.raises(RunError):
        load_policies(tmp_path, POLICIES)


def test_dimee_leaves_each_tier_at_the_exits_of_its_own_model() -> None:
    centroids = Centroids(np.array([[0.0], [10.0], [20.0]]), np.array([3, 2, 1]))
    policy = DimeeFixed(
        DEPTHS["ee"], centroids, thresholds={"alpha": 0.8}, layers=(1, 2, 3), edge_layers=(2, 4, 5)
    )
    settings = json.loads(json.dumps(policy.state().settings))
    again = DimeeFixed.from_state(policy.depths, PolicyState(settings, policy.state().arrays))
    view = View(embedding=np.zeros(1, dtype=np.float32))
    ends = (Step(MOBILE, 1), Step(MOBILE, 2), Step(EDGE, 2), Step(EDGE, 4), Step(CLOUD, 6))
    for each in (policy, again):
        assert each.endpoints() == ends
        assert each.exit_thresholds(view, Step(EDGE, 2)) == {2: 0.8, 4: 0.8}
        assert [each.onward([end]) for end in ends] == [ends[1], None, ends[3], None, None]
        assert each.centroids.counts.tolist() == [3, 2, 1]
    for layers, edge_layers in (((3,), (2,)), ((1,), (5,))):
        with pytest.raises(ContractError):
            DimeeFixed(
                DEPTHS["ee"],
                centroids,
                thresholds={"alpha": 0.8},
                layers=layers,
                edge_layers=edge_layers,
            )
    table = random_table(60)
    models = {
        MOBILE: replace(table, layers=(1, 2), logits=table.logits[:, :2], dynamics=None),
        EDGE: replace(table, layers=(2, 4), logits=table.logits[:, [1, 3]], dynamics=None),
    }
    fitted_there = DimeeFixed.at(Calibration(table, DEPTHS, models=models), 0.7)
    assert (fitted_there.layers, fitted_there.edge_layers) == ((1, 2), (2, 4))
    assert fitted_there.operating_point() == {"alpha": 0.7}


def test_the_map_needs_what_training_saw_of_the_device() -> None:
    table = random_table(60)
    given = Calibration(table, {"dc": Depths(1, 3, 6), "ee": Depths(2, 4, 6)})
    assert DimecDcFixed.missing_input(given) is None
    unseen = replace(table, dynamics=None)
    for each in (replace(given, table=unseen), replace(given, models={MOBILE: unseen})):
        found = DimecDcFixed.missing_input(each)
        assert found is not None
        assert (found.option, found.tier, found.command) == (("layers", 1), MOBILE, "fit")
    assert DimecDcFixed.missing_input(replace(given, models={EDGE: unseen})) is None
    assert DimeeFixed.missing_input(replace(given, models={MOBILE: unseen})) is None


def test_beta_is_held_against_the_spread_that_was_asked_for() -> None:
    # The probability of the true label has a deviation of 0.2, and so a variance of 0.04.
    table = table_of([[0.9] * 6], labels=[1], dynamics=[[0.6, 1.0]])
    for spread, pools in (("deviation", [0, 1, 0]), ("variance", [1, 0, 0])):
        given = replace(Calibration(table, DEPTHS), spread=spread)  # type: ignore[arg-type]
        policy = DimecDcFixed.at(given, 0.5, 0.1)
        assert policy.centroids.counts.tolist() == pools
        assert policy.operating_point() == {"alpha": 0.5, "beta": 0.1}
        assert policy.depths == DEPTHS["dc"]
