"""One graph from token ids to the logits of all exits, put together from a tier's pieces.

It runs the very nodes of the pieces, quantised or not, so that a third-party server that holds it says what ours says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, TensorProto, helper

from dimec.errors import OptionError

_MAX_BYTES = 2**31 - 2**20


def compose(embedding: Path, segments: Sequence[Path], out: Path) -> None:
    """Chain the embedding and the segments and write them as one graph.

    Args:
        embedding: Token ids -> ``hidden``, ``embedding``.
        segments: ``hidden``, ``attention_mask`` -> ``next_hidden``, ``logits``; in order.
        out: Where to write it.

    Raises:
        OptionError: If the whole is too large for one ONNX file.
    """
    graph = GraphProto(name="tier")
    opsets: dict[str, int] = {}
    weights: dict[bytes, str] = {}
    first = onnx.load(str(embedding))
    graph.input.extend(first.graph.input)
    tokens = {value.name: value.name for value in first.graph.input}
    state = _append(graph, first, tokens, weights, opsets, prefix="embedding")["hidden"]
    logits = []
    classes = 0
    for number, path in enumerate(segments):
        piece = onnx.load(str(path))
        given = {"hidden": state, "attention_mask": "attention_mask"}
        names = _append(graph, piece, given, weights, opsets, prefix=path.stem)
        state = names["next_hidden"]
        classes = piece.graph.output[1].type.tensor_type.shape.dim[1].dim_value
        axis = f"{path.stem}/axis"
        graph.initializer.append(helper.make_tensor(axis, TensorProto.INT64, [1], [1]))
        logits.append(f"exit_{number}")
        graph.node.append(helper.make_node("Unsqueeze", [names["logits"], axis], [logits[-1]]))
    graph.node.append(helper.make_node("Concat", logits, ["logits"], axis=1))
    shape: list[str | int | None] = ["batch", len(segments), classes]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, opset) for domain, opset in opsets.items()],
        ir_version=first.ir_version,
        producer_name="dimec",
    )
    _drop_unused(model.graph)
    if model.ByteSize() > _MAX_BYTES:
        raise OptionError(
            f"{out.name} would be {model.ByteSize() / 2**30:.1f} GiB, and an ONNX file ends at 2 GiB: "
            "export with --quantize all, or fit a smaller backbone"
        )
    onnx.checker.check_model(model)
    onnx.save(model, str(out))


def _append(
    graph: GraphProto,
    piece: ModelProto,
    given: Mapping[str, str],
    weights: dict[bytes, str],
    opsets: dict[str, int],
    *,
    prefix: str,
) -> dict[str, str]:
    """Add a piece's nodes under names of their own; returns what its values are called now."""
    if piece.functions:
        piece = onnx.inliner.inline_local_functions(piece)
    for opset in piece.opset_import:
        opsets[opset.domain] = max(opset.version, opsets.get(opset.domain, 0))
    names = dict(given) | {"": ""}
    for tensor in piece.graph.initializer:
        # Layers may share weights (ALBERT), and the pieces carry a copy each.
        content = TensorProto()
        content.CopyFrom(tensor)
        content.name = ""
        key = content.SerializeToString(deterministic=True)
        known = weights.get(key)
        if known is None:
            known = weights[key] = f"{prefix}/{tensor.name}"
            content.name = known
            graph.initializer.append(content)
        names[tensor.name] = known
    for node in piece.graph.node:
        for output in node.output:
            if output:
                names[output] = f"{prefix}/{output}"
        copied = graph.node.add()
        copied.CopyFrom(node)
        copied.name = f"{prefix}/{node.name}"
        copied.input[:] = [names[each] for each in node.input]
        copied.output[:] = [names[each] for each in node.output]
    return names


def _drop_unused(graph: GraphProto) -> None:
    """Drop nodes that lead to no output: the mean embedding, and what only it needs; then weights likewise."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
