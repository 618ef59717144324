"""Profiles of hardware and links: what they price, by hand; what they refuse; what policies make of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimec.core.errors import OptionError
from dimec.core.tiers import EXIT_ZERO, Step, Tier
from dimec.costs.billing import Billing, fitting_costs
from dimec.costs.model import CostModel
from dimec.costs.pricing import (
    BYTES,
    JOULES,
    MEASURED_UNITS,
    MS,
    UNITS,
    Measured,
    Pricer,
    Texts,
    Unit,
)
from dimec.costs.profiles import READY, CostProfile, layer_flops, load_profile
from dimec.evaluation.meter import Meter, Spent
from dimec.evaluation.results import Evaluation
from dimec.evaluation.rows import evaluate
from dimec.policies import POLICIES, Calibration, Policy, fit_policies
from dimec.policies.neurosurgeon import Neurosurgeon, best_partition, partition
from dimec.policies.replay import replay
from dimec.policies.splitee import SplitEe
from dimec.runs.exit_table import ExitTable, TierTables
from tests.inputs import unsourced
from tests.unit.tables import DEPTHS, random_table, restored_of

MOBILE, EDGE, CLOUD = Tier
WIDTH = 8
RESUMED = Step(CLOUD, 6, resumes=True)
TEXTS = Texts(np.array([10.0, 20.0]), np.array([20.0, 40.0]))


def points(layer_ms: float) -> list[dict[str, float]]:
    """Measure two lengths, of which the double one takes the double time; embedding takes a tenth of a layer."""
    return [
        {"tokens": 10 * times, "layer_ms": layer_ms * times, "embedding_ms": layer_ms / 10 * times}
        for times in (1, 2)
    ]


ONCE, TWICE = points(1.0)
# A layer takes 2 ms for 10 tokens and 4 for 20 on the device, half of it on the edge, a quarter in the cloud.
BY_HAND: dict[str, Any] = {
    "name": "by hand",
    "width": WIDTH,
    "mobile": {"points": points(2.0), "watts": 3.0, "exit_zero_ms": 0.1},
    "edge": {"points": [ONCE, TWICE]},
    "cloud": {"points": points(0.5), "load": 2.0},
    "to_edge": {"uplink_bps": 8e6, "downlink_bps": 16e6, "round_trip_ms": 5.0, "awake_watts": 0.5},
    "to_cloud": {
        "uplink_bps": 8e5,
        "downlink_bps": 16e5,
        "round_trip_ms": 50.0,
        "loss": 0.2,
        "send_joules_per_byte": 1e-3,
        "receive_joules_per_byte": 1e-4,
        "awake_watts": 1.0,
        "request_joules": 0.25,
        "request_bytes": 100.0,
        "response_bytes": 32.0,
    },
    "money": {"cloud_second": 10.0, "cloud_request": 0.5, "edge_second": 1.0},
}


def by_hand(**changes: float) -> CostProfile:
    return CostProfile.model_validate(BY_HAND).changed(**changes)


def pricer(profile: CostProfile | None = None, /, **changes: float) -> Pricer:
    return Pricer(profile or by_hand(**changes), width=WIDTH, n_classes=2)


def priced(*steps: Step, texts: Texts = TEXTS, embeds: bool = False) -> Measured:
    return pricer().trace(list(steps), texts, embeds=embeds)


def by_text(spent: Spent) -> Measured:
    assert spent.measured is not None
    return spent.measured


def close(found: Measured, **expected: list[float]) -> None:
    for name, values in expected.items():
        row = MEASURED_UNITS.index(name.removesuffix("_sent"))
        assert found[row] == pytest.approx(np.array(values)), name


def profile_with(change: Callable[[dict[str, Any]], object]) -> CostProfile:
    document = copy.deepcopy(BY_HAND)
    change(document)
    return CostProfile.model_validate(document)


# --- prices, by hand ------------------------------------------------------------------------------------------------


def test_layers_on_the_device() -> None:
    # embedding 0.2 and 0.4 ms, two layers 4 and 8; 3 W
    found = priced(Step(MOBILE, 2))
    close(found, ms=[4.2, 8.4], bytes_sent=[0, 0], joules=[0.0126, 0.0252], money=[0, 0])
    # going on there is no new visit
    close(priced(Step(MOBILE, 1), Step(MOBILE, 2)), ms=[4.2, 8.4])


def test_a_request_to_the_cloud() -> None:
    # sent (100 + ids) / 0.8: 150 and 175 bytes, 1.5 and 1.75 ms at 8e5 bit/s; 32 + 8 bytes come back, 50 / 0.8 with
    # what is lost, 0.25 ms; the round trip 62.5; twice the load: embedding 0.1 and 0.2, six layers 6 and 12 ms
    close(
        priced(Step(CLOUD, 6)),
        ms=[1.5 + 0.25 + 62.5 + 6.1, 1.75 + 0.25 + 62.5 + 12.2],
        bytes_sent=[150, 175],
        joules=[
            0.150 + 0.005 + 0.25 + 0.0625 + 0.0061 + 0.00175,
            0.175 + 0.005 + 0.25 + 0.0625 + 0.0122 + 0.002,
        ],
        money=[0.5 + 0.061, 0.5 + 0.122],
    )


def test_a_shipped_hidden_state() -> None:
    # 10 and 20 tokens of 8 values of 16 bits: 160 and 320 bytes in place of the ids; the cloud embeds nothing
    one, two = 260 / 0.8, 420 / 0.8
    ms = [4.2 + one / 100 + 0.25 + 62.5 + 4.0, 8.4 + two / 100 + 0.25 + 62.5 + 8.0]
    close(priced(Step(MOBILE, 2), RESUMED), ms=ms, bytes_sent=[one, two])


def test_a_bottleneck_ships_what_its_table_says() -> None:
    small = replace(TEXTS, state_bytes=np.array([24.0, 44.0]))
    for texts, sent in (
        (small, [124 / 0.8, 144 / 0.8]),
        (small.take(np.array([1])), [144 / 0.8]),
        (small.mean, [134 / 0.8]),
    ):
        close(priced(Step(MOBILE, 2), RESUMED, texts=texts), bytes_sent=sent)
    # who sends the tokens pays for those
    close(priced(Step(CLOUD, 6), texts=small), bytes_sent=[150, 175])


def test_from_the_edge_to_the_cloud_the_way_leads_through_the_device() -> None:
    tokens_again = priced(Step(EDGE, 3), Step(CLOUD, 6))
    edge, cloud = priced(Step(EDGE, 3)), priced(Step(CLOUD, 6))
    close(tokens_again, ms=(edge + cloud)[MS].tolist(), joules=(edge + cloud)[JOULES].tolist())
    # a hidden state comes down from the edge before it goes up
    resumed = priced(Step(EDGE, 3), RESUMED)
    down = 160 * 8000 / 16e6
    up = (160 - 20) / 0.8 * 8000 / 8e5
    assert resumed[MS, 0] - tokens_again[MS, 0] == pytest.approx(down + up - 0.1 - 3 * 1.0)
    # to the device nothing is sent
    home = priced(Step(EDGE, 3), Step(MOBILE, 4, resumes=True))
    assert home[BYTES].tolist() == edge[BYTES].tolist()
    assert home[MS, 0] - edge[MS, 0] == pytest.approx(down + 2.0)


def test_exits_of_one_server_are_one_request() -> None:
    close(priced(Step(CLOUD, 1), Step(CLOUD, 6)), ms=priced(Step(CLOUD, 6))[MS].tolist())


def test_exit_zero_and_the_embedding_that_a_router_looks_at() -> None:
    close(priced(EXIT_ZERO), ms=[0.1, 0.1], joules=[0.0003, 0.0003])
    looked = (priced(Step(CLOUD, 6), embeds=True) - priced(Step(CLOUD, 6)))[MS]
    assert looked.tolist() == pytest.approx([0.2, 0.4])
    # it is embedded once, whoever looks
    close(priced(Step(MOBILE, 2), embeds=True), ms=[4.2, 8.4])
    close(priced(), ms=[0, 0], bytes_sent=[0, 0], joules=[0, 0], money=[0, 0])


def test_another_model_on_a_tier_has_its_own_work() -> None:
    half = Pricer(by_hand(), width=WIDTH, n_classes=2, work={MOBILE: 0.5})
    close(half.trace([Step(MOBILE, 2)], TEXTS), ms=[2.2, 4.4])


def test_energy_of_a_layer_may_be_measured() -> None:
    def measured(document: dict[str, Any]) -> None:
        for point, joules in zip(document["mobile"]["points"], (0.5, 0.7), strict=True):
            point["layer_joules"] = joules

    texts = Texts(np.array([10.0, 15.0, 20.0]), np.zeros(3))
    close(pricer(profile_with(measured)).layer(MOBILE, texts), joules=[0.5, 0.6, 0.7], ms=[2, 3, 4])


def test_between_and_beyond_the_points_times_are_linear() -> None:
    lengths = np.array([1.0, 10.0, 12.0, 20.0, 40.0])
    two, one = by_hand().edge, profile_with(lambda it: it["edge"]["points"].pop()).edge
    assert two.layer_ms(lengths, width=WIDTH).tolist() == pytest.approx([0.1, 1, 1.2, 2, 4])
    assert one.layer_ms(lengths, width=WIDTH).tolist() == [1.0] * 5


def test_a_speed_is_turned_into_times_by_the_operations() -> None:
    # MobileBERT's paper counts 22.5 GFLOP for BERT-base at 128 tokens, all 12 layers
    flops = 12 * layer_flops(np.array([128.0]), width=768)[0]
    assert flops == pytest.approx(22.5e9, rel=0.02)
    profile = load_profile("phone-4g")
    took = 12 * profile.mobile.layer_ms(np.array([128.0]), width=768)[0]
    assert took == pytest.approx(342, rel=0.02)  # and measures 342 ms


# --- profiles and their faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READY)
def test_every_figure_of_a_ready_profile_has_a_source(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert unsourced(profile) == []
    # docs/explanation/costs.md tells them.
    kinds = ("published: ", "cited: ", "assumed: ", "measured: ")
    assert all(source.startswith(kinds) for source in profile.sources.values())


def test_the_radio_of_the_ready_profiles_is_the_published_model() -> None:
    # 438.39 mW a Mbit/s and 1288.04 mW at 5.85 Mbit/s up
    link = load_profile("phone-4g").to_cloud
    watts = (438.39 * 5.85 + 1288.04) / 1000
    sending = link.send_joules_per_byte * link.uplink_bps / 8
    assert sending + link.awake_watts == pytest.approx(watts, rel=1e-3)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(BY_HAND))
    assert load_profile(path) == by_hand()
    assert unsourced(by_hand())  # no source is asked of users


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mobil": {}}, "mobil"),
        ({"edge": {}}, "edge"),
        ({"edge": {"points": []}}, "edge"),
        ({"edge": {"points": [TWICE, ONCE]}}, "edge"),
        ({"edge": {"points": [{**ONCE, "layer_joules": 1}, TWICE]}}, "layer_joules"),
        ({"width": None}, "width"),
        ({"format": 2}, "format"),
        ({"sources": {"to_cloud.rtt": "x"}}, "to_cloud.rtt"),
        ({"to_edge": {**BY_HAND["to_edge"], "loss": 1.0}}, "to_edge.loss"),
        ({"to_edge": {**BY_HAND["to_edge"], "uplink_bps": 0}}, "to_edge.uplink_bps"),
    ],
)
def test_faults_of_a_profile_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**BY_HAND, **change}))
    with pytest.raises(OptionError) as caught:
        load_profile(path)
    said = str(caught.value)
    assert named in said and "--profile" in said and str(path) in said and "\n" not in said


def test_unknown_profiles_and_units_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=", ".join(READY)):
        load_profile("phone-5g")
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(OptionError, match="--profile"):
        load_profile(tmp_path / "no.json")
    with pytest.raises(OptionError, match="--profile"):
        Billing.of(None, "ms")
    with pytest.raises(OptionError, match=", ".join(UNITS)):
        Billing.of(None, "hours")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="--cost"):
        Billing.of("laptop", "ms", costs=CostModel())
    assert Billing.of(None, "lambda") is None


def test_times_of_another_encoder_are_refused() -> None:
    with pytest.raises(OptionError, match="16"):
        Pricer(by_hand(), width=16, n_classes=2)
    Pricer(load_profile("laptop"), width=16, n_classes=2)


# --- the cost model of a profile ------------------------------------------------------------------------------------


TRACES: list[list[Step]] = [
    [Step(MOBILE, 2)],
    [Step(EDGE, 3)],
    [Step(CLOUD, 6)],
    [Step(MOBILE, 2), Step(CLOUD, 6)],
    [Step(MOBILE, 2), RESUMED],
    [Step(MOBILE, 1), Step(EDGE, 3, resumes=True)],
    [EXIT_ZERO, Step(MOBILE, 2), Step(EDGE, 3), Step(CLOUD, 6)],
]


def without_embedding(document: dict[str, Any]) -> None:
    for tier in Tier:
        for point in document[tier]["points"]:
            del point["embedding_ms"]


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "lambda"])
def test_the_cost_model_is_the_profile_less_the_embedding(unit: Unit) -> None:
    found = pricer(profile_with(without_embedding))
    model, row = found.cost_model(unit, TEXTS), MEASURED_UNITS.index(unit)
    for steps in TRACES:
        # all figures are linear in the length here, so that the mean of costs is the cost of the mean
        assert model.of(steps) == pytest.approx(found.trace(steps, TEXTS)[row].mean())
    on_device = unit in ("ms", "joules")
    whole = Step(MOBILE if on_device else CLOUD, 6)
    assert model.reference(6) == pytest.approx(found.trace([whole], TEXTS)[row].mean())


def test_what_costs_nothing_is_no_unit() -> None:
    with pytest.raises(OptionError, match="--unit money"):
        pricer(money__cloud_second=0, money__cloud_request=0).cost_model("money", TEXTS)
    with pytest.raises(OptionError, match=r"mobile\.watts"):
        pricer(mobile__watts=0).cost_model("joules", TEXTS)
    with pytest.raises(OptionError, match="lambda"):
        pricer().cost_model("lambda", TEXTS)


def test_the_papers_price_hidden_states_like_tokens() -> None:
    resumed = [Step(MOBILE, 2), RESUMED]
    assert CostModel().of(resumed) == 3 + 3 + 4
    assert CostModel(state_to_cloud=7).of(resumed) == 3 + 3 + 7 + 4
    assert CostModel(state_to_cloud=7).of([Step(MOBILE, 2), Step(CLOUD, 6)]) == 3 + 3 + 6


def test_costs_may_be_held_against_the_cloud() -> None:
    model = CostModel(mobile_layer=0, held_against=CLOUD)
    assert model.reference(6) == 3 + 6
    assert model.unit_price(6, price=0.9) == pytest.approx(0.1)
    with pytest.raises(OptionError):
        CostModel(mobile_layer=0, cloud_layer=0, to_cloud=0, held_against=CLOUD)


# --- Neurosurgeon ---------------------------------------------------------------------------------------------------


def cut(unit: Unit, **changes: float) -> int:
    return best_partition(pricer(**changes).cost_model(unit, TEXTS), tuple(range(7)))


def test_the_cut_is_the_cheapest_of_all() -> None:
    # by hand, 15 tokens: a mobile layer 3 ms, a cloud layer 1.5; the tokens' request 1.625 + .25 + 62.5
    assert [round(pricer().cost_model("ms", TEXTS).of(partition(j, 6)), 3) for j in (0, 6)] == [
        73.375,
        18.0,
    ]
    assert cut("ms") == 6
    # a link without delay: 0.25 + 1.6 + 9 against 18
    assert cut("ms", to_cloud__round_trip_ms=0) == 0
    # and a cloud that is three times as busy
    assert cut("ms", to_cloud__round_trip_ms=0, cloud__load=6) == 6


def test_the_cut_moves_with_bandwidth_and_load() -> None:
    near = {"to_cloud__round_trip_ms": 0.0, "to_cloud__loss": 0.0}
    cuts = [cut("ms", to_cloud__uplink_bps=bps, **near) for bps in (1e4, 1e5, 1e6, 1e7)]
    assert cuts == [6, 6, 0, 0]
    cuts = [cut("ms", cloud__load=load, **near) for load in (1, 2, 4, 8)]
    assert cuts == [0, 0, 6, 6]
    # energy has its own optimum: sending 0.16 J against 0.054 on the device, unless sending is next to free
    assert cut("joules", **near) == 6
    free = {"to_cloud__send_joules_per_byte": 1e-7, "to_cloud__request_joules": 0.0}
    assert cut("joules", **near, **free, to_cloud__receive_joules_per_byte=0.0) == 0


def test_a_cut_in_between_wins_only_where_what_is_shipped_there_is_smaller() -> None:
    # the last layer is slow on the device alone: a table of costs that no profile of equal layers has
    model = CostModel(mobile_layer=1, cloud_layer=0.1, to_cloud=3, state_to_cloud=0)
    assert best_partition(model, tuple(range(7))) == 0
    for unit in ("ms", "joules"):
        for bps in np.geomspace(1e3, 1e9, 13):
            assert cut(unit, to_cloud__uplink_bps=bps) in (0, 6)


def test_equal_cuts_stay_on_the_device() -> None:
    # 1.5 * 6 = 3 + 6 at six layers: the papers' prices cannot tell
    assert best_partition(CostModel(), tuple(range(7))) == 6
    assert best_partition(CostModel(), tuple(range(13))) == 0


@pytest.mark.parametrize("layer", [0, 2, 6])
def test_the_last_exit_always_answers(layer: int) -> None:
    table = random_table(200)
    played = replay(Neurosurgeon(DEPTHS["ee"], layer=layer), table, costs=CostModel())
    np.testing.assert_array_equal(played.predictions, table.predictions[:, -1])
    assert played.traces == (partition(layer, 6),)
    assert set(played.layers.tolist()) == {6}
    assert set(played.tiers.tolist()) == {0 if layer == 6 else 2}


def test_it_cuts_where_there_are_exits() -> None:
    table = random_table(50)
    sparse = replace(table, layers=(2, 3, 6), logits=table.logits[:, [1, 2, 5]], dynamics=None)
    policy = Neurosurgeon.fit(Calibration(sparse, DEPTHS))
    assert policy.operating_point() == {"layer": 6.0}


# --- evaluations ----------------------------------------------------------------------------------------------------


def drawn(n: int = 400, seed: int = 2) -> ExitTable:
    table = random_table(n, seed=seed)
    lengths = np.random.default_rng(seed).integers(5, 40, n).astype(np.int32)
    return replace(table, n_tokens=lengths, payload_bytes=2 * lengths)


def fitted(billing: Billing | None, names: list[str]) -> tuple[dict[str, Policy], CostModel]:
    table = drawn(300, seed=1)
    costs = fitting_costs(billing, None, table)
    return fit_policies(Calibration(table, DEPTHS, costs=costs), names), costs


def judged(billing: Billing | None, *names: str) -> Evaluation:
    policies, costs = fitted(billing, list(names))
    told: dict[str, Any] = {"task": "t", "source": "s", "metric": "accuracy", "price": 0.1}
    return evaluate(drawn(), policies, costs=costs, billing=billing, **told)


@pytest.mark.parametrize("unit", UNITS)
def test_rows_are_told_in_the_unit_and_carry_all(unit: Unit) -> None:
    names, table = ("deebert", "dimee-fixed", "splitee", "neurosurgeon"), drawn()
    found = judged(Billing(by_hand(), unit), *names)
    assert (found.unit, found.profile, found.currency) == (unit, "by hand", "USD")
    assert all(row.measured is not None for row in found.rows)
    rows = {row.policy: row for row in found.rows}
    on_device, cloud = rows["bert-on-mobile"].measured, rows["all-cloud"].measured
    assert on_device is not None and cloud is not None
    texts = Texts.of(table.n_tokens, table.payload_bytes)
    by_trace = pricer().trace([Step(CLOUD, 6)], texts)
    assert cloud.ms.mean == pytest.approx(by_trace[MS].mean())
    half = 1.96 * by_trace[MS].std(ddof=1) / len(table) ** 0.5
    assert cloud.ms.ci95[1] - cloud.ms.mean == pytest.approx(half)
    assert rows["majority"].measured is not None
    assert rows["majority"].measured.ms.mean == 0
    for row in found.rows:
        assert row.measured is not None
        if unit != "lambda":
            assert row.cost == pytest.approx(row.measured.of(unit).mean)
        assert row.cost_change == pytest.approx(row.cost / found.reference_cost - 1)
    against = on_device if unit in ("ms", "joules") else cloud
    if unit != "lambda":
        assert found.reference_cost == pytest.approx(against.of(unit).mean)
    assert rows["all-cloud"].cost_vs_cloud == pytest.approx(1)


def test_without_a_profile_nothing_is_measured() -> None:
    found = judged(None, "deebert")
    assert (found.unit, found.profile) == ("lambda", None)
    assert {row.measured for row in found.rows} == {None}


def test_a_replay_is_priced_text_by_text_in_any_order() -> None:
    table = drawn()
    policies, costs = fitted(Billing(by_hand(), "ms"), ["splitee"])
    policy = policies["splitee"]
    meter = Meter.of(Billing(by_hand(), "ms"), TierTables(table), costs=costs)
    order = np.random.default_rng(0).permutation(len(table))
    played = replay(policy, table.take(order), costs=costs)
    spent = meter.replay(policy, played, order=order)
    assert spent.measures is not None
    texts = Texts.of(table.n_tokens, table.payload_bytes)
    for place, row in enumerate(order[:50]):
        steps = played.traces[played.took[place]]
        one = pricer().trace(steps, texts.take(np.array([row])))
        assert by_text(spent)[MS, row] == pytest.approx(one[MS, 0])
    assert spent.measures.ms.mean == spent.cost == pytest.approx(float(by_text(spent)[MS].mean()))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("unit", ["ms", "bytes"])
def test_every_policy_is_fitted_by_a_profile(name: str, unit: Unit) -> None:
    table = drawn(200, seed=1)
    costs = fitting_costs(Billing(load_profile("phone-4g"), unit), None, table)
    kind, met = POLICIES[name], drawn(60)
    restored = [
        None if kind.bottleneck is None else restored_of(each, kind.bottleneck)
        for each in (table, met)
    ]
    policy = kind.fit(Calibration(table, DEPTHS, costs=costs, restored=restored[0]))
    tables = TierTables(met, restored=restored[1])
    assert len(replay(policy, tables, costs=costs).predictions) == 60


def test_a_split_that_ships_much_is_avoided_where_shipping_is_dear() -> None:
    table = drawn(300, seed=1)
    shares = []
    for bps in (1e3, 1e9):
        billing = Billing(by_hand(to_cloud__uplink_bps=bps), "ms")
        costs = fitting_costs(billing, None, table)
        policy = SplitEe.fit(Calibration(table, DEPTHS, costs=costs, price=0.1))
        played = replay(policy, drawn(1500), costs=costs)
        shares.append(float((played.tiers[500:] == 2).mean()))
    assert shares[0] <= shares[1]


def test_a_mean_has_an_interval_of_1_96_standard_errors() -> None:
    # 1, 2 and 6: a mean of 3 and a variance of 14 / 2; 2, 2 and 5: 3 and 6 / 2
    values = [1.0, 2.0, 6.0], [0.0] * 3, [1.0] * 3, [2.0, 2.0, 5.0]
    found = Spent(0.0, np.array(values)).measures
    assert found is not None
    assert [found.of(unit).mean for unit in MEASURED_UNITS] == [3, 0, 1, 3]
    half = 1.96 * (7 / 3) ** 0.5
    assert found.ms.ci95 == pytest.approx((3 - half, 3 + half))
    assert found.bytes_sent.ci95 == (0, 0)
    assert found.joules.ci95 == (1, 1)
    assert found.money.ci95 == pytest.approx((3 - 1.96, 3 + 1.96))
    single = Spent(0.0, np.full((4, 1), 4.0)).measures
    assert single is not None and (single.ms.mean, single.ms.ci95) == (4, (4, 4))


def test_what_costs_differently_each_time_costs_the_mean() -> None:
    once, again = (Spent(cost, np.array([[ms, 2.0]] * 4)) for cost, ms in ((1.0, 2.0), (4.0, 5.0)))
    mean = Spent.mean_of([once, again])
    assert mean.cost == 2.5
    close(by_text(mean), ms=[3.5, 2], bytes_sent=[3.5, 2], joules=[3.5, 2], money=[3.5, 2])
    # Two texts, half of 1.5 to either side of 2.75, and a standard error of 0.75.
    assert mean.measures is not None
    assert mean.measures.ms.ci95 == pytest.approx((2.75 - 1.96 * 0.75, 2.75 + 1.96 * 0.75))
    assert Spent.mean_of([Spent(1.0, None), Spent(2.0, None)]).measured is None


def test_each_text_is_priced_by_the_step_that_was_picked_for_it() -> None:
    table = drawn(6)
    billing, costs = Billing(by_hand(), "ms"), CostModel(mobile_work=0.5)
    meter = Meter.of(billing, TierTables(table), costs=costs)
    steps, picks = [Step(MOBILE, 2), Step(CLOUD, 6)], np.array([0, 1, 1, 0, 0, 1])
    near, far = (by_text(meter.steps([step])) for step in steps)
    # A token takes 0.02 ms to embed and 0.2 ms a layer, here half of that.
    assert near[MS] == pytest.approx(0.22 * table.n_tokens)
    assert by_text(meter.choice(steps, picks)) == pytest.approx(np.where(picks, far, near))
    assert meter.steps(steps[:1]).cost == pytest.approx(near[MS].mean())
    in_lambda = Meter.of(Billing(by_hand(), "lambda"), TierTables(table), costs=costs)
    assert in_lambda.steps(steps[:1]).cost == costs.of(steps[:1])
    # Without a profile a cost is in lambda: three times 2 * 1.5 / 2, three times 3 + 6.
    bare = Meter.of(None, TierTables(table), costs=costs)
    assert bare.unit == "lambda"
    assert bare.choice(steps, picks).cost == in_lambda.choice(steps, picks).cost == (1.5 + 9) / 2
    assert bare.choice(steps, picks).measures is None


def test_states_behind_a_bottleneck_are_priced_by_their_own_size() -> None:
    table = drawn(6)
    restored = restored_of(table, "bottlenet")
    tables = TierTables(table, restored=restored)
    meter = Meter.of(Billing(by_hand(), "bytes"), tables, costs=CostModel())
    spent = by_text(meter.steps([Step(MOBILE, 2), Step(CLOUD, 6, resumes=True)]))
    assert spent[BYTES] == pytest.approx((100 + restored.table.payload_bytes) / 0.8)


def test_a_router_that_reads_embeddings_pays_for_them() -> None:
    policies, costs = fitted(Billing(by_hand(), "ms"), ["dimec-dc-fixed", "dimec-cascade"])
    table = drawn(30)
    meter = Meter.of(Billing(by_hand(), "ms"), TierTables(table), costs=costs)
    texts = Texts.of(table.n_tokens, table.payload_bytes)
    for name, embeds in (("dimec-dc-fixed", True), ("dimec-cascade", False)):
        played = replay(policies[name], table, costs=costs)
        spent = by_text(meter.replay(policies[name], played))
        for row, place in enumerate(played.took):
            alone = texts.take(np.array([row]))
            one = pricer().trace(played.traces[place], alone, embeds=embeds)
            assert spent[MS, row] == pytest.approx(one[MS, 0])
