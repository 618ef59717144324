"""From options to everything that training needs: data, splits, tokens, a model, and the resolved configuration."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dimec.core.errors import OptionError
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import TIERS, Depths, Method, method_depths
from dimec.data import (
    Split,
    TextDataset,
    choose_split,
    covering_length,
    load_dataset,
    load_labelled,
)
from dimec.data.classes import class_weights
from dimec.data.dataset import MAX_LISTED
from dimec.data.likeness import Likeness, stand_in
from dimec.data.splits import NOT_GIVEN, TEST, VALIDATION
from dimec.runs.run import FORMAT, FitOptions, RunConfig, SplitInfo, TaskInfo
from dimec.training.batching import Hardware, Rows, library_versions
from dimec.training.model import Backbone, MultiExitEncoder, Pooling, load_backbone
from dimec.training.model.dropout import use_byte_dropout


@dataclass(frozen=True, eq=False)
class Prepared:
    """The ingredients of a fit; ``rows`` are those of each split: train, validation, test."""

    config: RunConfig
    hardware: Hardware
    backbone: Backbone
    model: MultiExitEncoder
    split: Split
    rows: Mapping[str, Rows]


def read_dataset(
    options: FitOptions, *, progress: Progress = SILENT
) -> tuple[TextDataset, NDArray[np.int64]]:
    """Return the rows that a fit is about, before they are split: those of its data, its validation and its test file.

    Beside them stands which part a file of its own gives each: [rows], `NOT_GIVEN` for those of the data.

    Raises:
        DataError: If the data cannot be used.
        OptionError: If options do not fit the data.
        UnreachableError: If a hub name cannot be loaded.
    """
    dataset = load_dataset(
        options.task,
        data=options.data,
        columns=options,
        metric=options.metric,
        positive=options.positive,
        fold_labels=options.fold_labels,
        time_column=options.time_column,
    )
    if options.max_rows is not None and options.max_rows < len(dataset):
        progress.say(f"--max-rows: {options.max_rows:,} of {len(dataset):,} rows drawn")
        dataset = dataset.drawn(options.max_rows, seed=options.seed)
    given = np.full(len(dataset), NOT_GIVEN)
    for name, path, part in (
        ("validation", options.validation, VALIDATION),
        ("test", options.test, TEST),
    ):
        if path is None:
            continue
        flag = f"--{name}"
        if Path(path).is_dir():
            raise OptionError(f"{flag} {path} is a folder: give a file")
        own = load_labelled(
            options.task,
            data=path,
            label_names=dataset.task.label_names,
            pairs=dataset.second is not None,
            reader="--data holds",
            columns=options,
            progress=progress,
            option=flag,
        )
        n_both = int(stand_in(own, dataset).sum())
        known = f"{flag} {path}: {n_both:,} of its {len(own):,} rows stand in {dataset.source} too"
        if 2 * n_both > len(own):
            raise OptionError(
                f"{known}, so that a model knows them: give rows that it does not train on"
            )
        if n_both:
            progress.warn(f"{known}: remove them there for scores that hold on new texts")
        dataset = dataset.followed_by(own, name)
        given = np.concatenate([given, np.full(len(own), part)])
    return dataset, given


def count_layers(backbone: str) -> int:
    """Return how many layers a backbone has, before anything is fitted; what is raised is as in `load_backbone`."""
    return load_backbone(backbone).adapter.n_layers


def prepare(
    options: FitOptions, *, known: dict[str, Likeness] | None = None, progress: Progress
) -> Prepared:
    """Load, split and tokenise the data and build an untrained multi-exit encoder; all draws come from the seed.

    ``known`` keeps what the rows of a data set share, by its fingerprint, for other fits of the same data.

    Raises:
        DataError: If the data cannot be used.
        OptionError: If options do not fit the data or the backbone.
        UnreachableError: If a hub name cannot be loaded.
    """
    backbone = _first_layers(load_backbone(options.backbone), options.layers)
    limit = backbone.adapter.max_tokens
    if options.max_length is not None and options.max_length > limit:
        raise OptionError(
            f"--max-length {options.max_length} is too long for {options.backbone}: it takes up to {limit} tokens"
        )
    depths = resolve_depths(options, n_layers=backbone.adapter.n_layers)
    exits = exit_layers(options, depths, n_layers=backbone.adapter.n_layers)
    if options.training == "two-stage" and len(exits) == 1:
        raise OptionError(
            f"--training two-stage trains the last exit and then those before it, and this model has a single exit, "
            f"after layer {exits[0]}: choose --training joint, or --exits all on two layers or more"
        )
    dataset, given = read_dataset(options, progress=progress)
    known = {} if known is None else known
    if dataset.fingerprint not in known:
        known[dataset.fingerprint] = Likeness.of(dataset)
    split, leakage = choose_split(
        dataset,
        options.split_choice,
        seed=options.seed,
        given=given,
        likeness=known[dataset.fingerprint],
        progress=progress,
    )
    for name in ("validation", "test"):
        if absent := dataset.take(getattr(split, name)).absent_classes:
            progress.warn(
                f"the {name} rows have none of the class {', '.join(absent[:MAX_LISTED])}: nothing is known of it"
            )
    progress.say(
        f"{dataset.source}: {len(dataset):,} rows, {len(split.train):,} / {len(split.validation):,} / "
        f"{len(split.test):,} for train / validation / test ({split.kind} split)"
    )
    progress.say(dataset.class_words)
    weights = class_weights(
        options.class_weight, dataset.labels[split.train], dataset.task.label_names
    )
    if weights is not None:
        listed = zip(dataset.task.label_names[:MAX_LISTED], weights, strict=False)
        progress.say("class weights: " + ", ".join(f"{name} {each:.3g}" for name, each in listed))
    if dataset.mapping_words:
        progress.say(dataset.mapping_words)
    for alike in dataset.look_alikes():
        progress.warn(alike)
    if split.n_duplicates:
        progress.say(
            f"{split.n_duplicates:,} rows repeat an earlier one and stay in its split; "
            f"{split.n_conflicts:,} texts carry more than one label"
        )
    if options.cut == "head-tail" and dataset.second is not None:
        raise OptionError("--cut head-tail is for single texts: leave it out for pairs of texts")
    max_length = options.max_length
    if max_length is None:
        training = dataset.take(split.train)
        max_length = covering_length(training, backbone.tokenizer, limit=limit)
        progress.say(f"--max-length auto: the encoder reads up to {max_length} tokens of a text")
    rows = Rows.tokenized(
        dataset, backbone.tokenizer, max_length=max_length, cut=options.cut, progress=progress
    )
    torch.manual_seed(options.seed)
    hardware = Hardware.find(options.precision)
    if hardware.device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    pooling = Pooling(options.pooling) if options.pooling else backbone.default_pooling
    model = MultiExitEncoder(
        backbone.adapter, exits=exits, n_classes=len(dataset.task.label_names), pooling=pooling
    ).to(hardware.device)
    use_byte_dropout(model)
    config = RunConfig(
        format=FORMAT,
        options=options,
        task=TaskInfo(
            name=dataset.task.name,
            label_names=dataset.task.label_names,
            metric=dataset.task.metric,
            pairs=dataset.second is not None,
        ),
        source=dataset.source,
        data_fingerprint=dataset.fingerprint,
        backbone_fingerprint=backbone.fingerprint,
        n_layers=backbone.adapter.n_layers,
        exits=model.exits,
        depths=depths,
        pooling=str(pooling),
        device=str(hardware),
        precision="bf16" if hardware.bf16 else "fp32",
        auto_length=max_length if options.max_length is None else None,
        share_cut=rows.tokens.share_cut,
        versions=library_versions(),
        code_revision=_code_revision(),
        split=SplitInfo(
            kind=split.kind, leaking_share=leakage.share, test_file=options.test is not None
        ),
        class_weights=weights,
    )
    by_split = {name: rows.take(getattr(split, name)) for name in ("train", "validation", "test")}
    return Prepared(config, hardware, backbone, model, split, by_split)


def _first_layers(backbone: Backbone, n_layers: int | None) -> Backbone:
    """Cut a backbone to its first layers; None keeps them all."""
    if n_layers is None:
        return backbone
    if n_layers > backbone.adapter.n_layers:
        raise OptionError(
            f"--layers {n_layers} is more than {backbone.name} has: give 1 to {backbone.adapter.n_layers}"
        )
    adapter = backbone.adapter.keep(n_layers)
    if not adapter.is_plain:
        raise OptionError(
            f"--layers {n_layers}: the first {n_layers} of the {backbone.adapter.n_layers} layers of {backbone.name} "
            "cannot be written in Hugging Face layout, where they would share their weights differently; leave "
            "--layers out, or give another number or backbone"
        )
    return replace(backbone, adapter=adapter)


def resolve_depths(options: FitOptions, *, n_layers: int) -> dict[Method, Depths]:
    """Return the depths of both methods for an encoder, with what the user set; none where three tiers do not fit.

    Raises:
        OptionError: If the user set depths that the encoder does not have.
    """
    if n_layers < len(TIERS):
        for name in ("mobile_layers", "edge_layers"):
            value = getattr(options, name)
            if value is not None:
                raise OptionError(
                    f"--{name.replace('_', '-')} {value} cuts a model into three tiers, and this one has only "
                    f"{n_layers} of the 3 layers that it takes: leave it out, or fit a model of 3 layers or more"
                )
        return {}
    methods: tuple[Method, ...] = ("dc", "ee")
    mobile, edge = options.mobile_layers, options.edge_layers
    return {each: method_depths(each, n_layers, mobile=mobile, edge=edge) for each in methods}


def exit_layers(options: FitOptions, depths: dict[Method, Depths], *, n_layers: int) -> list[int]:
    """Return where exits go: after every layer, or after the last layers of the tiers and of the model."""
    if options.exits == "all":
        return list(range(1, n_layers + 1))
    ends = {layer for each in depths.values() for layer in (each.mobile, each.edge)}
    return sorted(ends | {n_layers})


def _code_revision() -> str | None:
    """Return the commit of the source tree this package runs from, marked where it was changed; None outside of one."""
    folder = str(Path(__file__).parent)
    try:
        revision, changes = (
            subprocess.run(
                ["git", "-C", folder, *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", folder])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}+changes" if changes else revision
