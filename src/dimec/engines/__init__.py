"""Run exported graphs: one small interface over onnxruntime and OpenVINO, and a tier's graphs as one `TierEngine`.

Paths of ONNX files go in; numpy arrays go in and out. Nothing here needs torch.
"""

from dimec.engines.base import ENGINES, EngineName, Session, open_session
from dimec.engines.tier import TierEngine, TierGraphs
from dimec.engines.tokens import TokenBatch

__all__ = [
    "ENGINES",
    "EngineName",
    "Session",
    "TierEngine",
    "TierGraphs",
    "TokenBatch",
    "open_session",
]
