"""Bottlenecks of split computing: what passes through them, what learns when, and how replay reads them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dimec.core.errors import ContractError, OptionError
from dimec.core.tiers import Depths, Method, Step, Tier
from dimec.costs.model import CostModel
from dimec.evaluation.rows import Lineup, evaluate
from dimec.policies import POLICIES, Calibration, Policy
from dimec.policies.bottleneck import BottleFit
from dimec.policies.replay import replay
from dimec.runs.codes import Code, CodeError, Kind
from dimec.runs.compressed import CompressOptions
from dimec.runs.exit_table import ExitTable, Restored, TierTables
from dimec.training.compressing import (
    BOTTLENECK_STAGES,
    BottleneckStage,
    build_stage_optimizer,
    distillation_loss,
    squared_distance,
    stage_loss,
)
from dimec.training.epochs import sum_of_exit_losses
from dimec.training.model import Adapter, MultiExitEncoder, Pooling
from dimec.training.model.bottleneck import (
    BottleNetUnit,
    add_noise,
    build_bottleneck,
    erase_bits,
    noise_deviation,
    normalise_power,
    quantise,
    to_bytes_and_back,
)
from dimec.training.model.split import SplitEncoder
from tests.unit.encoders import small_bert
from tests.unit.tables import random_table, restored_of

KINDS: tuple[Kind, ...] = ("bottlenet", "bottlenet-pp", "bottlefit")
DEPTHS: dict[Method, Depths] = {"dc": Depths(2, 3, 6), "ee": Depths(2, 4, 6)}
COSTS = CostModel()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def options(kind: Kind, **changes: object) -> CompressOptions:
    chosen = {"kind": kind, "layer": 2, "width": 4, **changes}
    return CompressOptions.model_validate(chosen).resolved()


def encoder() -> MultiExitEncoder:
    bert = small_bert(layers=4, width=16, attention="sdpa", add_pooling_layer=False)
    adapter = Adapter(bert)
    return MultiExitEncoder(adapter, exits=(1, 2, 3, 4), n_classes=2, pooling=Pooling.MEAN)


def split_of(kind: Kind, **changes: object) -> SplitEncoder:
    torch.manual_seed(1)
    chosen = options(kind, **changes)
    return SplitEncoder(encoder(), build_bottleneck(chosen, 16), after=chosen.layer)


IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


# --- what has no gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 32, 256])
def test_what_was_quantised_comes_back_as_it_was(levels: int) -> None:
    numbers = torch.linspace(-1, 1, 501)
    arrived = quantise(numbers, levels)
    torch.testing.assert_close(quantise(arrived, levels), arrived)
    assert (arrived - numbers).abs().max() <= 1 / (levels - 1) + 1e-6


def test_backwards_rounding_and_erasing_are_the_identity() -> None:
    weights = torch.rand(3, 5)
    numbers = torch.rand(3, 5, requires_grad=True)
    for arrived in (quantise(numbers, 4), erase_bits(numbers, 0.3, generator())):
        (gradient,) = torch.autograd.grad((arrived * weights).sum(), numbers)
        assert torch.equal(gradient, weights)


def test_bytes_by_a_samples_own_range() -> None:
    numbers = torch.randn(2, 5, 4, generator=generator())
    numbers[1, 3:] = 1e6  # padding must not stretch the range
    back = to_bytes_and_back(numbers, MASK)
    for row, n in ((0, 5), (1, 3)):
        there = numbers[row, :n]
        step = (there.max() - there.min()) / 255
        assert (back[row, :n] - there).abs().max() <= step / 2 + 1e-6
        assert len(back[row, :n].unique()) <= 256
    constant = torch.full((1, 5, 4), 0.3)
    assert torch.allclose(to_bytes_and_back(constant, MASK[:1]), constant)


def test_symbols_have_mean_power_one_whatever_the_padding_holds() -> None:
    symbols = torch.randn(2, 5, 4, generator=generator()) * 7
    sent = normalise_power(symbols, MASK)
    assert sent[0].square().mean() == pytest.approx(1, abs=1e-5)
    assert sent[1, :3].square().mean() == pytest.approx(1, abs=1e-5)
    symbols[1, 3:] = 100
    assert torch.allclose(normalise_power(symbols, MASK)[1, :3], sent[1, :3])


@pytest.mark.parametrize("snr_db", [-3.0, 0.0, 10.0])
def test_noise_has_the_power_that_the_ratio_says(snr_db: float) -> None:
    symbols = normalise_power(torch.randn(1, 400, 100, generator=generator()), torch.ones(1, 400))
    noise = add_noise(symbols, noise_deviation(snr_db), generator(1)) - symbols
    ratio = 10 * torch.log10(symbols.square().mean() / noise.square().mean())
    assert float(ratio) == pytest.approx(snr_db, abs=0.1)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    again = add_noise(symbols, noise_deviation(snr_db), generator(1)) - symbols
    assert torch.equal(noise, again)


def test_erased_bits_are_worth_half_of_their_weight() -> None:
    numbers = torch.rand(200, 100, generator=generator())
    assert torch.allclose(erase_bits(numbers, 0.0, generator()), numbers, atol=0.5 / 255 + 1e-6)
    # with nearly all bits gone, hardly anything but the middle arrives
    assert float((erase_bits(numbers, 0.999, generator()) - 0.5).abs().mean()) < 0.01
    # the error of one bit is half its weight, so its variance is known
    rate = 0.1
    error = erase_bits(numbers, rate, generator(2)) - numbers
    expected = rate * sum((2**bit / 2 / 255) ** 2 for bit in range(8))
    assert float(error.square().mean()) == pytest.approx(expected, rel=0.05)
    same, other = (erase_bits(numbers, rate, generator(seed)) - numbers for seed in (2, 3))
    assert torch.equal(error, same) and not torch.equal(error, other)


SENT: dict[str, dict[str, object]] = {
    "bottlenet": {"levels": 8},
    "bottlenet, pooled": {"levels": 256, "pool": 2},
    "bottlenet-pp": {"channel": "erasure", "erasure_rate": 0.0},
    "bottlefit": {},
}


@pytest.mark.parametrize("name", SENT)
def test_the_bytes_that_are_counted_are_those_that_are_sent(name: str) -> None:
    kind = next(each for each in KINDS if each == name.partition(",")[0])
    chosen = options(kind, **SENT[name])
    unit, code = build_bottleneck(chosen, 16).eval(), chosen.code
    hidden = torch.randn(2, 5, 16, generator=generator())
    with torch.no_grad():
        numbers = unit.encode(hidden, MASK)
        arrived = unit.send(numbers, MASK, generator()).numpy()
        sizes = unit.size(numbers, MASK)
    for row, n in ((0, 5), (1, 3)):
        pooled = code.pooled(hidden[row, :n].numpy())
        with torch.no_grad():
            reduced = unit.reduce(torch.from_numpy(pooled)[None])[0].numpy()
        np.testing.assert_allclose(reduced, numbers[row, : code.length(n)], atol=1e-6)
        data = code.pack(numbers[row, : code.length(n)].numpy())
        assert len(data) == sizes[row]
        for sent in (data, data + bytes(9)):  # a row of a longer batch ends with zeros
            got = code.unpack(sent, n_tokens=n)
            np.testing.assert_allclose(got, arrived[row, : code.length(n)], atol=1e-6)


def test_deflate_packs_what_repeats() -> None:
    code = Code("bottlenet", 4, levels=8)
    assert len(code.pack(np.zeros((500, 4), dtype=np.float32))) < 20


def test_bytes_that_no_sample_has_are_refused() -> None:
    packed = Code("bottlenet", 4, levels=8)
    numbers = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
    bomb = packed.pack(np.zeros((100_000, 4), dtype=np.float32))
    assert len(bomb) < 1000
    flat, ranged = Code("bottlenet-pp", 4), Code("bottlefit", 4)
    extreme = np.array([-3e38, 3e38], dtype="<f4").tobytes() + bytes(20)
    cases = [
        (packed, bomb, "inflates to more bytes, its tokens take 20"),
        (packed, packed.pack(numbers[:4]), "inflates to 16 bytes"),
        (packed, packed.pack(numbers)[:-1], "inflates to|deflate"),
        (packed, b"\xff" * 30, "no valid deflate"),
        (packed, b"", "inflates to 0 bytes"),
        (packed, packed.pack(numbers) + b"\x00\x01", "goes on"),
        (packed, Code("bottlenet", 4).pack(numbers), "a code above 7"),
        (flat, bytes(19), "has 19 bytes, its tokens take 20"),
        (flat, bytes(20) + b"\x01", "goes on"),
        (ranged, ranged.pack(numbers)[:-1], "has 27 bytes, its tokens take 28"),
        (ranged, extreme, "must be finite"),
        (ranged, np.array([1, np.nan], dtype="<f4").tobytes() + bytes(20), "must be finite"),
        (ranged, np.array([1, 0], dtype="<f4").tobytes() + bytes(20), "ascend"),
    ]
    for code, data, says in cases:
        with pytest.raises(CodeError, match=says):
            code.unpack(data, n_tokens=5)


def test_pooled_tokens_are_counted_and_restored_to_their_number() -> None:
    unit = BottleNetUnit(16, 4, pool=2, levels=256)
    hidden = torch.randn(2, 5, 16, generator=generator())
    numbers = unit.encode(hidden, MASK)
    assert numbers.shape == (2, 3, 4)
    assert unit(hidden, MASK).shape == hidden.shape
    # the second row's third token shares its pool with padding, which counts nothing
    alone = torch.tanh(unit.encoder(hidden[1, 2]))
    assert torch.allclose(numbers[1, 1], alone, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_that_arrives(kind: Kind) -> None:
    split = split_of(kind, **({"snr_db": 60.0} if kind == "bottlenet-pp" else {})).eval()
    hidden, _ = split.device(IDS, MASK)
    both = split.through(hidden, MASK)
    alone = split.through(hidden[1:, :3], MASK[1:, :3])
    assert torch.allclose(both[1, :3], alone[0], atol=0.05 if kind == "bottlenet-pp" else 1e-5)


# --- what learns when -----------------------------------------------------------------------------------------------


def test_the_stages_are_the_papers() -> None:
    order = {
        kind: [(stage.learns, stage.learns_from) for stage in stages]
        for kind, stages in BOTTLENECK_STAGES.items()
    }
    everything = ("encoder", "decoder", "tail")
    assert order == {
        "bottlenet": [(everything, "labels")],
        "bottlenet-pp": [(("encoder", "decoder"), "labels"), (everything, "labels")],
        "bottlefit": [(("encoder", "decoder"), "states"), (("decoder", "tail"), "logits")],
    }


@pytest.mark.parametrize(
    ("kind", "stage"),
    [(kind, stage) for kind, stages in BOTTLENECK_STAGES.items() for stage in stages],
    ids=lambda value: getattr(value, "name", value),
)
def test_frozen_parts_stay_and_the_others_move(kind: Kind, stage: BottleneckStage) -> None:
    split = split_of(kind)
    chosen = options(kind)
    before = {name: each.clone() for name, each in split.state_dict().items()}
    optimizer = build_stage_optimizer(stage, split, chosen)
    split.train()
    assert not split.model.training
    assert split.student.training is ("tail" in stage.learns)
    hidden, _ = split.device(IDS, MASK)
    loss, _ = stage_loss(stage, split, hidden, MASK, torch.tensor([0, 1]), options=chosen)
    loss.backward()
    optimizer.step()
    parts: dict[str, nn.Module] = {
        "encoder": split.bottleneck.encoder,
        "decoder": split.bottleneck.decoder,
        "tail": split.tail,
    }
    moved = {
        name for name, each in split.state_dict().items() if not torch.equal(each, before[name])
    }
    for name, part in parts.items():
        own = {id(each) for each in part.parameters()}
        changed = any(id(each) in own and key in moved for key, each in split.named_parameters())
        assert changed is (name in stage.learns), name
    # the device's layers, and the model that teaches, are never touched
    assert not [name for name in moved if name.startswith("model.")]


def test_the_device_is_the_runs_own() -> None:
    split = split_of("bottlenet").train()
    model = encoder().eval()
    hidden, embedding = split.device(IDS, MASK)
    whole = model(IDS, MASK)
    assert torch.equal(embedding, whole.embedding)
    again, logits = model.segment(model.enter(IDS, MASK)[0], MASK, after=0, layer=2)
    assert torch.equal(hidden, again)
    assert torch.equal(logits, whole.logits[:, 1])
    # untrained and without a bottleneck, the tail goes on as the whole model does
    split.eval()
    assert torch.equal(split.cloud(hidden, MASK).logits, whole.logits[:, 2:])
    assert torch.equal(split.teacher(hidden, MASK).logits, whole.logits[:, 2:])


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    expected = np.log(1 + np.exp(-2)) + np.log(1 + np.exp(1))
    assert float(sum_of_exit_losses(logits, torch.tensor([0]))) == pytest.approx(expected, rel=1e-5)
    ours, theirs = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2.0, 2.0], [50.0, 50.0, 50.0]]])
    assert float(squared_distance(ours, theirs, torch.tensor([[1, 0]]))) == 9
    split = split_of("bottlefit").eval()
    hidden, _ = split.device(IDS, MASK)
    teacher = split.teacher(hidden, MASK)
    assert float(distillation_loss(teacher, teacher, temperature=3.0)) == pytest.approx(0, abs=1e-6)
    other = split.cloud(torch.zeros_like(hidden), MASK)
    assert float(distillation_loss(other, teacher, temperature=3.0)) > 0


# --- options --------------------------------------------------------------------------------------------------------


def test_a_name_says_what_shapes_it() -> None:
    assert options("bottlenet", width=8).name == "bottlenet-l2w8"
    assert options("bottlenet", pool=2, levels=4).name == "bottlenet-l2w4p2q4"
    assert options("bottlenet-pp").name == "bottlenet-pp-l2w4-snr10"
    assert options("bottlenet-pp", channel="erasure").name == "bottlenet-pp-l2w4-era1"
    assert options("bottlefit", temperature=2.0).name == "bottlefit-l2w4"
    assert options("bottlefit", epochs=7).name == "bottlefit-l2w4"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bottlenet", {"snr_db": 3.0}),
        ("bottlenet-pp", {"levels": 4}),
        ("bottlenet-pp", {"erasure_rate": 0.1}),
        ("bottlenet-pp", {"channel": "erasure", "snr_db": 1.0}),
        ("bottlefit", {"channel": "awgn"}),
    ],
)
def test_options_of_another_kind_are_refused(kind: Kind, changes: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="means nothing for"):
        options(kind, **changes)
    assert options("bottlenet-pp").resolved() == options("bottlenet-pp")


# --- replay and rows ------------------------------------------------------------------------------------------------


def fitted(kind: str, table: ExitTable) -> Policy:
    return POLICIES[kind].fit(Calibration(table, DEPTHS, restored=restored_of(table, kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_cloud_answers_from_what_was_restored(kind: str) -> None:
    table = random_table(200)
    restored = restored_of(table, kind)
    played = replay(fitted(kind, table), TierTables(table, restored=restored), costs=COSTS)
    np.testing.assert_array_equal(played.predictions, restored.table.predictions[:, -1])
    assert (played.predictions != table.predictions[:, -1]).any()
    assert set(played.tiers.tolist()) == {2} and set(played.layers.tolist()) == {6}
    # two layers on the device, one transfer, four in the cloud
    assert set(played.costs.tolist()) == {3.0 + 3.0 + 4.0}


def test_a_policy_and_its_bottleneck_belong_together() -> None:
    table = random_table(50)
    tables = TierTables(table, restored=restored_of(table, "bottlefit"))
    for policy, read in (
        (fitted("bottlenet", table), tables),
        (POLICIES["splitee"].fit(Calibration(table, DEPTHS)), tables),
        (fitted("bottlefit", table), TierTables(table)),
        (BottleFit(DEPTHS["ee"], layer=3, width=4), tables),
    ):
        with pytest.raises(ContractError):
            replay(policy, read, costs=COSTS)
    with pytest.raises(ContractError):
        POLICIES["bottlefit"].fit(Calibration(table, DEPTHS))
    lack = POLICIES["bottlefit"].missing_input(Calibration(table, DEPTHS))
    assert lack is not None and lack.command == "compress" and lack.option == ("kind", "bottlefit")


def test_a_restored_table_is_of_the_encoders_samples() -> None:
    table = random_table(50)
    restored = restored_of(table, "bottlefit")
    for wrong in (
        lambda: TierTables(random_table(50, seed=4), restored=restored),
        lambda: TierTables(table, restored=replace(restored, after=0)),
        lambda: TierTables(table, {Tier.MOBILE: table}, restored=restored),
        lambda: Restored("bottlefit", "name", 4, 2, table),
    ):
        with pytest.raises(ContractError):
            wrong()
    rows = np.array([3, 1])
    taken = TierTables(table, restored=restored).take(rows).restored
    assert taken is not None
    np.testing.assert_array_equal(taken.table.labels, table.labels[rows])


def test_the_row_has_chance_with_the_clouds_answer_from_the_tokens() -> None:
    table = random_table(400)
    restored = restored_of(table, "bottlefit")
    calibration = Calibration(table, DEPTHS, restored=restored)
    policy = BottleFit.fit(calibration)
    lineup = Lineup(TierTables(table, restored=restored), {"bottlefit-l2w4": policy}, COSTS)
    found = evaluate(
        table, {}, task="t", source="s", metric="accuracy", costs=COSTS, price=0.1,
        lineups=[lineup],
    )  # fmt: skip
    rows = {row.policy: row for row in found.rows}
    row = rows["bottlefit-l2w4"]
    assert row.accuracy == restored.table.right[:, -1].mean()
    assert row.random_at_shares == pytest.approx(row.accuracy)
    # dearer than sending the tokens: random at its cost is all-cloud, or whatever else is better for less
    assert row.cost > rows["all-cloud"].cost
    assert row.random_at_cost is not None
    assert row.random_at_cost >= rows["all-cloud"].accuracy - 1e-9
    assert row.shipped_bytes == restored.table.payload_bytes.mean()
    assert rows["all-cloud"].accuracy == table.right[:, -1].mean()
    assert Step(Tier.CLOUD, 6) in policy.endpoints()
