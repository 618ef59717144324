"""A learned bottleneck in an export: which of the run's it is, what the policy behind it is fitted from, its graphs."""

from __future__ import annotations

from dimec.bundle.hidden import BundleBottleneck, Tails
from dimec.core.errors import OptionError
from dimec.core.tiers import TIERS, Tier
from dimec.deploying.options import ExportOptions
from dimec.evaluation.setup import USUAL_WIDTH
from dimec.policies import POLICIES
from dimec.runs.compressed import Compressed, CompressOptions, compress_command, compressed_in
from dimec.runs.run import Run
from dimec.training.model.reading import fingerprint


def named_bottleneck(run: Run, policy: str) -> Compressed | None:
    """Return the one that a policy asks for by its kind or by its own name; None where it asks for none.

    Raises:
        OptionError: If there is none, or are several, or it is not finished, of another model, or sends no bytes.
        RunError: If one cannot be read.
    """
    known = POLICIES.get(policy)
    if known is not None and known.bottleneck is None:
        return None
    found = compressed_in(run)
    chosen = [each for each in found if each.config.name == policy]
    if not chosen and known is None:
        return None
    chosen = chosen or [each for each in found if each.kind == policy and each.finished]
    if not chosen:
        options = CompressOptions.model_validate(
            {"kind": policy, "layer": run.config.depths["ee"].mobile, "width": USUAL_WIDTH}
        )
        raise OptionError(
            f"--policy {policy} needs a learned bottleneck, and {run.folder} holds no finished one of that kind: "
            f"`{compress_command(run, options)}` learns one"
        )
    if len(chosen) > 1:
        names = ", ".join(each.config.name for each in chosen)
        raise OptionError(
            f"--policy {policy}: {run.folder} holds {len(chosen)} bottlenecks of that kind; name one of {names}"
        )
    (only,) = chosen
    _check(run, only)
    return only


def bottleneck_tails(compressed: Compressed) -> dict[Tier, Tails]:
    """Return what the manifests say of a bottleneck: mobile reduces, the cloud restores."""
    options = compressed.config.options
    code = options.code
    bottleneck = BundleBottleneck(
        name=compressed.config.name, kind=code.kind, pool=code.pool, levels=code.levels
    )
    tails = Tails(
        layers=(options.layer,), width=code.width, datatype="UINT8", bottleneck=bottleneck
    )
    return {Tier.MOBILE: tails, Tier.CLOUD: tails}


def check_travels(options: ExportOptions) -> None:
    """Check what else is asked for beside a bottleneck.

    Raises:
        OptionError: If its states were to travel otherwise, or through tiers that are not one encoder.
    """
    if options.hidden_type is not None:
        raise OptionError(
            f"--hidden-type {options.hidden_type.lower()}: behind a learned bottleneck hidden states travel as its "
            "bytes; leave it out"
        )
    if options.quantize and set(options.quantize) != set(TIERS):
        raise OptionError(
            f"--policy {options.policy} reads all tiers as one encoder: quantise all of them, or none"
        )


def _check(run: Run, compressed: Compressed) -> None:
    options = compressed.config.options
    if options.channel == "awgn":
        raise OptionError(
            f"--policy {compressed.config.name} was trained for a noisy radio channel, whose analog symbols cannot be "
            "sent as bytes: export a bottleneck of `--channel erasure`, or only evaluate this one"
        )
    if not compressed.finished:
        raise OptionError(
            f"the training of {compressed.folder} was stopped: `{compress_command(run, options)}` goes on with it"
        )
    if compressed.config.model_fingerprint != fingerprint(run.model_folder):
        raise OptionError(
            f"{compressed.folder} was learnt for another model than {run.folder} holds now: "
            f"`{compress_command(run, options)} --restart` learns it anew"
        )
