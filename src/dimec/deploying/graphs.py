"""The pieces of a multi-exit encoder as ONNX files: the embedding, a segment per exit, a bottleneck's ends.

Batch and length are dynamic. Every file is held against torch on batches of other shapes than it was traced with
before anything else is done with it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from dimec.bundle.engines import open_session
from dimec.bundle.engines.tier import EMBEDDING, REDUCE, RESTORE, restored_name, segment_name
from dimec.core.errors import OptionError
from dimec.core.progress import SILENT, Progress
from dimec.training.model import MultiExitEncoder
from dimec.training.model.bottleneck import Bottleneck
from dimec.training.model.split import SplitEncoder

# ONNX files are protobuf messages, which end at 2 GiB; a little is left for what is not weights.
_MAX_WEIGHT_BYTES = 2**31 - 2**24
# What fp32 arithmetic in another order may differ by, relative to the largest value.
_TOLERANCE = 1e-3


class _Embedding(nn.Module):
    """Everything before the first layer."""

    def __init__(self, model: MultiExitEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.model.enter(input_ids, attention_mask, token_type_ids)


class _Segment(nn.Module):
    """The layers after one exit, and the next exit."""

    def __init__(self, model: MultiExitEncoder, *, after: int, layer: int) -> None:
        super().__init__()
        self.model = model
        self.after = after
        self.layer = layer

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.segment(hidden, attention_mask, after=self.after, layer=self.layer)

    def kind(self) -> tuple[int, ...]:
        """Return what segments that differ in nothing but weights share: which layers have the same ones."""
        layers = self._layers()
        alike = self.model.adapter.layers_alike
        return tuple(layers.index(each) for each in layers) if alike else (-self.layer, self.after)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of its layers and exit by name, in an order that segments of a kind share."""
        names = {id(each): name for name, each in self.named_parameters()}
        parts = [*self._layers(), self.model.heads[str(self.layer)]]
        return {names[id(each)]: each for part in parts for each in part.parameters()}

    def _layers(self) -> list[nn.Module]:
        return [self.model.adapter.layer_module(each) for each in range(self.after, self.layer)]


