"""From the files of a tier to what a server runs."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from dimec.bundle import load_tier
from dimec.bundle.choosing import chosen_engine
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.core.errors import OptionError
from dimec.runtime.server.batching import Run
from dimec.runtime.server.requests import ServedModel
from dimec.runtime.server.scheduling import Arrays
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire import HIDDEN, MASK

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino_onnx"}


def load_model(settings: ServerSettings) -> tuple[ServedModel, dict[int, Run]]:
    """Verify and open the tier; return it, and what runs rows by the layer that they stand at, each tried on a row.

    Raises:
        BundleError: If the bundle cannot be loaded.
        OptionError: If its folder holds another tier.
    """
    tier = load_tier(settings.bundle / settings.tier)
    manifest = tier.manifest
    if manifest.tier != settings.tier:
        raise OptionError(
            f"{settings.bundle / settings.tier} holds the {manifest.tier} tier, not {settings.tier}: "
            "give the folder that `dimec export` wrote"
        )
    name = chosen_engine(tier, settings.engine, threads=settings.threads)
    engine = TierEngine(tier, engine=name, threads=settings.threads, whole=True)
    tails = manifest.tails
    model = ServedModel(
        name=settings.tier,
        platform=_PLATFORMS[name],
        inputs=tuple(manifest.inputs),
        layers=tuple(engine.layers),
        label_names=tuple(manifest.label_names),
        fingerprint=manifest.model_fingerprint,
        vocabulary=manifest.n_vocabulary,
        padding=manifest.pad_id,
        max_rows=settings.max_rows,
        max_tokens=settings.queue_tokens,
        max_length=min(settings.max_length or manifest.max_length, manifest.max_length),
        tokenizer=tier.tokenizer(),
        pairs=manifest.task.pairs,
        tails=tails,
    )

    def run(inputs: Arrays, thresholds: NDArray[np.float64] | None) -> NDArray[np.float32]:
        return engine.infer(TokenBatch.of(inputs), thresholds=thresholds)

    def resume(
        inputs: Arrays, thresholds: NDArray[np.float64] | None, *, layer: int
    ) -> NDArray[np.float32]:
        state, mask = inputs[HIDDEN], inputs[MASK]
        code = None if tails is None else tails.code
        if code is not None:  # one token of each pool holds its numbers
            numbers = np.ascontiguousarray(state[:, :: code.pool])
            state = engine.restore(numbers, n_tokens=mask.shape[1])
        return engine.resume(
            state, mask, from_layer=layer, thresholds=thresholds, restored=code is not None
        )

    runs: dict[int, Run] = {0: run}
    first: Arrays = {
        name: np.full((1, 4), name != "token_type_ids", dtype=np.int64) for name in model.inputs
    }
    never = np.full((1, len(engine.layers)), np.inf)
    for thresholds in (None, never):  # with thresholds the engine runs the graph in pieces
        run(first, thresholds)
    if tails is not None:
        state: Arrays = {
            HIDDEN: np.zeros((1, 4, tails.width), dtype=np.float32),
            MASK: np.ones((1, 4), dtype=np.int64),
        }
        runs.update((layer, partial(resume, layer=layer)) for layer in tails.layers)
        for layer in tails.layers:
            runs[layer](state, None)
    return model, runs
