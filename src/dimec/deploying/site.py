"""Writing a site: the built page, a bundle's mobile files, and what the page is told."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from dimec.bundle import Bundle, TierBundle, load_bundle
from dimec.bundle.engines.tier import LAYERS_GRAPH
from dimec.bundle.manifest import MANIFEST, POLICY_FILES, needed_files
from dimec.bundle.site import INDEX, PACKED, SITE, WORKER, OperatingPoint, Site
from dimec.core.errors import BundleError, OptionError
from dimec.core.files import replacing, write_json
from dimec.core.options import checked
from dimec.core.outputs import check_replaceable, holding, keep_others
from dimec.deploying.options import WebOptions
from dimec.runtime.device.client import checked_url
from dimec.runtime.device.options import DeviceSettings

POLICIES = (
    *("dimec-cascade", "early-exit", "dimec-dc-fixed", "dimec-dc-adaptive"),
    *("dimee-fixed", "dimee-adaptive"),
)
"""The policies that the page runs."""
PACKAGE = "dimec_page"
"""The package of the extra `web`, which holds the built page."""

_CONTENT_POLICY = "<!-- content-security-policy -->"
_WRITTEN = (
    *(INDEX, WORKER, SITE, "manifest.webmanifest", "icon*", "licenses.txt"),
    *("assets/*", "bundle/*", "points/*/*"),
)
"""What this module writes into a site's folder, as globs, beside the same names with the ends of `PACKED`."""
_POINT_FILES = (MANIFEST, *POLICY_FILES)
_WORTH = 0.9
"""A compressed file is kept where it has at most this share of the bytes."""


@dataclass(frozen=True, slots=True)
class WrittenSite:
    """What was written: the folder, its bytes, and those of a first visit by gzip."""

    folder: Path
    bytes: int
    packed_bytes: int


def write_site(bundle: Path, out: Path, options: WebOptions) -> WrittenSite:
    """Write the site of a bundle; a site that is there is replaced in one step.

    Raises:
        BundleError: If the bundle, or one that gives an operating point, cannot be used by a page.
        OptionError: If an option cannot be used, or the folder holds something else than a site.
        OutputError: If it cannot be written.
    """
    page = _page(options.page)
    inputs: dict[str, str | Path | None] = {"BUNDLE": bundle, "--page": page}
    check_replaceable(out, "site", lambda there: (there / SITE).is_file(), inputs=inputs)
    mobile = _mobile(load_bundle(bundle))
    points = _points(options.points, mobile)
    site = _site(options, mobile, points)
    with holding(out, doing="writing a site to"), replacing(out) as partial:
        # Of a site, which holds a page too, what is written anew.
        shutil.copytree(
            page,
            partial,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(SITE, "bundle", "points"),
        )
        # The page runs layer by layer.
        needed = set(needed_files(mobile.tier, mobile.layers)) - {LAYERS_GRAPH}
        _copy(mobile, (MANIFEST, *sorted(needed)), partial / "bundle")
        for point, other in zip(site.points, points.values(), strict=True):
            _copy(other, _POINT_FILES, partial / point.folder)
        write_json(partial / SITE, site.model_dump(mode="json"))
        index = (partial / INDEX).read_text(encoding="utf-8")
        meta = f'<meta http-equiv="Content-Security-Policy" content="{site.content_policy}" />'
        (partial / INDEX).write_text(index.replace(_CONTENT_POLICY, meta), encoding="utf-8")
        total, packed = _pack(partial)
        own = [*_WRITTEN, *(each + end for each in _WRITTEN for end in PACKED)]
        keep_others(out, own, into=partial)
    return WrittenSite(out, total, packed)


def built_page() -> Path | None:
    """Return the folder of the page that is installed, or built in a checkout; None without one."""
    package = importlib.util.find_spec(PACKAGE)
    places = [Path(each) for each in (package and package.submodule_search_locations) or ()]
    places.append(Path(__file__).parents[3] / "web" / "dist")
    return next(filter(_is_page, places), None)


def _is_page(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (INDEX, WORKER))


def _page(given: Path | None) -> Path:
    if given is not None and not _is_page(given):
        raise OptionError(
            f"--page {given} holds no built page, which has {INDEX} and {WORKER}: `npm run build` in web/ makes one"
        )
    if (found := given or built_page()) is None:
        raise OptionError(
            "the page is not installed: `pip install 'dimec[web]'`, or in a checkout `make web`, which needs Node.js, "
            "or name the folder of a built page by --page"
        )
    return found


def _mobile(bundle: Bundle) -> TierBundle:
    """Return the mobile tier of a bundle that a page can run."""
    manifest = bundle.mobile.manifest
    if manifest.policy not in POLICIES:
        raise BundleError(
            f"{bundle.folder} has the policy {manifest.policy}, which a page cannot run: export it by --policy "
            f"{', '.join(POLICIES[:-1])} or {POLICIES[-1]}"
        )
    return bundle.mobile


def _points(given: tuple[str, ...], mobile: TierBundle) -> dict[str, TierBundle]:
    found: dict[str, TierBundle] = {}
    for each in given:
        name, _, folder = each.partition("=")
        if not name or not folder or name in found or len(name) > 40:
            raise OptionError(
                f"--point {each}: give NAME=BUNDLE, each name once and of at most 40 characters"
            )
        other = _mobile(load_bundle(folder))
        if other.manifest.model_fingerprint != mobile.manifest.model_fingerprint:
            raise OptionError(
                f"--point {each} is a bundle of another model: export the same run with another policy, --max-drop or "
                "--price, and the same --quantize"
            )
        found[name] = other
    return found


def _site(options: WebOptions, mobile: TierBundle, points: dict[str, TierBundle]) -> Site:
    task, examples = mobile.manifest.task, list[str | tuple[str, str]]()
    for each in options.examples:
        parts = each.split("\t")
        if len(parts) != 1 + task.pairs or any(not 0 < len(part) <= 300 for part in parts):
            wanted = "two texts with a tab between" if task.pairs else "one text without a tab"
            raise OptionError(f"--example {each[:60]!r}: give {wanted}, of at most 300 characters")
        examples.append((parts[0], parts[1]) if task.pairs else each)
    if len(examples) > 8 or len(points) > 20:
        raise OptionError("a page takes at most 8 times --example and 20 times --point: give fewer")
    title = f"dimec: {task.name}"[:80] if options.title is None else options.title
    if not 0 < len(title) <= 80:
        raise OptionError(f"--title {title[:60]!r}: give 1 to 80 characters")
    found = [
        OperatingPoint(name=name, folder=f"points/{place}") for place, name in enumerate(points)
    ]
    told = {"edge": _url(options.edge, "--edge"), "cloud": _url(options.cloud, "--cloud")}
    return checked(Site, {"title": title, "examples": examples, "points": found, **told})


def _url(given: str | None, flag: str) -> str | None:
    if given is None or given == ".":
        return given
    return checked_url(given, option=flag, token=None, settings=DeviceSettings())


def _copy(tier: TierBundle, names: tuple[str, ...], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in names:
        shutil.copyfile(tier.folder / name, folder / name)


def _pack(folder: Path) -> tuple[int, int]:
    """Compress what becomes smaller by it; return the bytes of all files, and of all compressed as far as they are."""
    total = packed = 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in PACKED:
            continue
        size = path.stat().st_size
        beside = path.with_name(f"{path.name}.gz")
        content = gzip.compress(path.read_bytes(), 6, mtime=0)
        if len(content) <= _WORTH * size:
            beside.write_bytes(content)
            size, total = len(content), total + size - len(content)
        total, packed = total + size, packed + size
    return total, packed