class _Reduce(nn.Module):
    """A bottleneck's end on the device."""

    def __init__(self, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.bottleneck = bottleneck

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        return (self.bottleneck.reduce(hidden),)


class _Restore(_Reduce):
    """Its end in the cloud."""

    def forward(self, numbers: Tensor) -> tuple[Tensor]:
        return (self.bottleneck.restore(numbers),)


def export_graphs(model: MultiExitEncoder, folder: Path, *, progress: Progress = SILENT) -> None:
    """Write the embedding and a segment per exit into a folder.

    Raises:
        OptionError: If the encoder cannot be exported.
    """
    tokens, probes = _drawn(model)
    model = model.to("cpu").eval()
    with _exporting(model), progress.stage("Exporting graphs", 1 + len(model.exits)) as advance:
        embedding = _Embedding(model)
        path = folder / EMBEDDING
        onnx_ir.save(_trace(embedding, tokens, ("hidden", "embedding"), path), path)
        states = _check(embedding, probes, path)
        advance(1)
        paths = {layer: folder / segment_name(layer) for layer in model.exits}
        batch, *probed = _masked([embedding(**tokens)[0], *states], [tokens, *probes])
        _export_segments(model, 0, paths, batch, probed, advance)


def export_bottleneck(split: SplitEncoder, folder: Path, *, progress: Progress = SILENT) -> None:
    """Write a bottleneck's two ends and a segment per exit behind it into a folder.

    Raises:
        OptionError: If they cannot be exported.
    """
    split = split.to("cpu").eval()
    tokens, probes = _drawn(split.model)
    with (
        _exporting(split.model),
        progress.stage("Exporting the bottleneck", 2 + len(split.exits)) as advance,
    ):
        reduce, path = _Reduce(split.bottleneck), folder / REDUCE
        hidden = split.device(**tokens)[0]
        onnx_ir.save(_trace(reduce, {"hidden": hidden}, ("numbers",), path), path)
        reduced = _check(reduce, [{"hidden": split.device(**probe)[0]} for probe in probes], path)
        advance(1)
        restore, path = _Restore(split.bottleneck), folder / RESTORE
        (numbers,) = reduce(hidden)
        onnx_ir.save(_trace(restore, {"numbers": numbers}, ("hidden",), path), path)
        states = _check(restore, [{"numbers": each} for each in reduced], path)
        advance(1)
        paths = {layer: folder / restored_name(layer) for layer in split.exits}
        batch, *probed = _masked([hidden, *states], [tokens, *probes])
        _export_segments(split.student, split.after, paths, batch, probed, advance)


def _export_segments(
    model: MultiExitEncoder,
    after: int,
    paths: Mapping[int, Path],
    batch: Mapping[str, Tensor],
    probes: Sequence[Mapping[str, Tensor]],
    advance: Callable[[int], None],
) -> None:
    """Write a segment up to each exit, traced with one batch and held against torch on others.

    A trace takes seconds, so segments of as many like layers share one, and each is filled with its own weights.

    Args:
        after: The layer after which the first segment begins.
        paths: By the layer of the exit, in ascending order.
        batch: What the segments are traced with.
        probes: What the first segment is checked on; the others are on what comes out of it.
    """
    traced: dict[tuple[int, ...], tuple[onnx_ir.Model, Mapping[str, Tensor]]] = {}
    for layer, path in paths.items():
        segment = _Segment(model, after=after, layer=layer)
        kind = segment.kind()
        if kind in traced and _fill(*traced[kind], segment.weights()):
            graph = traced[kind][0]
        else:
            graph = _trace(segment, batch, ("next_hidden", "logits"), path)
        traced[kind] = graph, segment.weights()
        onnx_ir.save(graph, path)
        probes = _masked(_check(segment, probes, path), probes)
        after = layer
        advance(1)


def _masked(
    states: Sequence[Tensor], probes: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """Return hidden states as segments take them, up to the lengths of the batches that they come from."""
    masks = [probe["attention_mask"] for probe in probes]
    return [
        {"hidden": state[:, : mask.shape[1]], "attention_mask": mask}
        for state, mask in zip(states, masks, strict=True)
    ]


def _fill(model: onnx_ir.Model, own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Give a segment's graph the weights of another of its kind; False where it does not hold each ``own`` once.

    The exporter keeps a weight under its name, or transposed under a number: those are told by their values.
    """
    pairs = dict(zip(own, others.items(), strict=True))
    found: dict[str, tuple[onnx_ir.Value, bool]] = {}
    initializers = model.graph.initializers
    for value in initializers.values():
        name = value.name or ""
        names = [name] if name in own else _turned(own, value.const_value)
        if len(names) > 1 or found.keys() & names:
            return False
        found |= dict.fromkeys(names, (value, name not in own))
    if len(found) < len(own):
        return False
    in_order = list(initializers.values())
    for name, (value, turned) in found.items():
        theirs, weight = pairs[name]
        array = weight.numpy()
        value.name = value.name if turned else theirs
        value.const_value = onnx_ir.tensor(
            np.ascontiguousarray(array.T if turned else array), name=value.name
        )
    # a new name goes to the end, and a file should not depend on how it was made
    initializers.clear()
    for value in in_order:
        initializers.add(value)
    return True


def _turned(weights: Mapping[str, Tensor], tensor: onnx_ir.TensorProtocol | None) -> list[str]:
    """Return the names of the matrices that a tensor holds transposed."""
    if tensor is None or len(tensor.shape) != 2:
        return []
    array = tensor.numpy()
    return [name for name, each in weights.items() if np.array_equal(each.numpy().T, array)]


def _drawn(model: MultiExitEncoder) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Draw the batch that graphs are traced with, and those that they are checked on."""
    shapes = ((1, 1), (4, 7), (2, min(33, model.adapter.max_tokens)))
    probes = [
        _tokens(model, rows=rows, length=length, seed=seed)
        for seed, (rows, length) in enumerate(shapes, 1)
    ]
    return _tokens(model, rows=3, length=9, seed=0), probes


@contextmanager
def _exporting(model: MultiExitEncoder) -> Iterator[None]:
    """Run without gradients, and say in one sentence that the exporter cannot."""
    kind = model.adapter.config.model_type
    try:
        with torch.no_grad():
            yield
    except (OptionError, OSError):
        raise
    except Exception as exc:  # the exporter raises whatever its steps raise
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise OptionError(
            f"an encoder of type {kind} cannot be exported with these versions of torch and transformers ({reason}): "
            "fit another backbone"
        ) from exc


def _tokens(model: MultiExitEncoder, *, rows: int, length: int, seed: int) -> dict[str, Tensor]:
    """Draw a batch of random tokens, padded on the right; the first row is full."""
    generator = torch.Generator().manual_seed(seed)
    size = (rows, length)
    ids = torch.randint(0, model.word_embeddings.num_embeddings, size, generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    # RoBERTa counts positions past the padding id, so no token may be one.
    pad_id = int(model.adapter.config.pad_token_id or 0)
    ids = torch.where(ids == pad_id, (pad_id + 1) % model.word_embeddings.num_embeddings, ids)
    tokens = {"input_ids": ids * mask + pad_id * (1 - mask), "attention_mask": mask}
    if model.adapter.accepts_token_types:
        tokens["token_type_ids"] = torch.randint(0, 2, size, generator=generator) * mask
    return tokens


def _trace(
    module: nn.Module, arrays: Mapping[str, Tensor], outputs: Sequence[str], path: Path
) -> onnx_ir.Model:
    """Make one graph, which the path names in errors; its inputs are called as the arrays are."""
    weights = sum(each.numel() * each.element_size() for each in _used(module))
    if weights > _MAX_WEIGHT_BYTES:
        raise OptionError(
            f"{path.name} would hold {weights / 2**30:.1f} GiB of weights, and an ONNX file ends at 2 GiB: "
            "fit a smaller backbone"
        )
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(arrays.values()),
            dynamo=True,
            input_names=list(arrays),
            dynamic_shapes=tuple({0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for _ in arrays),
            verbose=False,
        )
    assert program is not None  # it is None for the exporter before dynamo
    graph = program.model.graph
    # The exporter names values inside after operators, "embedding" among them: ours come first.
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in {*arrays, *outputs}:
                value.name = f"inner_{value.name}"
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
    for value in (*graph.inputs, *graph.outputs):
        _name_dimensions(value)
    # Notes of where in the source a node came from: megabytes, and paths of this machine.
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    program.model.metadata_props.clear()
    graph.metadata_props.clear()
    for value in graph.initializers.values():
        value.metadata_props.clear()
    return program.model


def _name_dimensions(value: object) -> None:
    """Call the dynamic dimensions by their names, where the exporter numbered them."""
    shape = value.shape  # type: ignore[attr-defined]
    if shape is None:
        return
    named = ["batch", "length"]
    dims: list[int | str] = []
    for place, size in enumerate(shape):
        dims.append(size if isinstance(size, int) else named[place] if place < 2 else str(size))
    value.shape = onnx_ir.Shape(dims)  # type: ignore[attr-defined]


def _used(module: nn.Module) -> Iterator[Tensor]:
    """Give the weights that a piece holds."""
    if isinstance(module, _Embedding):
        yield module.model.word_embeddings.weight
    elif isinstance(module, _Segment):
        adapter = module.model.adapter
        for index in range(module.after, module.layer):
            yield from adapter.layer_module(index).parameters()


def _check(module: nn.Module, probes: Sequence[Mapping[str, Tensor]], path: Path) -> list[Tensor]:
    """Hold a graph against the module it was made from; returns the module's hidden states, one per probe."""
    session = open_session(path, threads=1)
    states = []
    for probe in probes:
        wanted = module(**probe)
        got = session.run({name: array.numpy() for name, array in probe.items()})
        for ours, theirs in zip(got, wanted, strict=True):
            scale = max(1.0, float(theirs.abs().max()))
            error = float(np.abs(ours - theirs.numpy()).max()) / scale
            if not error <= _TOLERANCE:
                raise OptionError(
                    f"{path.name} does not say what torch says on a batch of {len(theirs)} (off by {error:.2g}): "
                    f"an encoder of this type cannot be exported with these versions of torch and onnxruntime"
                )
        states.append(wanted[0])
    return states


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute the exporters, which warn of their own internals; what matters is checked on the result."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def quantise(source: Path, out: Path) -> None:
    """Write a graph with 8-bit weights.

    QInt8 per channel: QUInt8 per tensor is slower and less exact.

    Raises:
        OptionError: If the tool refuses the graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with _quiet():
            quantize_dynamic(str(source), str(out), per_channel=True, weight_type=QuantType.QInt8)
    except Exception as exc:  # the tool raises ValueError, RuntimeError and others
        raise OptionError(
            f"{source.name} cannot be quantised ({exc}): export without --quantize"
        ) from exc
