"""The bundle: the deployable files of the three tiers, a manifest per tier, and loading that trusts nothing.

`load_bundle` and `load_tier` read and verify folders; `TierBundle` gives a tier's graphs to an engine, its tokenizer,
and on mobile the fitted policy. Nothing here needs torch; `dimec.deploying` writes what is read here.
"""

from dimec.bundle.loading import Bundle, TierBundle, is_bundle, load_bundle, load_tier
from dimec.bundle.manifest import (
    AskedModel,
    BundleTask,
    Provenance,
    TierManifest,
    file_info,
    fingerprint_of,
)
from dimec.core.tokens import Tokens

__all__ = [
    "AskedModel",
    "Bundle",
    "BundleTask",
    "Provenance",
    "TierBundle",
    "TierManifest",
    "Tokens",
    "file_info",
    "fingerprint_of",
    "is_bundle",
    "load_bundle",
    "load_tier",
]
