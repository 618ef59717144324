"""Writing the files of a bundle: graphs, tokenizer and exit zero, then the policy and a manifest per tier."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dimec.bundle import AskedModel, BundleTask, Provenance, TierManifest, file_info, fingerprint_of
from dimec.bundle.engines.tier import EMBEDDING, LAYERS_GRAPH, TIER_GRAPH, segment_name
from dimec.bundle.hidden import Tails, tails_of
from dimec.bundle.manifest import (
    ASKED,
    FORMAT,
    MANIFEST,
    POLICY,
    TOKENIZER,
    Promise,
    bottleneck_graphs,
    needed_files,
)
from dimec.bundle.tokenizer import TierTokenizer
from dimec.core.errors import ContractError, OptionError
from dimec.core.files import write_json
from dimec.core.options import HiddenType
from dimec.core.progress import Progress
from dimec.core.tiers import TIERS, Tier
from dimec.core.version import __version__
from dimec.costs.model import CostModel
from dimec.data import TextDataset, tokenize
from dimec.data.tasks import Task
from dimec.deploying.bottlenecks import bottleneck_tails
from dimec.deploying.compose import compose, compose_layers
from dimec.deploying.graphs import export_bottleneck, export_graphs, quantise
from dimec.policies import Calibration, Policy, save_policies
from dimec.runs.compressed import Compressed
from dimec.runs.exit_zero import EXIT_ZERO_FILE
from dimec.runs.run import Run
from dimec.training.model import LoadedModel, MultiExitEncoder
from dimec.training.tabulate import load_split

_PROBES = ("", "A plain sentence.", "Ünïcode… 漢字 🙂", "no [SEP] <mask>", "word " * 9_000)


@dataclass(frozen=True, eq=False)
class BundleWriter:
    """Writes the files of a bundle.

    Attributes:
        policy: What says which exits the tiers need; what is written with the manifests may be fitted again.
        datatype: What hidden states are sent as; None where none are.
        behind: The learned bottleneck that hidden states travel through; None without one.
        costs: The cost model that devices report costs by.
        currency: What these are in; None for lambda.
        asked: The models of others that servers of some tiers ask.
    """

    run: Run
    policy: Policy
    loaded: LoadedModel[MultiExitEncoder]
    quantized: frozenset[Tier]
    datatype: HiddenType | None
    behind: Compressed | None
    costs: CostModel
    currency: str | None
    asked: Mapping[Tier, AskedModel]

    @cached_property
    def layers(self) -> Mapping[Tier, tuple[int, ...]]:
        """Every tier's exits that the policy may reach there, and at least those up to its depth."""
        last = {tier: self.policy.depths.of(tier) for tier in TIERS}
        for step in self.policy.endpoints():
            last[step.tier] = max(last[step.tier], step.layer)
        exits = self.run.config.exits
        own = {tier: tuple(layer for layer in exits if layer <= last[tier]) for tier in TIERS}
        return own | {tier: (last[tier],) for tier in self.asked}

    @cached_property
    def tails(self) -> Mapping[Tier, Tails]:
        """What the manifests say of hidden states that are sent."""
        if self.behind is not None:
            return bottleneck_tails(self.behind)
        tails: dict[Tier, Tails] = {}
        if self.datatype is None:
            return tails
        # The device ships what it can, the cloud resumes, and so does the edge where the policy may resume there.
        resumed = {step.tier for step in self.policy.endpoints() if step.resumes}
        width = self.loaded.model.adapter.width
        for tier in {Tier.MOBILE, Tier.CLOUD} | resumed:
            states = tails_of(tier, self.layers[tier], n_layers=self.run.config.n_layers)
            if states:
                tails[tier] = Tails(layers=states, width=width, datatype=self.datatype)
        return tails

    def graphs(self, tier: Tier) -> tuple[str, ...]:
        """Return the graphs of a tier that are pieces; edge and cloud have them as one too."""
        if tier in self.asked:
            return ()
        layers = self.layers[tier]
        also = bottleneck_graphs(tier, layers, self.tails.get(tier))
        return (EMBEDDING, *map(segment_name, layers), *also)

    def write_graphs(self, folder: Path, *, progress: Progress) -> None:
        """Write graphs, tokenizer and exit zero; graphs that several tiers hold are made once."""
        pieces = {False: folder / ".pieces", True: folder / ".quantized"}
        for each in pieces.values():
            each.mkdir()
        export_graphs(self.loaded.model, pieces[False], progress=progress)
        if self.behind is not None:
            export_bottleneck(load_split(self.run, self.behind), pieces[False], progress=progress)
        graphs = {tier: self.graphs(tier) for tier in TIERS}
        if self.quantized:
            names = list(dict.fromkeys(name for tier in self.quantized for name in graphs[tier]))
            with progress.stage("Quantising", len(names)) as advance:
                for name in names:
                    quantise(pieces[False] / name, pieces[True] / name)
                    advance(1)
        with progress.stage("Writing tiers", len(TIERS)) as advance:
            for tier in TIERS:
                source = pieces[tier in self.quantized]
                target = folder / tier
                target.mkdir()
                if tier not in self.asked or TOKENIZER in self._also(tier):
                    self.loaded.tokenizer.backend_tokenizer.save(str(target / TOKENIZER))
                if tier in self.asked:
                    write_json(target / ASKED, self.asked[tier].model_dump(mode="json"))
                    advance(1)
                    continue
                for name in graphs[tier]:
                    shutil.copyfile(source / name, target / name)
                paths = [target / segment_name(layer) for layer in self.layers[tier]]
                compose_layers(paths, target / LAYERS_GRAPH)
                if tier is not Tier.MOBILE:
                    compose(target / EMBEDDING, paths, target / TIER_GRAPH)
                advance(1)
        self.run.exit_zero.save(folder / Tier.MOBILE / EXIT_ZERO_FILE)
        for each in pieces.values():
            shutil.rmtree(each)
        self._check_tokenizer(folder / Tier.MOBILE / TOKENIZER)

    def _also(self, tier: Tier) -> tuple[str, ...]:
        """Return the files of a tier that are needed by what it asks: servers of OIP may take token ids alone."""
        asked = self.asked.get(tier)
        takes_ids = asked is not None and (asked.address or "").startswith("oip:")
        return (TOKENIZER,) if takes_ids else ()

    def write_manifests(
        self, folder: Path, policy: Policy, calibration: Calibration, promise: Promise | None
    ) -> None:
        """Write the policy, then a manifest per tier."""
        config, adapter = self.run.config, self.loaded.model.adapter
        save_policies(folder / Tier.MOBILE, {policy.name: policy}, calibration, stem=POLICY)
        files = {
            tier: {
                name: file_info(folder / tier / name)
                for name in (
                    *needed_files(
                        tier, self.layers[tier], self.tails.get(tier), asked=tier in self.asked
                    ),
                    *self._also(tier),
                )
            }
            for tier in TIERS
        }
        versions = {f"export.{name}": version(name) for name in ("torch", "onnxruntime", "onnx")}
        inputs: tuple[str, ...] = ("input_ids", "attention_mask")
        if adapter.accepts_token_types:
            inputs += ("token_type_ids",)
        for tier in TIERS:
            manifest = TierManifest(
                format=FORMAT,
                tier=tier,
                layers=self.layers[tier],
                n_layers=config.n_layers,
                label_names=config.task.label_names,
                task=BundleTask(
                    name=config.task.name, metric=config.task.metric, pairs=config.task.pairs
                ),
                max_length=config.max_length,
                cut=config.options.cut,
                max_tokens=adapter.max_tokens,
                pad_id=self._pad_id,
                n_vocabulary=self.loaded.model.word_embeddings.num_embeddings,
                inputs=inputs,
                policy=policy.name,
                method=policy.method,
                depths=policy.depths,
                costs=self.costs,
                currency=self.currency,
                asked={each: model.fee for each, model in self.asked.items()},
                price=calibration.price,
                promise=promise,
                tails=self.tails.get(tier),
                quantized=tier in self.quantized,
                model_fingerprint=fingerprint_of(files),
                provenance=Provenance(
                    data_fingerprint=config.data_fingerprint,
                    backbone=_public_name(config.options.backbone),
                    backbone_fingerprint=config.backbone_fingerprint,
                    seed=config.options.seed,
                    versions={**config.versions, "export.dimec": __version__, **versions},
                    code_revision=config.code_revision,
                ),
                files=files[tier],
            )
            write_json(folder / tier / MANIFEST, manifest.model_dump(mode="json"))

    def _check_tokenizer(self, path: Path) -> None:
        """Hold the device's tokenizer against the one that the model was fitted with."""
        config = self.run.config
        max_length, cut, pairs = config.max_length, config.options.cut, config.task.pairs
        texts = TextDataset(
            task=Task("probes", ("a", "b"), metric="accuracy", text_columns=("text",)),
            first=_PROBES,
            second=tuple(reversed(_PROBES)) if pairs else None,
            labels=np.zeros(len(_PROBES), dtype=np.int64),
            row_ids=np.arange(len(_PROBES)),
            source="probes",
        )
        wanted = tokenize(texts, self.loaded.tokenizer, max_length=max_length, cut=cut)
        ours = TierTokenizer(
            path,
            max_length=max_length,
            cut=cut,
            pad_id=self._pad_id,
            pairs=pairs,
            token_types=wanted.token_type_ids is not None,
        ).encode(texts.first, texts.second)
        same = [
            np.array_equal(a, b)
            for left, right in (
                (wanted.input_ids, ours.input_ids),
                (wanted.token_type_ids or [], ours.token_type_ids or []),
            )
            for a, b in zip(left, right, strict=True)
        ]
        if not all(same) or not np.array_equal(wanted.payload_bytes, ours.payload_bytes):
            raise OptionError(
                "the tokenizer of this backbone gives other token ids without transformers, so no device could use it: "
                "fit another backbone"
            )

    @property
    def _pad_id(self) -> int:
        pad_id = self.loaded.tokenizer.pad_token_id
        if not isinstance(pad_id, int):
            raise ContractError("a trained model's tokenizer has one padding id")
        return pad_id


def _public_name(backbone: str) -> str:
    """Name a backbone without saying where on this machine it lies."""
    path = Path(backbone).expanduser()
    return (
        path.name if path.is_absolute() or path.is_dir() or backbone.startswith(".") else backbone
    )
