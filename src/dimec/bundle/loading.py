"""Loading a bundle or one tier of it; whatever is wrong with it is one `BundleError` that names file and remedy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dimec.bundle.engines.tier import EMBEDDING, segment_name
from dimec.bundle.manifest import (
    ASKED,
    FORMAT,
    MANIFEST,
    POLICY,
    POLICY_FILES,
    TOKENIZER,
    AskedModel,
    TierManifest,
    bottleneck_graphs,
    file_info,
)
from dimec.bundle.tokenizer import TierTokenizer
from dimec.core.errors import BundleError
from dimec.core.files import check_readable
from dimec.core.tiers import TIERS, Tier
from dimec.core.untrusted import read_json, trusting_nothing
from dimec.policies import POLICIES, Policy, load_policies
from dimec.policies.store import rehearse
from dimec.runs.exit_zero import EXIT_ZERO_FILE, ExitZero

_AGAIN = "copy the bundle again, or export it again with `dimec export`"

_SHARED = (
    *("model_fingerprint", "label_names", "task", "policy", "depths", "n_layers"),
    *("costs", "currency", "asked", "price", "inputs", "max_length", "cut", "pad_id"),
)
"""What the manifests of all tiers of one export have in common."""


@dataclass(frozen=True)
class TierBundle:
    """One tier of a bundle: its folder, and the manifest that was read from it."""

    folder: Path
    manifest: TierManifest

    @property
    def tier(self) -> Tier:
        """Which tier it is."""
        return self.manifest.tier

    @property
    def layers(self) -> tuple[int, ...]:
        """The exits' layers, ascending."""
        return self.manifest.layers

    @property
    def asks(self) -> bool:
        """Whether its server asks another model; it has no graphs then."""
        return self.tier in self.manifest.asked

    def asked_model(self) -> AskedModel:
        """Read the model that its server asks.

        Raises:
            BundleError: If it asks none, or the file cannot be read.
        """
        path = self.path(ASKED)
        with trusting_nothing(path, BundleError, remedy=_AGAIN):
            return read_json(path, AskedModel, known=FORMAT)

    @property
    def also(self) -> tuple[str, ...]:
        """The graphs of its end of a learned bottleneck."""
        return bottleneck_graphs(self.tier, self.layers, self.manifest.tails)

    def path(self, name: str) -> Path:
        """Return where a file of the manifest is; a `BundleError` where the tier has none of that name."""
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.folder} has no {name}: its files are {', '.join(self.manifest.files)}"
            )
        return self.folder / name

    def begins(self, other: TierBundle) -> bool:
        """Tell whether this tier holds the graphs that another one begins with, so that a state of one serves both."""
        files, others = self.manifest.files, other.manifest.files
        return all(
            files[name] == others.get(name) for name in (EMBEDDING, *map(segment_name, self.layers))
        )

    def tokenizer(self) -> TierTokenizer:
        """Read the tokenizer."""
        return TierTokenizer(
            self.path(TOKENIZER),
            max_length=self.manifest.max_length,
            cut=self.manifest.cut,
            pad_id=self.manifest.pad_id,
            pairs=self.manifest.task.pairs,
            token_types="token_type_ids" in self.manifest.inputs,
        )

    def exit_zero(self) -> ExitZero:
        """Read the classifier before the first layer.

        Raises:
            BundleError: If this is not the mobile tier, or it cannot be read.
        """
        path = self.path(EXIT_ZERO_FILE)
        with trusting_nothing(path, BundleError, remedy=_AGAIN):
            return ExitZero.load(path, n_classes=len(self.manifest.label_names))

    def policy(self) -> Policy:
        """Read the fitted policy, a new object each time.

        Raises:
            BundleError: If this is not the mobile tier, or the policy cannot be read.
        """
        name = self.manifest.policy
        if self.tier is not Tier.MOBILE:
            raise BundleError(f"{self.folder} holds no policy: it is in the bundle's mobile folder")
        if name not in POLICIES:
            raise BundleError(
                f"{self.folder} holds the policy {name}, which this version does not know: install a newer dimec"
            )
        with trusting_nothing(self.path(POLICY_FILES[0]), BundleError, remedy=_AGAIN):
            policy = load_policies(self.folder, {name: POLICIES[name]}, stem=POLICY)[name]
            if policy.depths != self.manifest.depths:
                raise ValueError("its depths are not the manifest's")
            rehearse(policy, mobile_layers=self.manifest.layers)
            return policy


