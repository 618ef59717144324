"""8-bit graphs: weights per output channel, activations at run time, by onnxruntime's quantisation tool."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from dimec.core.errors import OptionError


def quantise(source: Path, out: Path) -> None:
    """Write a graph with 8-bit weights.

    QInt8 per channel: QUInt8 per tensor is slower and less exact.

    Raises:
        OptionError: If the tool refuses the graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It advises on the root logger to optimise the graph first, which the exporter has done.
    logger = logging.getLogger()
    disabled = logger.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's and onnx's, over the tool's own calls
            quantize_dynamic(str(source), str(out), per_channel=True, weight_type=QuantType.QInt8)
    except Exception as exc:  # the tool raises ValueError, RuntimeError and others
        raise OptionError(
            f"{source.name} cannot be quantised ({exc}): export without --quantize"
        ) from exc
    finally:
        logging.disable(disabled)
