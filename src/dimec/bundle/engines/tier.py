"""A tier's graphs as one object: embed, run segments, or infer a batch that shrinks as rows leave.

Token ids go in, hidden states and the logits of the exits come out. The device calls `embed` and `segment` step by
step, a server calls `infer`, or `resume` where another tier has run the first layers.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.engines.sessions import Session, open_session
from dimec.core.errors import ContractError, EngineError
from dimec.core.options import EngineName
from dimec.core.tiers import softmax
from dimec.core.tokens import TokenBatch
from dimec.runs.codes import Code

if TYPE_CHECKING:
    from dimec.bundle.loading import TierBundle

Floats = NDArray[np.float32]
Masks = NDArray[np.int64]

EMBEDDING = "embedding.onnx"
LAYERS_GRAPH = "layers.onnx"
TIER_GRAPH = "tier.onnx"
REDUCE = "reduce.onnx"
RESTORE = "restore.onnx"


def segment_name(layer: int) -> str:
    """Return the name of the graph that ends with the exit after ``layer``."""
    return f"segment-{layer}.onnx"


def restored_name(layer: int) -> str:
    """Return the name of the graph that does so behind a learned bottleneck, with weights of its own."""
    return f"restored-{layer}.onnx"


class TierEngine:
    """A tier's graphs, each opened once, when it is first used; thread-safe."""

    def __init__(
        self,
        tier: TierBundle,
        *,
        engine: EngineName = "onnxruntime",
        threads: int | None = None,
        whole: bool = False,
        straight: bool = False,
        shared: dict[str, Session] | None = None,
    ) -> None:
        """Take a tier's bundle.

        Args:
            tier: The bundle.
            engine: What runs the graphs.
            threads: As in `open_session`.
            whole: Let `infer` run the tier as one graph wherever no row may leave early, which takes less time than the
                pieces one after another, and memory for a second copy of the weights, which an engine packs for
                itself. A mobile tier has no such graph.
            straight: Let `run` take all layers as one graph, for a policy that stops at the last exit alone.
            shared: Opened graphs of several tiers, for all of them: equal ones are opened once.
        """
        self._tier = tier
        self._whole = whole
        self._straight = straight
        self.engine = engine
        self._threads = threads
        self._sessions: dict[str, Session] = {}
        self._shared = {} if shared is None else shared
        # Asked for at every text, and a manifest answers more slowly than a plain attribute.
        manifest = tier.manifest
        self._inputs = frozenset(manifest.inputs)
        self._n_vocabulary, self._max_tokens = manifest.n_vocabulary, manifest.max_tokens
        self._n_classes = len(manifest.label_names)
        self._segments = {layer: segment_name(layer) for layer in tier.layers}
        self._lock = threading.Lock()
        self.layers = tier.layers

    def with_threads(self, threads: int, *, shared: dict[str, Session]) -> TierEngine:
        """Return another engine for the same graphs, which are opened again for so many threads."""
        return TierEngine(
            self._tier,
            engine=self.engine,
            threads=threads,
            whole=self._whole,
            straight=self._straight,
            shared=shared,
        )

    def forked(self) -> None:
        """Go on in a forked child: the lock is made anew, the graphs stay open."""
        self._lock = threading.Lock()
        for session in self._sessions.values():
            # Kept for ever: closing an engine would wait for threads that only the parent has.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))

    def open(self) -> None:
        """Open the graphs now, a bottleneck's too."""
        layers = (LAYERS_GRAPH,) if self._straight else self._segments.values()
        for name in (EMBEDDING, *layers, *self._tier.also):
            self._session(name)

    def embed(self, batch: TokenBatch) -> tuple[Floats, Floats]:
        """Run what comes before the first layer.

        Returns:
            hidden [b, t, width], what the first segment takes, and embedding [b, embedding width], what routers take.

        Raises:
            EngineError: If the batch has other arrays than the graph takes, or a token that it does not know.
        """
        hidden, embedding = self._session(EMBEDDING).run(self._checked(batch))
        return hidden, embedding

    def segment(
        self, layer: int, hidden: Floats, attention_mask: Masks, *, restored: bool = False
    ) -> tuple[Floats, Floats]:
        """Run the layers after the exit before ``layer`` and read the exit after it.

        Args:
            layer: One of ``layers``.
            hidden: [b, t, width], from the segment before it, or from `embed`, or `restore`.
            attention_mask: [b, t].
            restored: Run the weights that were trained behind a bottleneck.

        Returns:
            hidden [b, t, width] and logits [b, classes].
        """
        self._check_exit(layer)
        name = restored_name(layer) if restored else self._segments[layer]
        after, logits = self._session(name).run(
            {"hidden": hidden, "attention_mask": attention_mask}
        )
        return after, logits

    def run(
        self,
        hidden: Floats,
        attention_mask: Masks,
        *,
        after: int,
        layer: int,
        restored: bool = False,
    ) -> tuple[Floats, dict[int, Floats]]:
        """Run the layers after ``after`` up to ``layer`` and read every exit on the way, in as few calls as possible.

        Returns hidden [b, t, width] after ``layer``, and by layer the logits [b, classes] of the exits.
        ``hidden`` stands after layer ``after``, one of ``layers``, or 0 for what `embed` gives.
        """
        if self.is_one_graph(after, layer):
            hidden, logits = self._session(LAYERS_GRAPH).run(
                {"hidden": hidden, "attention_mask": attention_mask}
            )
            return hidden, {each: logits[:, place] for place, each in enumerate(self.layers)}
        self._check_exit(layer)
        said = {}
        for each in self.layers:
            if after < each <= layer:
                hidden, said[each] = self.segment(each, hidden, attention_mask, restored=restored)
        return hidden, said

    def is_one_graph(self, after: int, layer: int) -> bool:
        """Tell whether `run` takes these layers as one graph."""
        return self._straight and after == 0 and layer == self.layers[-1]

    def reduce(self, hidden: Floats) -> Floats:
        """Reduce states [b, t', width] to the numbers [b, t', w] that a bottleneck ships of them."""
        (numbers,) = self._session(REDUCE).run({"hidden": hidden})
        return numbers

    def restore(self, numbers: Floats, *, n_tokens: int) -> Floats:
        """Turn numbers [b, t', w] as they arrive into states of so many tokens: [b, n_tokens, width]."""
        (hidden,) = self._session(RESTORE).run({"numbers": numbers})
        return np.ascontiguousarray(hidden[:, :n_tokens])

    def ship(self, hidden: Floats, code: Code) -> bytes:
        """Return the bytes that a bottleneck leaves of one sample's state: hidden [1, t, width]."""
        return code.pack(self.reduce(code.pooled(hidden[0])[None])[0])

    def arrive(self, data: bytes, code: Code, *, n_tokens: int) -> Floats:
        """Return the state [1, n_tokens, width] that a tier goes on from, of the bytes that `ship` made.

        Raises:
            CodeError: If they are not those of a sample of so many tokens.
        """
        return self.restore(code.unpack(data, n_tokens=n_tokens)[None], n_tokens=n_tokens)

    def infer(
        self,
        batch: TokenBatch,
        *,
        thresholds: NDArray[np.floating] | float | None = None,
    ) -> Floats:
        """Run a batch exit by exit; a row leaves at its first exit that is as sure as its threshold there.

        The other rows go on as a smaller batch, without the columns that are padding for all of them.

        Args:
            batch: Rows of token ids.
            thresholds: [b, exits], or one number for all, the confidence (largest probability) from which a row
                leaves an exit; None keeps every row to the end.

        Returns:
            [b, exits, classes], an exit per entry of ``layers``; NaN where a row did not come.
        """
        if self._whole and thresholds is None:
            (everything,) = self._session(TIER_GRAPH).run(self._checked(batch))
            return everything
        hidden, _ = self.embed(batch)
        return self._read(self.layers, hidden, batch.attention_mask, thresholds)

    def resume(
        self,
        hidden: Floats,
        attention_mask: Masks,
        *,
        from_layer: int,
        thresholds: NDArray[np.floating] | float | None = None,
        restored: bool = False,
    ) -> Floats:
        """Go on from a hidden state, as `infer` would have gone on from there.

        Args:
            hidden: [b, t, width] float32, after layer ``from_layer``.
            attention_mask: [b, t].
            from_layer: One of ``layers``, not the last.
            thresholds: As in `infer`.
            restored: As in `segment`.

        Returns:
            [b, exits, classes], as from `infer`; NaN up to ``from_layer`` too.
        """
        if from_layer not in self.layers[:-1]:
            raise ContractError(
                f"nothing can be resumed after layer {from_layer}: this tier resumes after {list(self.layers[:-1])}"
            )
        layers = tuple(layer for layer in self.layers if layer > from_layer)
        return self._read(layers, hidden, attention_mask, thresholds, restored=restored)

    def _read(
        self,
        layers: tuple[int, ...],
        hidden: Floats,
        mask: Masks,
        thresholds: NDArray[np.floating] | float | None,
        *,
        restored: bool = False,
    ) -> Floats:
        """Run the segments that end with ``layers``, the tier's last ones, on what stands before the first of them."""
        n = len(hidden)
        said = np.full((n, len(self.layers), self._n_classes), np.nan, dtype=np.float32)
        limits = None if thresholds is None else np.broadcast_to(thresholds, said.shape[:2])
        rows = np.arange(n)
        for layer in layers:
            hidden, logits = self.segment(layer, hidden, mask, restored=restored)
            place = self.layers.index(layer)
            said[rows, place] = logits
            if limits is None or layer == layers[-1]:
                continue
            stays = ~(softmax(logits).max(axis=1) >= limits[rows, place])
            if not stays.any():
                break
            if not stays.all():
                rows, mask = rows[stays], mask[stays]
                length = longest(mask)
                mask = np.ascontiguousarray(mask[:, :length])
                hidden = np.ascontiguousarray(hidden[stays, :length])
        return said

    def _checked(self, batch: TokenBatch) -> dict[str, Masks]:
        inputs = batch.named()
        if inputs.keys() != self._inputs:
            raise EngineError(
                f"the inputs are {', '.join(inputs)}, but this encoder takes {', '.join(self._tier.manifest.inputs)}"
            )
        batch.check(n_vocabulary=self._n_vocabulary, max_tokens=self._max_tokens)
        return inputs

    def _check_exit(self, layer: int) -> None:
        if layer not in self._segments:
            raise ContractError(
                f"no exit after layer {layer}: this tier has exits after {list(self.layers)}"
            )

    def _session(self, name: str) -> Session:
        session = self._sessions.get(name)
        if session is None:
            with self._lock:
                session = self._sessions.get(name)
                if session is None:
                    session = self._sessions[name] = self._open(name)
        return session

    def _open(self, name: str) -> Session:
        path = self._tier.path(name)
        # The other graphs have their weights in files beside them, which may differ where they are the same.
        alone = name == EMBEDDING or name in self._segments.values()
        content = f"{self.engine} {self._tier.manifest.files[name].sha256 if alone else path}"
        if content not in self._shared:
            self._shared[content] = open_session(
                path,
                engine=self.engine,
                threads=self._threads,
                beside=self._tier.manifest.files,
            )
        return self._shared[content]


def longest(mask: Masks) -> int:
    """Return the length of the longest row of a mask that is padded on the right."""
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[-1]) + 1 if len(columns) else mask.shape[1]