@dataclass(frozen=True)
class Bundle:
    """The tiers that a folder holds: mobile, and edge and cloud where they are there too."""

    folder: Path
    mobile: TierBundle
    edge: TierBundle | None
    cloud: TierBundle | None

    def of(self, tier: Tier) -> TierBundle | None:
        """Return a tier; None where it is not there."""
        return (self.mobile, self.edge, self.cloud)[TIERS.index(tier)]


def is_bundle(folder: str | Path) -> bool:
    """Tell whether a folder looks like a bundle, whole or not.

    Raises:
        BundleError: If this user may not look.
    """
    manifests = [Path(folder) / tier / MANIFEST for tier in TIERS]
    for each in manifests:
        check_readable(each, fault=BundleError)
    return any(each.exists() for each in manifests)


def load_bundle(folder: str | Path, *, verify: bool = True) -> Bundle:
    """Load every tier that a folder holds; a device needs mobile alone.

    Raises:
        BundleError: If there is no mobile tier, a tier is faulty, or the tiers are of different exports.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        if (folder / MANIFEST).exists():
            raise BundleError(f"{folder} is one tier of a bundle: give the folder above it")
        made = (
            f"`dimec export {folder} --out BUNDLE` makes one of this run"
            if (folder / "config.json").exists()
            else "`dimec export RUN --out BUNDLE` makes one"
        )
        raise BundleError(f"{folder} is no bundle: it has no mobile/{MANIFEST}; {made}")
    mobile = load_tier(folder / Tier.MOBILE, verify=verify)
    edge, cloud = (
        load_tier(folder / tier, verify=verify) if (folder / tier).exists() else None
        for tier in (Tier.EDGE, Tier.CLOUD)
    )
    for tier in (edge, cloud):
        if tier is not None and any(
            getattr(tier.manifest, name) != getattr(mobile.manifest, name) for name in _SHARED
        ):
            raise BundleError(
                f"{tier.folder} and {mobile.folder} are of different exports: {_AGAIN}"
            )
    for name, tier in zip(TIERS, (mobile, edge, cloud), strict=True):
        if tier is not None and tier.tier is not name:
            raise BundleError(f"{tier.folder} holds the {tier.tier} tier: {_AGAIN}")
    return Bundle(folder, mobile, edge, cloud)


def load_tier(folder: str | Path, *, verify: bool = True) -> TierBundle:
    """Load one tier, such as ``BUNDLE/edge``; without ``verify`` only presence and size of files are checked.

    Raises:
        BundleError: If it is missing, altered, truncated or of a newer format.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock to others
        found_files = {
            folder / name: pool.submit(file_info, folder / name, hashed=verify)
            for name in manifest.files
        }
    for (path, finding), expected in zip(found_files.items(), manifest.files.values(), strict=True):
        with trusting_nothing(path, BundleError, remedy=_AGAIN):
            found = finding.result()
            if found.bytes != expected.bytes:
                raise BundleError(
                    f"{path} has {found.bytes:,} bytes, the manifest says {expected.bytes:,}: it was cut off or "
                    f"altered; {_AGAIN}"
                )
            if verify and found.sha256 != expected.sha256:
                raise BundleError(
                    f"{path} is not the file that was exported (its SHA-256 differs): {_AGAIN}"
                )
    return TierBundle(folder, manifest)


def _read_manifest(folder: Path) -> TierManifest:
    path = folder / MANIFEST
    what = (
        f"{folder} is a bundle, not one tier of it: give {folder / Tier.EDGE}, for instance"
        if is_bundle(folder)
        else _AGAIN
    )
    with trusting_nothing(path, BundleError, remedy=_AGAIN, missing=what):
        return read_json(path, TierManifest, known=FORMAT)
