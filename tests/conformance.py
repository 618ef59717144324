"""What a device in another language is held to: `python -m tests.conformance FOLDER` writes it.

`web/conformance/README.md` tells its format.

The expected answers are not those of `Device`: exits are read graph by graph, and a text's way is worked out here, with
what goes wrong written down by hand. `tests/integration/test_conformance.py` holds `Device` to the same file.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec import api
from dimec.bundle import Bundle, TierBundle, file_info, load_bundle, load_tier
from dimec.bundle.engines import TierEngine
from dimec.bundle.engines.tier import LAYERS_GRAPH, segment_name
from dimec.bundle.manifest import MANIFEST
from dimec.core.files import write_json
from dimec.core.tiers import EXIT_ZERO, TIERS, Reading, Step, Tier, layers_done, softmax
from dimec.data import reviews
from dimec.policies import Policy, View
from dimec.policies.cascade import DimecCascade
from dimec.policies.cascade_fit import Point
from dimec.policies.centroids import Centroids
from dimec.policies.consensus import consensus, log_opinions
from dimec.policies.dimec_dc import DimecDcAdaptive, DimecDcFixed
from dimec.policies.dimee import DimeeAdaptive, DimeeFixed
from dimec.policies.early_exit import EarlyExit
from dimec.policies.random import Random
from dimec.runs.exit_zero import EXIT_ZERO_FILE
from dimec.runs.run import Run
from dimec.runtime.device.resilience import WORDS, Fault, stand_ins
from dimec.runtime.device.sample import Text
from dimec.runtime.wire import encode_thresholds
from tests.bundles import fitted_to_pairs, save_dense_exit_zero, with_policy
from tests.conftest import untrained_bert

FILE = "conformance.json"
FORMAT = 1
APART = 1e-3
"""How far the confidences of two texts are apart that may take different ways."""
MOBILE, EDGE, CLOUD = Tier
SERVERS = (EDGE, CLOUD)
FIT: dict[str, Any] = {"pooling": "mean", "max_length": 128, "max_rows": 600, "epochs": 2}

STRANGE: tuple[str, ...] = (
    "",
    " ",
    "\t\n  two\u00a0\u2003blanks \r\n",
    "A",
    "Straße, naïve café, ÅNGSTRÖM, I\u0307stanbul",
    "e\u0301 and \u00e9, \u212b and \u00c5, \ufb01ne",
    "文字 和 カタカナ ひらがな 한국어 कखग العربية עברית ไทย",
    "🙂 👩‍👩‍👧 🏳️‍🌈 \U000f0000 \u200b\u00ad\ufeff",
    "bell \x07 and null \x00 and \x85 next line",
    "don't!!! $9.99 (50%) e-mail@example.com http://a.b/c?d=e#f ``quoted'' …—–",
    "[CLS] [SEP] [MASK] [UNK] [PAD]",
    "supercalifragilisticexpialidocious" * 8,
    "word " * 400,
    "a good film, and then " * 100 + "the end was bad",
)
"""Texts on which tokenizers differ, and texts that are cut."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came of asking a tier for one text: failed requests that count, and what went wrong first or last."""

    failed: int = 0
    fault: Fault | None = None
    answered: bool = False

    def words(self, tier: Tier) -> str | None:
        """Say it as `Answer.degraded` does, but for what stands in brackets."""
        if self.fault is None:
            return None
        if self.answered:
            return f"the {tier} tier {WORDS[self.fault]} at first, and answered at attempt {self.failed + 1}"
        tried = f" in {self.failed} attempts" if self.failed > 1 else ""
        return f"the {tier} tier {WORDS[self.fault]}{tried}"


WELL = Asked(answered=True)
Servers = Mapping[Tier, str | Sequence[Any]]


@dataclass(frozen=True)
class Scenario:
    """Texts through a device: how its servers behave, and what comes of every time that one is asked."""

    name: str
    policy: str
    servers: Servers
    asked: Mapping[Tier, Sequence[Asked]] = field(default_factory=dict)
    texts: int | None = None
    """How many of those that ask the edge; all texts by default."""
    settings: Mapping[str, Any] = field(default_factory=dict)


