"""Run exported graphs: one small interface over onnxruntime and OpenVINO, and a tier's graphs as one `TierEngine`.

Paths of ONNX files go in; numpy arrays go in and out. Nothing here needs torch.

The wheels of onnxruntime report their use to their maker and keep an id of the device. That is switched off here,
since a device talks to its own servers alone; ``ORT_DISABLE_TELEMETRY=0`` switches it on.
"""

import os

# Read when onnxruntime is first imported, which nothing in the package does before this line.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from dimec.bundle.engines.sessions import ENGINES, Session, open_session
from dimec.bundle.engines.tier import TierEngine
from dimec.core.options import EngineName
from dimec.core.tokens import TokenBatch

__all__ = [
    "ENGINES",
    "EngineName",
    "Session",
    "TierEngine",
    "TokenBatch",
    "open_session",
]
