"""From a run to a bundle: graphs by torch's ONNX exporter, manifests, and thresholds fitted on what is deployed.

A finished run goes in, a bundle folder comes out, whole or not at all. This is the only room beside training that
needs torch.
"""

from dimec.exporting.export import DEFAULT_POLICY, export
from dimec.exporting.report import ExportReport, PolicyChange, TierChange

__all__ = [
    "DEFAULT_POLICY",
    "ExportReport",
    "PolicyChange",
    "TierChange",
    "export",
]
