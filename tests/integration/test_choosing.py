"""Which engine runs a tier where nobody names one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dimec.bundle import Bundle, load_tier
from dimec.bundle.choosing import MOST_OFF, Measurement, Profile, chosen_engine
from dimec.bundle.engines import EngineName
from dimec.bundle.engines.hardware import machine
from dimec.bundle.manifest import PROFILE
from dimec.core.files import write_json
from dimec.core.tiers import Tier


@pytest.fixture
def mobile(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """Give the mobile tier of a bundle of its own."""
    shutil.copytree(tiny_bundle.mobile.folder, tmp_path / "mobile")
    return tmp_path / "mobile"


def measured(engine: EngineName, ms: float, *, threads: int = 1, off: float = 0.0) -> Measurement:
    return Measurement(
        engine=engine, threads=threads, batch=1, length=16, tier=Tier.MOBILE, quantized=False,
        runs=10, latency_ms=ms, latency_ms_p95=ms, embedding_ms=0.1, layer_ms=(ms,), width=32,
        open_ms=1.0, memory_bytes=None, engine_memory_bytes=None, off=off,
    )  # fmt: skip


def test_auto_takes_what_a_profile_of_this_machine_found_the_fastest(mobile: Path) -> None:
    tier = load_tier(mobile)
    here = Profile(
        format=1,
        model_fingerprint=tier.manifest.model_fingerprint,
        machine=machine(),
        versions={},
        measurements=(measured("onnxruntime", 1.0), measured("openvino", 0.5)),
    )

    def chosen(**changes: object) -> EngineName:
        profile = here.model_copy(update=changes)
        write_json(mobile.parent / PROFILE, profile.model_dump(mode="json"))
        return chosen_engine(tier, "auto", threads=1)

    assert chosen_engine(tier, "auto", threads=1) == "onnxruntime"
    assert chosen() == "openvino"
    assert chosen_engine(tier, "onnxruntime", threads=1) == "onnxruntime"
    usual = measured("onnxruntime", 1.0)
    for other in (measured("openvino", 0.97), measured("openvino", 0.5, off=2 * MOST_OFF)):
        assert chosen(measurements=(usual, other)) == "onnxruntime"
    elsewhere = replace(machine(), processor="another")
    assert chosen(machine=elsewhere) == "onnxruntime"
    assert chosen(model_fingerprint="0" * 16) == "onnxruntime"
    two = (measured("onnxruntime", 1.0, threads=8), measured("openvino", 2.0, threads=8))
    assert chosen(measurements=(*two, *here.measurements)) == "openvino"
    assert chosen_engine(tier, "auto", threads=8) == "onnxruntime"
    (mobile.parent / PROFILE).write_text("{")
    assert chosen_engine(tier, "auto", threads=1) == "onnxruntime"
