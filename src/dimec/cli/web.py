"""``dimec web``: a page that is the mobile tier, in any browser."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dimec.cli.console import out, say_json
from dimec.cli.generate import AsJson, BundleFolder
from dimec.core.options import checked


def web(
    given: dict[str, Any],
    bundle: BundleFolder,
    folder: Annotated[Path, typer.Option("--out", help="The site's folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write a static site: a page that runs the mobile tier in a browser, offline too, and asks the other tiers.

    Any web server can serve it; `dimec serve TIER BUNDLE --site SITE` does so beside a tier. A site that is there is
    replaced at the end; files in it that are not dimec's stay.

    **Example**: `dimec web bundles/sst2 --out site --edge . --cloud https://cloud.example`

    **With a dial**: `dimec web bundles/sst2 --out site --point careful=bundles/sst2-careful`
    """
    # Which the list of commands can do without.
    from dimec.deploying.options import WebOptions
    from dimec.deploying.site import write_site

    site = write_site(bundle, folder, checked(WebOptions, given))
    if as_json:
        say_json(json.dumps(asdict(site), default=str))
        return
    out.print(
        f"{site.folder}: {site.bytes / 1e6:.1f} MB, {site.packed_bytes / 1e6:.1f} MB by gzip",
    )
    out.print(
        f"Next: `dimec serve edge {bundle} --site {site.folder}`, then open its address.",
        style="dim",
    )
