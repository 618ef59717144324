"""A bundle on the hub and back, and its model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dimec.bundle import Bundle, is_bundle, load_bundle
from dimec.bundle.manifest import BUNDLE_FILES, PROFILE, REPORT
from dimec.core.errors import BundleError, UnreachableError
from dimec.core.extras import needs_hub
from dimec.core.files import replacing, writing
from dimec.core.outputs import check_replaceable, holding, keep_others
from dimec.core.tiers import TIERS, Tier
from dimec.core.untrusted import read_json, reason, trusting_nothing
from dimec.data.hub import snapshot
from dimec.deploying.export_report import ExportReport
from dimec.evaluation.recommendation import basis, sentence

CARD = "README.md"
HUB_FILES = tuple(each for each in BUNDLE_FILES if each != PROFILE)
"""What of a bundle goes to the hub and comes back: not what somebody has measured on their own machine."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What only its maker can say of a model.

    Attributes:
        license: An SPDX identifier in lower case, such as apache-2.0; None where nothing is granted.
        language: Codes of the texts' languages, such as en.
        examples: Texts that the hub's page offers for a try; for pairs, tuples of two.
        notes: Markdown below the heading: what it is for, whose texts it has learnt from.
    """

    license: str | None = None
    language: Sequence[str] = ()
    examples: Sequence[str | tuple[str, str]] = ()
    notes: str = ""


def save(bundle: Bundle, folder: Path, about: About) -> None:
    """Copy a bundle to a folder, with a model card where there is none yet; a bundle that is there is replaced.

    Raises:
        OptionError: If the folder holds something else than a bundle, or the one that is copied.
        OutputError: If it cannot be written.
    """
    check_replaceable(folder, "bundle", is_bundle, inputs={"the bundle": bundle.folder})
    with holding(folder, doing="saving to"), replacing(folder) as partial:
        for each in _files(bundle):
            target = partial / each.relative_to(bundle.folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(each, target)
        keep_others(folder, BUNDLE_FILES, into=partial)
        if not (partial / CARD).exists():
            (partial / CARD).write_text(model_card(bundle, about), encoding="utf-8")


def pull(name: str, *, served: Collection[Tier], revision: str | None, token: str | None) -> Bundle:
    """Bring a bundle of the hub into the local cache and load it, but for the tiers that are served elsewhere.

    Raises:
        UnreachableError: If the hub does not have it, or neither the hub nor the cache gives it.
        BundleError: If it is none, or damaged.
        OutputError: If the cache may not be written to.
    """
    folder = snapshot(
        name,
        files=[each for each in HUB_FILES if each.partition("/")[0] not in served],
        noun="bundle",
        otherwise=f"there is no folder {name} here either: give one, or the name of a bundle on the hub, OWNER/NAME",
        revision=revision,
        token=token,
    )
    # The cache has links to its files, and no graph is opened whose weights may stand anywhere: the same files get
    # second names beside the links.
    plain = folder.parents[1] / "dimec" / folder.name
    with writing(plain):
        for each in folder.glob("**/*"):
            target = plain / each.relative_to(folder)
            if each.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(each.resolve(), target)
    return load_bundle(plain)


def push(
    bundle: Bundle,
    name: str,
    about: About,
    *,
    private: bool | None,
    token: str | None,
    revision: str | None,
    message: str,
    replace_card: bool,
) -> str:
    """Upload a bundle to a model repository, made where it is missing, in one commit; return the commit's URL.

    Files of an earlier bundle that this one lacks are removed. A model card that is there stays, unless
    ``replace_card``. The account says whether a new repository is ``private`` where nothing does.

    Raises:
        UnreachableError: If the hub cannot be reached, or refuses the name, the token or a file.
        MissingExtraError: If huggingface_hub is not installed.
    """
    with needs_hub():
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    additions: dict[str, Path | bytes] = {
        each.relative_to(bundle.folder).as_posix(): each for each in _files(bundle)
    }
    try:
        api = HfApi(token=token)
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        there = set(api.list_repo_files(repository, revision=revision))
        if replace_card or CARD not in there:
            additions[CARD] = model_card(bundle, about).encode()
        own = {name for name in there if any(fnmatch(name, each) for each in HUB_FILES)}
        operations: list[Any] = [CommitOperationDelete(each) for each in sorted(own - {*additions})]
        operations += [CommitOperationAdd(each, content) for each, content in additions.items()]
        done = api.create_commit(repository, operations, commit_message=message, revision=revision)
    except Exception as exc:  # of several libraries, without a common type
        raise UnreachableError(
            f"the hub took no {name!r} ({reason(exc)}): check the network, the name (OWNER/NAME), and that you are "
            "logged in (hf auth login, HF_TOKEN or token=) with the right to write there"
        ) from exc
    return str(done.commit_url)


def _files(bundle: Bundle) -> list[Path]:
    return sorted(each for pattern in HUB_FILES for each in bundle.folder.glob(pattern))


def model_card(bundle: Bundle, about: About) -> str:
    """Return the page of a bundle in Markdown, under the metadata that the hub reads."""
    manifest, report = bundle.mobile.manifest, _report(bundle.folder)
    task, made = manifest.task, manifest.provenance
    recommended = None if report is None else report.recommendation
    title = f"{task.name} by dimec"
    metadata: dict[str, Any] = {
        "license": about.license,
        "language": list(about.language),
        "library_name": "dimec",
        "pipeline_tag": "text-classification",
        "tags": ["dimec", "early-exit", "edge-computing", "onnx"],
        "base_model": made.backbone if made.backbone.count("/") == 1 else None,
        "metrics": [task.metric],
        "widget": [
            {"text": each} if isinstance(each, str) else {"text": each[0], "text_pair": each[1]}
            for each in about.examples
        ],
    }
    if recommended is not None:
        result = {
            "task": {"type": "text-classification"},
            "dataset": {"name": task.name, "type": task.name, "split": "test"},
            "metrics": [{"type": task.metric, "value": round(recommended.score, 4)}],
        }
        metadata["model-index"] = [{"name": title, "results": [result]}]
    # JSON is YAML too, and no value of it can end the header.
    header = [f"{key}: {json.dumps(value)}" for key, value in metadata.items() if value]
    sizes = {
        tier: sum(info.bytes for info in held.manifest.files.values()) / 1e6
        for tier in TIERS
        if (held := bundle.of(tier)) is not None
    }
    parts = [
        "\n".join(["---", *header, "---"]),
        f"# {title}",
        about.notes,
        f"A text classifier with {len(manifest.label_names)} classes ({_listed(manifest.label_names)}), cut across a "
        "mobile device, an edge server and the cloud: a policy sends every text to the cheapest tier that gets it "
        "right.",
        '```python\nimport dimec\n\nclf = dimec.Classifier.from_pretrained("OWNER/NAME")\n'
        + ('clf(("one text", "another"))' if task.pairs else 'clf("a text")')
        + "\n```",
        "## What it reaches",
        *_reached(report),
        "## What it was made from",
        f"- Data: fingerprint `{made.data_fingerprint}` (SHA-256 of texts, labels and their order); no text of it is "
        "here, but the classifier of words alone holds weights of its hashed words.\n"
        f"- Encoder: {made.backbone}, {manifest.n_layers} layers; the device runs {manifest.depths.mobile}, the edge "
        f"{manifest.depths.edge}. Seed {made.seed}.\n"
        f"- Files: ONNX and safetensors, "
        + ", ".join(f"{tier} {size:,.0f} MB" for tier, size in sizes.items())
        + f"{', 8-bit where quantised' if manifest.quantized else ''}. Model `{manifest.model_fingerprint}`.",
        "## Limits",
        f"- The encoder reads {manifest.max_length:,} tokens of a text and cuts the rest ({manifest.cut}).\n"
        "- It always names one of its classes, for texts of any other kind and language too. Probabilities are "
        "calibrated for texts like those of validation.\n"
        "- Scores and costs are of held-out rows of the same source: measure your own with "
        "`dimec evaluate BUNDLE --data FILE`.\n"
        "- What is shipped between tiers, token ids or hidden states, is the text: use TLS.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _report(folder: Path) -> ExportReport | None:
    """Read what an export said of the bundle; None where it left nothing."""
    path = folder / REPORT
    if not path.exists():
        return None
    with trusting_nothing(path, BundleError, remedy="export the bundle again"):
        found: ExportReport = read_json(path, ExportReport)
        return found


def _reached(report: ExportReport | None) -> list[str]:
    """Return the recommendation as a table and in words, and what is promised."""
    if report is None:
        return ["Nothing was kept of its evaluation."]
    told = []
    if (found := report.recommendation) is not None:
        low, high = found.test_drop_ci95
        shares = " / ".join(f"{100 * each:.0f} %" for each in found.shares.model_dump().values())
        told += [
            f"| what answers | {found.metric} | points lost (95 % interval) | cost, λ | share of the cloud's cost "
            "| device / edge / cloud |\n|---|---|---|---|---|---|\n"
            f"| this bundle | {100 * found.score:.2f} | {found.test_drop_points:.2f} ({low:.1f} to {high:.1f}) "
            f"| {found.cost:.2f} | {100 * found.cost_vs_cloud:.0f} % | {shares} |\n"
            f"| the full model in the cloud | {100 * found.cloud_score:.2f} | 0 "
            f"| {found.cost / found.cost_vs_cloud:.2f} | 100 % | 0 % / 0 % / 100 % |",
            f"{sentence(found)} {basis(found)}",
        ]
    else:
        now = report.after or report.before
        told.append(
            f"On {report.n:,} rows of validation, which chose its thresholds, the policy {report.policy} reaches "
            f"{report.metric} {100 * now.score:.2f} at a mean cost of {now.cost:.2f} λ."
        )
    if (promise := report.promise) is not None:
        over = "in the long run" if promise.over is None else f"on the next {promise.over:,} texts"
        told.append(
            f"Promised with {100 * promise.assurance:.0f} % assurance, for texts like the {promise.rows:,} that "
            f"certified it: at most {promise.max_drop_points:g} points under the full model, {over}."
        )
    return told


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:20])
    return listed if len(names) <= 20 else f"{listed} and {len(names) - 20:,} more"