def lost(fault: Fault, failed: int = 1) -> Asked:
    return Asked(failed=failed, fault=fault)


ANSWERS: Sequence[Any] = ("answers",)
BOTH: Servers = {EDGE: ANSWERS, CLOUD: ANSWERS}
RESTING = lost(Fault.RESTING, 0)
GONE = lost(Fault.UNREACHABLE, 0)
# A server that never answered has not said its layers: nothing was asked for, and nothing is charged.
DOWN = (GONE, GONE, RESTING)


def outages(policy: str) -> Iterator[Scenario]:
    """Give what an outage does; the last thing that comes of asking a server holds for all that follows."""
    down = {EDGE: DOWN, CLOUD: DOWN}
    yield Scenario("the edge is down", policy, {**BOTH, EDGE: "down"}, {EDGE: DOWN})
    yield Scenario("the cloud is down", policy, {**BOTH, CLOUD: "down"}, {CLOUD: DOWN})
    yield Scenario("both are down", policy, dict.fromkeys(SERVERS, "down"), down)
    yield Scenario("no server is given", policy, {})


def faults(policy: str) -> Iterator[Scenario]:
    """Give what a server may do wrong, once for a text that it is asked for, and what comes of that."""

    def of_edge(
        name: str, does: Sequence[Any], *asked: Asked, texts: int = 1, **settings: float
    ) -> Scenario:
        servers = {**BOTH, EDGE: does}
        return Scenario(f"the edge {name}", policy, servers, {EDGE: asked}, texts, settings)

    for status, fault, failed in (
        (400, Fault.REFUSED, 1),
        (401, Fault.UNAUTHORISED, 1),
        (403, Fault.UNAUTHORISED, 1),
        (500, Fault.BROKEN, 3),
        (504, Fault.SLOW, 1),
    ):
        yield of_edge(f"says {status}", [{"status": status}], lost(fault, failed))
    busy = {"status": 429, "headers": {"retry-after": "3600"}}
    yield of_edge(
        "is overloaded for longer than a text may wait", [busy],
        lost(Fault.OVERLOADED), lost(Fault.OVERLOADED, 0), texts=2,
    )  # fmt: skip
    yield of_edge(
        "answers at the third attempt", [{"status": 503}, "closes", "answers"],
        Asked(failed=2, fault=Fault.BROKEN, answered=True), WELL, texts=3,
    )  # fmt: skip
    for lie in ("another model", "not finite", "other layers", "another request", "too few exits"):
        yield of_edge(f"lies: {lie}", [lie], lost(Fault.WRONG), RESTING, texts=3)
    yield of_edge("does not answer", ["hangs"], lost(Fault.SLOW), deadline_ms=1_000)
    yield of_edge(
        "is left alone, and comes back", [{"status": 500}, "answers"], lost(Fault.BROKEN), WELL,
        texts=3, attempts=1, opens_after=1, open_s=0,
    )  # fmt: skip
    yield Scenario(
        "the cloud closes connections, and is left alone",
        policy,
        {**BOTH, CLOUD: ["answers", "closes"]},
        {CLOUD: [WELL, lost(Fault.UNREACHABLE, 3), lost(Fault.UNREACHABLE, 2), RESTING]},
    )


# --- what exits say


