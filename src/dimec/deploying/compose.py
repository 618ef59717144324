"""A tier's pieces put together: one graph from token ids to the logits of all exits, and one of all layers.

They run the very nodes of the pieces, quantised or not: a third-party server that holds the one says what ours says,
and a device that runs the other, where nothing is decided between its exits, says what it says piece by piece.

Both lie beside the pieces and hold no weights of their own: to an engine the pieces' files are external data, read
where each weight's bytes are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path

import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, TensorProto, helper
from onnx.external_data_helper import set_external_data

# Smaller weights are copied; so are vectors, which engines may use as they lie, in a file at any odd place.
_SHARED_BYTES = 2**10


def compose(embedding: Path, segments: Sequence[Path], out: Path) -> None:
    """Chain the embedding and the segments and write them as one graph.

    Args:
        embedding: Token ids -> ``hidden``, ``embedding``.
        segments: ``hidden``, ``attention_mask`` -> ``next_hidden``, ``logits``; in order, beside the embedding.
        out: Where to write it, in the same folder.
    """
    whole = _Whole("tier")
    tokens = onnx.load(str(embedding))
    whole.graph.input.extend(tokens.graph.input)
    given = {value.name: value.name for value in tokens.graph.input}
    hidden = whole.append(tokens, given, prefix="embedding")["hidden"]
    whole.chain(segments, hidden)
    whole.write(out)


def compose_layers(segments: Sequence[Path], out: Path) -> None:
    """Chain the segments alone and write them as one graph, with the arguments of `compose`.

    It takes what the first segment takes, and gives the last one's ``next_hidden`` and ``logits`` of all exits.
    """
    whole = _Whole("layers")
    first = onnx.load(str(segments[0])).graph
    whole.graph.input.extend(first.input)
    hidden = whole.chain(segments, "hidden")
    whole.graph.node.append(helper.make_node("Identity", [hidden], ["next_hidden"]))
    whole.graph.output.insert(0, first.output[0])
    whole.write(out)


def _point_into(folder: Path, tensor: TensorProto) -> None:
    """Let a weight point to its bytes in the file of the piece that it is named after, in place of holding them."""
    name = f"{tensor.name.partition('/')[0]}.onnx"
    with (folder / name).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        offset = content.find(tensor.raw_data)
    set_external_data(tensor, name, offset, len(tensor.raw_data))
    tensor.ClearField("raw_data")


class _Whole:
    """A graph that grows by pieces, each under names of its own; equal weights are held once."""

    def __init__(self, name: str) -> None:
        self.graph = GraphProto(name=name)
        self._opsets: dict[str, int] = {}
        self._weights: dict[bytes, str] = {}
        self._ir_version = 0

    def chain(self, segments: Sequence[Path], hidden: str) -> str:
        """Append segments, each on what the one before it gives, and make ``logits`` of all an output.

        Returns what the last one's hidden state is called.
        """
        logits = []
        classes = 0
        for number, path in enumerate(segments):
            piece = onnx.load(str(path))
            given = {"hidden": hidden, "attention_mask": "attention_mask"}
            names = self.append(piece, given, prefix=path.stem)
            hidden = names["next_hidden"]
            classes = piece.graph.output[1].type.tensor_type.shape.dim[1].dim_value
            axis = f"{path.stem}/axis"
            self.graph.initializer.append(helper.make_tensor(axis, TensorProto.INT64, [1], [1]))
            logits.append(f"exit_{number}")
            self.graph.node.append(
                helper.make_node("Unsqueeze", [names["logits"], axis], [logits[-1]])
            )
        self.graph.node.append(helper.make_node("Concat", logits, ["logits"], axis=1))
        shape: list[str | int | None] = ["batch", len(segments), classes]
        self.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
        return hidden

    def write(self, out: Path) -> None:
        """Write the whole beside its pieces, without what leads to no output."""
        _drop_unused(self.graph)
        for tensor in self.graph.initializer:
            if len(tensor.dims) > 1 and len(tensor.raw_data) >= _SHARED_BYTES:
                _point_into(out.parent, tensor)
        model = helper.make_model(
            self.graph,
            opset_imports=[
                helper.make_opsetid(domain, opset) for domain, opset in self._opsets.items()
            ],
            ir_version=self._ir_version,
            producer_name="dimec",
        )
        out.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(out))

    def append(self, piece: ModelProto, given: Mapping[str, str], *, prefix: str) -> dict[str, str]:
        """Add a piece's nodes; returns what its values are called now."""
        if piece.functions:
            piece = onnx.inliner.inline_local_functions(piece)
        self._ir_version = max(piece.ir_version, self._ir_version)
        for opset in piece.opset_import:
            self._opsets[opset.domain] = max(opset.version, self._opsets.get(opset.domain, 0))
        names = dict(given) | {"": ""}
        for tensor in piece.graph.initializer:
            # Layers may share weights (ALBERT), and the pieces carry a copy each.
            content = TensorProto()
            content.CopyFrom(tensor)
            content.name = ""
            key = content.SerializeToString(deterministic=True)
            known = self._weights.get(key)
            if known is None:
                known = self._weights[key] = f"{prefix}/{tensor.name}"
                content.name = known
                self.graph.initializer.append(content)
            names[tensor.name] = known
        for node in piece.graph.node:
            for output in node.output:
                if output:
                    names[output] = f"{prefix}/{output}"
            copied = self.graph.node.add()
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
