"""Measuring a bundle's tiers on this machine: latency and memory, every case in a process of its own.

Engines in one process distort each other's timings, and memory is known only of a whole process. A child reads one
`Case` as JSON from stdin and writes its `Measurement` to stdout: ``python -m dimec.bundle.profiling``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
from pydantic import Field

from dimec.bundle import TierBundle, TierManifest, is_bundle, load_tier
from dimec.bundle.choosing import FORMAT, Conditions, Measurement, Profile, installed_engines
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.bundle.engines.hardware import machine, peak_memory_bytes, resident_memory_bytes
from dimec.core.errors import BundleError, DimecError, EngineError, MissingExtraError, OptionError
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import TIERS, softmax
from dimec.core.untrusted import Record
from dimec.core.version import __version__
from dimec.costs.options import LENGTHS, ProfileOptions
from dimec.costs.profiles import CostProfile

_WARM_UP_RUNS = 3
_MIN_RUNS = 10
_MAX_RUNS = 500


class Case(Conditions):
    """What to measure: a tier's folder under some conditions, for about so many seconds."""

    folder: str
    seconds: float = Field(gt=0, le=600)


class _Answer(Record):
    """What a child process writes."""

    measurement: Measurement | None = None
    error: str | None = None


def profile(folder: str | Path, options: ProfileOptions, *, progress: Progress = SILENT) -> Profile:
    """Measure the tiers of a bundle; a device may hold its mobile folder alone.

    Raises:
        BundleError: If the bundle or a tier is missing or faulty.
        OptionError: If a length is out of range.
        MissingExtraError: If an engine is not installed.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        raise BundleError(f"{folder} is no bundle: `dimec export RUN --out BUNDLE` makes one")
    present = [tier for tier in TIERS if (folder / tier).is_dir()]
    held = [load_tier(folder / tier) for tier in (options.tiers or present)]
    held = [tier for tier in held if not tier.asks]  # what another model takes, its server measures
    if not held:
        raise OptionError(
            f"--tiers: {folder} holds no graphs of these, whose servers ask another model: leave them out"
        )
    limit = min(tier.manifest.max_tokens for tier in held)
    longest = min(tier.manifest.max_length for tier in held)
    usual = [each for each in LENGTHS if each <= longest] or [longest]
    lengths = options.lengths or usual
    for length in lengths:
        if not 1 <= length <= limit:
            raise OptionError(f"--lengths {length}: it must be from 1 to {limit}")
    engines = options.engines or installed_engines()
    for name in engines:
        if name not in installed_engines():
            raise MissingExtraError(f"the engine {name}", name)
    cases = [
        Case(
            folder=str(tier.folder),
            engine=engine,
            threads=count,
            batch=batch,
            length=length,
            seconds=options.seconds,
        )
        for tier, engine, count, length, batch in product(
            held, engines, options.threads, lengths, options.batches
        )
    ]
    measurements = []
    with progress.stage("Measuring", len(cases)) as advance:
        for case in cases:
            measurements.append(_in_a_process(case))
            advance(1)
    return Profile(
        format=FORMAT,
        model_fingerprint=held[0].manifest.model_fingerprint,
        machine=machine(),
        versions={
            "python": sys.version.split()[0],
            "dimec": __version__,
            **{name: metadata.version(name) for name in engines},
        },
        measurements=tuple(measurements),
    )


def cost_profile(measured: Profile, *, name: str, base: CostProfile) -> CostProfile:
    """Put what was measured in the place of a cost profile's times; links, watts and prices stay the base's.

    Of each tier that was measured, texts alone by the first engine and number of threads count; the others keep the
    base's times.

    Raises:
        OptionError: If no text was measured alone, or the base has times of an encoder of another width.
    """
    document = base.model_dump(exclude_none=True)
    here = measured.machine
    sources = {
        path: source if source.startswith("as in ") else f"as in {base.name}: {source}"
        for path, source in base.sources.items()
    }
    widths = set()
    for tier in TIERS:
        alone = [each for each in measured.measurements if each.tier is tier and each.batch == 1]
        if not alone:
            continue
        first = alone[0]
        used = [
            each for each in alone if (each.engine, each.threads) == (first.engine, first.threads)
        ]
        widths |= {each.width for each in used}
        document[tier]["points"] = [
            {
                "tokens": each.length,
                "layer_ms": sum(each.layer_ms) / len(each.layer_ms),
                "embedding_ms": each.embedding_ms,
            }
            for each in sorted(used, key=lambda each: each.length)
        ]
        document[tier].pop("speed", None)
        sources = {
            path: source
            for path, source in sources.items()
            if path != tier and not path.startswith((f"{tier}.speed", f"{tier}.points"))
        }
        sources.setdefault(f"{tier}.load", f"as in {base.name}")
        sources[f"{tier}.points"] = (
            f"measured by dimec profile: {here.processor}, {first.engine}, threads: {first.threads}, one text a run"
        )
    if not widths:
        raise OptionError("--costs needs texts measured alone: let 1 be among --batches")
    width = widths.pop()
    if widths or base.width not in (None, width):
        raise OptionError(
            "--costs: the times of one profile must be of one encoder; measure all tiers of one bundle, with a base "
            "of that encoder or a ready one"
        )
    document |= {"name": name, "about": f"{base.about} Times measured here.", "width": width}
    return CostProfile.model_validate({**document, "sources": sources})


def measure(case: Case) -> Measurement:
    """Measure a case in this process."""
    tier = load_tier(case.folder, verify=False)
    before = resident_memory_bytes()
    began = time.perf_counter()
    engine = TierEngine(tier, engine=case.engine, threads=case.threads)
    engine.open()
    open_ms = 1000 * (time.perf_counter() - began)
    batch = _batch(case, tier.manifest)
    width = engine.embed(batch)[1].shape[1]
    for _ in range(_WARM_UP_RUNS):
        _time(engine, batch)
    times: list[list[float]] = []
    began = time.perf_counter()
    while len(times) < _MIN_RUNS or (
        time.perf_counter() - began < case.seconds and len(times) < _MAX_RUNS
    ):
        times.append(_time(engine, batch))
    pieces = np.asarray(times) * 1000
    whole = pieces.sum(axis=1)
    medians = np.median(pieces, axis=0).tolist()
    layer_ms: list[float] = []
    for layer, segment_ms in zip(tier.layers, medians[1:], strict=True):
        spanned = layer - len(layer_ms)
        layer_ms += [segment_ms / spanned] * spanned
    peak = peak_memory_bytes()
    return Measurement(
        tier=tier.tier,
        quantized=tier.manifest.quantized,
        **case.model_dump(exclude={"folder", "seconds"}),
        runs=len(times),
        latency_ms=float(np.median(whole)),
        latency_ms_p95=float(np.percentile(whole, 95)),
        embedding_ms=medians[0],
        layer_ms=tuple(layer_ms),
        width=width,
        open_ms=open_ms,
        memory_bytes=peak,
        engine_memory_bytes=None if peak is None or before is None else peak - before,
        off=_off(tier, engine, batch, case),
    )


def _batch(case: Case, manifest: TierManifest) -> TokenBatch:
    """Draw random tokens: what they say makes no difference to how long they take."""
    shape = (case.batch, case.length)
    ids = np.random.default_rng(0).integers(0, manifest.n_vocabulary, shape)
    # RoBERTa's positions stand still at padding.
    ids[ids == manifest.pad_id] = (manifest.pad_id + 1) % manifest.n_vocabulary
    types = np.zeros_like(ids) if "token_type_ids" in manifest.inputs else None
    return TokenBatch(ids, np.ones_like(ids), types)


def _off(tier: TierBundle, engine: TierEngine, batch: TokenBatch, case: Case) -> float:
    """Return the largest difference of a probability from what onnxruntime gives, over rows and exits."""
    if case.engine == "onnxruntime":
        return 0.0
    theirs = TierEngine(tier, threads=case.threads).infer(batch)
    return float(np.abs(softmax(engine.infer(batch)) - softmax(theirs)).max())


def _time(engine: TierEngine, batch: TokenBatch) -> list[float]:
    """Run a batch to the last exit; returns the seconds of the embedding and of each segment."""
    marks = [time.perf_counter()]
    hidden, _ = engine.embed(batch)
    marks.append(time.perf_counter())
    for layer in engine.layers:
        hidden, _ = engine.segment(layer, hidden, batch.attention_mask)
        marks.append(time.perf_counter())
    return np.diff(marks).tolist()


def _in_a_process(case: Case) -> Measurement:
    what = f"{Path(case.folder).name} by {case.engine}, batch {case.batch}, {case.length} tokens"
    done = subprocess.run(
        [sys.executable, "-m", "dimec.bundle.profiling"],
        input=case.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        if done.returncode < 0:
            reason = f"signal {-done.returncode}, often for want of memory"
        raise EngineError(
            f"measuring {what} was cut off ({reason}): try smaller --batches or --lengths"
        )
    answer = _Answer.model_validate_json(lines[-1])
    if answer.measurement is None:
        raise EngineError(f"measuring {what}: {answer.error}")
    return answer.measurement


def _child() -> None:
    case = Case.model_validate_json(sys.stdin.read())
    try:
        answer = _Answer(measurement=measure(case))
    except DimecError as exc:
        answer = _Answer(error=str(exc))
    sys.stdout.write(answer.model_dump_json() + "\n")


if __name__ == "__main__":
    _child()