@dataclass(frozen=True, eq=False)
class Said:
    """Texts, their token ids, and what every exit of every tier says of them."""

    texts: Sequence[Text]
    tokens: list[dict[str, list[int]]]
    embeddings: NDArray[np.float32]
    unseen: list[float]
    logits: Mapping[Tier, Mapping[int, NDArray[np.float32]]]

    @classmethod
    def of(cls, mobile: TierBundle, others: Sequence[TierBundle], texts: Sequence[Text]) -> Said:
        """Read texts one by one; others start from the same token ids."""
        tokenizer, zero = mobile.tokenizer(), mobile.exit_zero()
        engines = [TierEngine(tier, threads=1) for tier in (mobile, *others)]
        tokens, embeddings, unseen = [], [], []
        logits: dict[Tier, dict[int, list[NDArray[np.float32]]]] = {
            tier.tier: {layer: [] for layer in tier.layers} for tier in (mobile, *others)
        }
        logits[MOBILE][0] = []
        for text in texts:
            batch, whole = tokenizer.encode_one(*([text] if isinstance(text, str) else text))
            ids = {name: each[0].tolist() for name, each in batch.named().items()}
            tokens.append(ids | {"whole": whole.tolist()})
            read, share = zero.read(whole)
            logits[MOBILE][0].append(read)
            unseen.append(share)
            embeddings.append(engines[0].embed(batch)[1][0])
            for tier, engine in zip((mobile, *others), engines, strict=True):
                for layer, said in zip(tier.layers, engine.infer(batch)[0], strict=True):
                    logits[tier.tier][layer].append(said)
        stacked = {
            tier: {layer: np.stack(rows) for layer, rows in sorted(own.items())}
            for tier, own in logits.items()
        }
        return cls(texts, tokens, np.stack(embeddings), unseen, stacked)

    def probabilities(self, step: Step) -> NDArray[np.float64]:
        return softmax(self.logits[step.tier][step.layer])

    def document(self) -> dict[str, Any]:
        return {
            "texts": self.texts,
            "tokens": self.tokens,
            "embeddings": self.embeddings.tolist(),
            "unseen": self.unseen,
            "logits": {
                str(tier): {str(layer): rows.tolist() for layer, rows in own.items()}
                for tier, own in self.logits.items()
            },
        }


# --- what a device answers


class Walk:
    """One text's way through a policy: each step read, each asking of a server accounted for."""

    def __init__(self, bundle: TierBundle, policy: Policy, said: Said, run: Scenario) -> None:
        self._manifest, self._policy, self._said, self._run = bundle.manifest, policy, said, run
        self._costs = bundle.manifest.costs
        self._known: set[Tier] = set()
        self._asked: dict[Tier, Iterator[Asked]] = {
            tier: _lasting(run.asked.get(tier, (WELL,))) for tier in SERVERS
        }
        endpoints = [*policy.endpoints()]
        self._last = {
            tier: max(own, default=policy.depths.of(tier))
            for tier in (MOBILE, *run.servers)
            for own in [[each.layer for each in endpoints if each.tier is tier]]
        }
        self.thresholds: dict[Tier, list[Any]] = {tier: [] for tier in SERVERS}
        """Of every request its parameter `exit_threshold`."""

    def answer(self, row: int) -> dict[str, Any]:
        self._row, self._heard, self._failed = row, set[Tier](), 0.0
        self._notes: list[str] = []
        policy = self._policy
        view = View(embedding=self._said.embeddings[row])
        while (step := policy.decide(view)) is not None:
            if not self._reach(step, policy.exit_thresholds(view, step)):
                return self._stand_in(view, step)
            if step.layer == 0:
                view.unseen = self._said.unseen[row]
            view.steps.append(step)
            view.readings.append(self._reading(step))
        reading = policy.answer(view)
        policy.learn(view)
        return self._plain(reading, view.steps)

    def _reading(self, step: Step) -> Reading:
        said = self._said.probabilities(step)[self._row]
        label = int(said.argmax())
        return Reading(step.tier, step.layer, label, float(said[label]), said)

    def _reach(self, step: Step, leaves: Mapping[int, float], *, any_exit: bool = False) -> bool:
        """Tell whether a step's exit can be read, asking its server where nobody has.

        With ``any_exit`` an earlier exit will do, as far as the server has said which it has.
        """
        tier = step.tier
        if tier is MOBILE or tier in self._heard:
            return True
        if tier not in self._run.servers:
            self._notes.append(
                f"there is no {tier} tier, since the bundle lacks it and no URL of a server is given"
            )
            return False
        asked = next(self._asked[tier])
        layers = list(self._said.logits[tier])
        first = layers[0] if any_exit and leaves and tier in self._known else step.layer
        limits = [leaves.get(each, math.inf) if each >= first else math.inf for each in layers]
        self._known |= set() if self._run.servers[tier] == "down" else {tier}
        early = min(limits[:-1], default=math.inf) < math.inf
        sent = encode_thresholds(limits) if early else None
        self.thresholds[tier] += [sent] * (asked.failed + asked.answered)
        self._failed += asked.failed * self._costs.of([step])
        self._notes += [words] if (words := asked.words(tier)) else []
        if asked.answered:
            self._heard.add(tier)
        return asked.answered

    def _stand_in(self, view: View, step: Step) -> dict[str, Any]:
        for tier in stand_ins(step, last=self._last):
            last = self._last[tier]
            leaves = self._policy.exit_thresholds(view, Step(tier, last))
            if not self._reach(Step(tier, last), leaves, any_exit=True):
                continue
            read = [layer for layer in self._said.logits[tier] if 0 < layer <= last]
            sure = (
                layer
                for layer in read
                if self._reading(Step(tier, layer)).confidence >= leaves.get(layer, math.inf)
            )
            taken = Step(tier, next(sure, read[-1] if read else 0))
            steps = list(view.steps)
            if taken.layer > layers_done(steps, taken):
                steps.append(taken)
            self._notes.append(f"so the {tier} tier answered")
            return self._plain(self._reading(taken), steps)
        raise AssertionError("the mobile tier answers always")

    def _plain(self, reading: Reading, steps: Sequence[Step]) -> dict[str, Any]:
        return {
            "text": self._row,
            "label": self._manifest.label_names[reading.label],
            "confidence": reading.confidence,
            "probabilities": reading.probabilities.tolist(),
            "tier": str(reading.tier),
            "layer": reading.layer,
            "cost": self._costs.of(steps) + self._failed,
            "steps": [[str(step.tier), step.layer] for step in steps],
            "degraded": ", ".join(self._notes) or None,
        }


