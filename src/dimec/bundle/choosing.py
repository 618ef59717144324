"""Which engine runs a tier where nobody names one: by a profile of this machine the fastest that answers the same.

`dimec profile` measures, once, into the bundle's `profile.json`; opening a tier only reads that file. So a start stays
quick and a bundle that cannot be written works too, and the engine does not change with what else a machine is doing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from importlib import metadata

from pydantic import Field

from dimec.bundle.engines.hardware import Machine, machine
from dimec.bundle.loading import TierBundle
from dimec.bundle.manifest import PROFILE
from dimec.core.errors import BundleError
from dimec.core.options import EngineChoice, EngineName
from dimec.core.tiers import Tier
from dimec.core.untrusted import Record, read_json, trusting_nothing
from dimec.costs.options import Batch, Threads

FORMAT = 1

MOST_OFF = 0.01
"""By how much a probability may differ from onnxruntime's, for an engine that is taken unasked."""

_WORTH_IT = 0.95  # of onnxruntime's time


class Conditions(Record):
    """Rows a run (``batch``), tokens a row, and what runs them."""

    engine: EngineName
    threads: Threads
    batch: Batch
    length: int = Field(ge=1, le=1_000_000)


class Measurement(Conditions):
    """What a case took; all rows run to the tier's last exit.

    Attributes:
        runs: How many were timed, after a warm-up.
        latency_ms: Median over the runs, of one whole batch.
        embedding_ms: Median of what comes before the first layer.
        layer_ms: Median of each layer from 1 on, its exit included where it has one; where an exit follows on several
            layers, they share their time evenly.
        width: The encoder's hidden width.
        open_ms: Reading and optimising the graphs.
        memory_bytes: The most that the process held; None where the system does not tell.
        engine_memory_bytes: By how much that is more than before the graphs were opened; None likewise.
        off: By how much a probability differs from onnxruntime's at most, over the batch and all exits.
    """

    tier: Tier
    quantized: bool
    runs: int
    latency_ms: float
    latency_ms_p95: float
    embedding_ms: float
    layer_ms: tuple[float, ...]
    width: int
    open_ms: float
    memory_bytes: int | None
    engine_memory_bytes: int | None
    off: float


class Profile(Record):
    """Measurements of a bundle on a machine, one per case: what a measured cost model reads."""

    format: int
    model_fingerprint: str
    machine: Machine
    versions: dict[str, str]
    measurements: tuple[Measurement, ...]


def installed_engines() -> list[EngineName]:
    """Return the engines that are installed, the default first."""
    found: list[EngineName] = ["onnxruntime"]
    try:
        metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return found
    return [*found, "openvino"]


def chosen_engine(tier: TierBundle, wanted: EngineChoice, *, threads: int | None) -> EngineName:
    """Return the engine for a tier: the wanted one, or by ``auto`` what the profile beside the tier's folder finds.

    That is onnxruntime where there is no profile of this machine and model.
    """
    if wanted != "auto":
        return wanted
    path = tier.folder.parent / PROFILE
    if len(installed_engines()) == 1 or not path.exists():
        return "onnxruntime"
    try:
        with trusting_nothing(path, BundleError, remedy="measure it again"):
            profile = read_json(path, Profile, known=FORMAT)
    except BundleError:  # of another version, or damaged: as good as none
        return "onnxruntime"
    here = machine()
    same = ("processor", "architecture", "amx", "avx512_bf16")
    if profile.model_fingerprint != tier.manifest.model_fingerprint or any(
        getattr(profile.machine, name) != getattr(here, name) for name in same
    ):
        return "onnxruntime"
    quantized = tier.manifest.quantized
    return fastest(profile, quantized=quantized, threads=threads or here.cores)


def fastest(profile: Profile, *, quantized: bool, threads: int) -> EngineName:
    """Return which engine takes the least time, over all cases that were measured at about so many threads.

    Tiers whose weights have as many bits have one engine, since they go on from each other's states.
    """
    cases = [each for each in profile.measurements if each.quantized == quantized]
    nearest = min(
        (each.threads for each in cases),
        key=lambda count: abs(count - threads),
        default=None,
    )
    times: dict[EngineName, dict[tuple[Tier, int, int], float]] = defaultdict(dict)
    wrong = {each.engine for each in cases if not each.off <= MOST_OFF}
    for each in cases:
        if each.threads == nearest and each.engine not in wrong:
            times[each.engine][each.tier, each.batch, each.length] = each.latency_ms
    usual = times["onnxruntime"]
    best: EngineName = "onnxruntime"
    least = math.log(_WORTH_IT)
    for engine in installed_engines()[1:]:
        both = usual.keys() & times[engine].keys()
        if both:
            found = sum(math.log(times[engine][case] / usual[case]) for case in both) / len(both)
            if found < least:
                best, least = engine, found
    return best