def _lasting(asked: Sequence[Asked]) -> Iterator[Asked]:
    yield from asked
    while True:
        yield asked[-1]


SETTINGS = {
    "deadline_ms": 20_000,
    "attempts": 3,
    "backoff_ms": 1,
    "opens_after": 5,
    "open_s": 60,
    "probe_ms": 10_000,
}


def played(
    folder: Path, run: Scenario, said: Said, rows: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return a run with its expected answers to some texts, by default to all."""
    bundle = load_tier(folder / run.policy / MOBILE)
    policy = bundle.policy()
    walk = Walk(bundle, policy, said, run)
    answers = [walk.answer(row) for row in (range(len(said.texts)) if rows is None else rows)]
    learnt = {name: each.tolist() for name, each in policy.state().arrays.items()}
    return {
        "name": f"{run.policy}: {run.name}",
        "policy": run.policy,
        "bundle": f"{folder.name}/{run.policy}",
        "settings": {**SETTINGS, **run.settings},
        "servers": {
            str(tier): how if isinstance(how, str) else list(how)
            for tier, how in run.servers.items()
        },
        "answers": answers,
        "exit_thresholds": {str(tier): each for tier, each in walk.thresholds.items()},
        "learnt": learnt if policy.learns else None,
    }


# --- policies that take every way


def cascade_over(
    said: Said, policy: Policy, *, first: Step, limit: float = math.inf
) -> DimecCascade:
    """Make a cascade whose borders are quantiles of these very texts, so that each way is taken by some of them."""
    layers = {tier: [layer for layer in own if layer] for tier, own in said.logits.items()}
    draws = np.random.default_rng(7)
    points: list[Point] = []

    def grow(steps: tuple[Step, ...], rows: NDArray[np.intp], strange: bool) -> None:
        weights = draws.uniform(0.3, 1.2, len(steps))
        if strange:
            weights[0] = 0.0
        last = steps[-1]
        deeper = {tier: [each for each in own if each > last.layer] for tier, own in layers.items()}
        options: list[Step | None] = [Step(CLOUD, each) for each in deeper[CLOUD][:1]]
        if last.tier is MOBILE:
            options += [Step(EDGE, each) for each in deeper[EDGE][-1:]]
            options += [Step(MOBILE, each) for each in deeper[MOBILE][:1]]
        options.append(None)
        confidence = said.probabilities(last)[rows].max(axis=1)
        if last.tier is not CLOUD:
            opinions = np.stack([said.probabilities(each)[rows] for each in steps], axis=1)
            confidence = consensus(log_opinions(opinions), weights).max(axis=1)
        # Between two texts that are not nearly alike, so that the last digit of a reading decides nothing.
        ranked = np.unique(confidence)
        apart = np.flatnonzero(np.diff(ranked) > APART)
        middles = np.append((ranked[apart] + ranked[apart + 1]) / 2, 2.0)
        borders = middles[np.arange(1, len(options)) * len(middles) // len(options)].tolist()
        points.append(
            Point(steps, tuple(weights.tolist()), tuple(options), tuple(borders), strange)
        )
        picks = np.searchsorted(borders, confidence, side="right")
        for place, option in enumerate(options):
            if option is not None:
                grow((*steps, option), rows[picks == place], strange)

    strange = np.array(said.unseen) > limit
    grow((first,), np.flatnonzero(~strange), False)
    if math.isfinite(limit):
        grow((first,), np.flatnonzero(strange), True)
    return DimecCascade(policy.depths, points, unseen_limit=limit)


def policies_over(said: Said, policy: Policy) -> Iterator[tuple[str, Policy]]:
    """Give every kind of policy that a device in another language is to know, fitted to these texts."""
    depths, rows = policy.depths, said.embeddings
    pools = np.argsort(np.argsort(rows[:, 0])) * 3 // len(rows)
    centroids = Centroids.of_pools(rows, pools)
    surest = said.probabilities(Step(MOBILE, min(said.logits[MOBILE].keys() - {0}))).max(axis=1)
    alpha = float(np.quantile(surest, 0.5))
    layers = tuple(layer for layer in said.logits[MOBILE] if layer)
    edge = tuple(said.logits[EDGE])
    for dc in (DimecDcFixed, DimecDcAdaptive):
        yield dc.name, dc(depths, _copied(centroids), alpha=alpha, beta=0.1)
    for ee in (DimeeFixed, DimeeAdaptive):
        yield (
            ee.name,
            ee(
                depths,
                _copied(centroids),
                thresholds={"alpha": alpha},
                layers=layers,
                edge_layers=edge,
            ),
        )
    yield "cascade-from-mobile", cascade_over(said, policy, first=Step(MOBILE, layers[0]))
    yield "cascade-from-exit-zero", cascade_over(said, policy, first=EXIT_ZERO)
    limit = float(np.quantile(said.unseen, 0.7))
    yield "cascade-with-strange-texts", cascade_over(said, policy, first=EXIT_ZERO, limit=limit)
    if layers[-1] == depths.cloud:
        yield EarlyExit.name, EarlyExit(depths, layers=layers, threshold=alpha)


def _copied(centroids: Centroids) -> Centroids:
    return Centroids(centroids.sums, centroids.counts)


# --- the bundles


def whole_on_mobile(bundle: Bundle, folder: Path) -> Bundle:
    """Copy a bundle whose device has every layer and a dense part of exit zero, and cuts long texts in the middle."""
    shutil.copytree(bundle.folder, folder)
    mobile, cloud = (load_tier(folder / tier) for tier in (MOBILE, CLOUD))
    files = dict(mobile.manifest.files)
    for name in (LAYERS_GRAPH, *map(segment_name, cloud.layers)):
        shutil.copyfile(cloud.path(name), mobile.folder / name)
    save_dense_exit_zero(mobile, folder / MOBILE / EXIT_ZERO_FILE)
    for name in (LAYERS_GRAPH, EXIT_ZERO_FILE, *map(segment_name, cloud.layers)):
        files[name] = file_info(folder / MOBILE / name)
    for tier in TIERS:
        part = bundle.of(tier)
        assert part is not None
        own = {"files": files, "layers": cloud.layers} if tier is MOBILE else {}
        changed = part.manifest.model_copy(update={"cut": "head-tail"} | own)
        write_json(folder / tier / MANIFEST, changed.model_dump(mode="json"))
    return load_bundle(folder)


def suite(folder: Path, bundle: Bundle, texts: Sequence[Text]) -> dict[str, Any]:
    """Write a folder with the servers' tiers, and a device's for every policy; return what they say of texts."""
    assert bundle.edge is not None and bundle.cloud is not None
    said = Said.of(bundle.mobile, (bundle.edge, bundle.cloud), texts)
    folder.mkdir(parents=True)
    for tier in SERVERS:
        shutil.copytree(bundle.folder / tier, folder / tier)
    own, names = bundle.mobile.policy(), []
    unknown = ("unknown", Random(own.depths, seed=0))
    for name, policy in (*policies_over(said, own), unknown):
        with tempfile.TemporaryDirectory() as work:
            made = with_policy(bundle, Path(work) / "bundle", policy)
            shutil.copytree(made.mobile.folder, folder / name / MOBILE)
        names.append(name)
    names.remove("unknown")
    runs = [played(folder, Scenario("every server is well", name, BOTH), said) for name in names]
    for run in list(runs):
        name = run["policy"]
        asking = [each["text"] for each in run["answers"] if ["edge", 2] in each["steps"]]
        if run["learnt"] or not asking or bundle.mobile.manifest.task.pairs:
            continue
        runs += [played(folder, each, said) for each in outages(name)]
        if name in ("dimee-fixed", "cascade-from-exit-zero") and len(bundle.mobile.layers) == 1:
            runs += [
                played(folder, each, said, asking[: each.texts] if each.texts else None)
                for each in faults(name)
            ]
    return {
        "name": folder.name,
        "model_fingerprint": bundle.mobile.manifest.model_fingerprint,
        "layers": {str(tier): list(said.logits[tier]) for tier in SERVERS},
        "readings": said.document(),
        "runs": runs,
        "unknown": [f"{folder.name}/unknown"],
    }


def share_equal_files(folder: Path) -> None:
    """Let equal files of a folder be one, since every policy has a device of its own."""
    seen: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            first = seen.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
            if first is not path:
                path.unlink()
                os.link(first, path)


def write(folder: Path, run: Run, export: Bundle, pairs: Bundle) -> Path:
    """Write the bundles and the file of a run of single texts and of a bundle of pairs; return the file."""
    with tempfile.TemporaryDirectory() as work:
        texts = [*reviews(46, seed=7).first, *STRANGE]
        few = [*reviews(40, seed=9).first[:20]]
        couples: list[Text] = [*zip(few, reversed(few), strict=True)]
        couples += [(STRANGE[-1], few[0]), (few[0], STRANGE[-1]), (STRANGE[-1], STRANGE[-2])]
        couples += [(few[0], few[0]), ("", ""), ("", few[0]), (STRANGE[6], STRANGE[7])]
        whole = whole_on_mobile(export, Path(work) / "whole")
        suites = [
            suite(folder / "texts", export, texts),
            suite(folder / "whole", whole, texts),
            suite(folder / "pairs", pairs, couples),
        ]
        api.export(run, out=Path(work) / "int8", policy="dimec-dc-fixed", quantize="mobile")
        int8 = load_bundle(Path(work) / "int8").mobile
        shutil.copytree(int8.folder, folder / "int8" / "dimec-dc-fixed" / MOBILE)
        suites.append(
            {
                "name": "int8",
                "model_fingerprint": int8.manifest.model_fingerprint,
                "layers": {},
                "readings": Said.of(int8, (), texts).document(),
                "runs": [],
                "unknown": [],
            }
        )
    share_equal_files(folder)
    path = folder / FILE
    write_json(path, {"format": FORMAT, "suites": suites})
    return path


def main() -> None:
    """Fit two small models, and write what their bundles have to say."""
    folder = Path(sys.argv[1])
    if folder.exists():
        sys.exit(f"{folder} is there already: name a folder that is not")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        backbone = untrained_bert(work / "backbone", layers=4, width=32)
        run = api.fit(
            "reviews", out=work / "run", backbone=str(backbone), head_learning_rate=0.01, **FIT
        )
        api.export(run, out=work / "export", policy="dimec-dc-fixed")
        (work / "pairs").mkdir()
        pairs = fitted_to_pairs(backbone, work / "pairs")[1]
        path = write(folder, run, load_bundle(work / "export"), pairs)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
