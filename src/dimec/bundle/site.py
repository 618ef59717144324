"""A site: the page that is the mobile tier, and a bundle's mobile files, in one folder that any web server can serve.

```
SITE/
  index.html, sw.js, assets/*, ...   the page, as `npm run build` in web/ makes it
  site.json                          a `Site`: what the page calls itself, and whom it asks
  bundle/*                           the mobile tier's manifest, and the files that the page reads
  points/NAME/*                      other operating points: a manifest and a policy each
  *.gz, *.br                         the same files compressed, for servers that send them
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from dimec.core.errors import OptionError
from dimec.core.untrusted import Record, read_json, trusting_nothing

SITE = "site.json"
INDEX = "index.html"
WORKER = "sw.js"
PACKED = {".br": "br", ".gz": "gzip"}
"""Ends of compressed files, the smaller first, and what HTTP calls them."""

# Without what parts a header's values: a policy is made of it.
_Url = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~:/?#@!$&()*+=%\[\]-]{1,2000}$")]
_Short = Annotated[str, Field(max_length=300)]


class OperatingPoint(Record):
    """Another policy for the same model, and where it lies in the site."""

    name: str = Field(max_length=40)
    folder: str = Field(pattern=r"^points/[A-Za-z0-9][A-Za-z0-9._-]*$")


class Site(Record):
    """What a page is told: its ``site.json``."""

    format: Literal[1] = 1
    title: str = Field(min_length=1, max_length=80)
    edge: _Url | None = None
    cloud: _Url | None = None
    examples: tuple[_Short | tuple[_Short, _Short], ...] = Field(default=(), max_length=8)
    points: tuple[OperatingPoint, ...] = Field(default=(), max_length=20)

    @property
    def content_policy(self) -> str:
        """Return the Content-Security-Policy of the page: nothing is loaded or asked but the site and its tiers."""
        asked = {
            f"{parts.scheme}://{parts.netloc}"
            for url in (self.edge, self.cloud)
            if url is not None and (parts := urlsplit(url)).netloc
        }
        return "; ".join(
            (
                "default-src 'none'",
                "script-src 'self' 'wasm-unsafe-eval'",
                *(f"{kind}-src 'self'" for kind in ("worker", "style", "img", "manifest")),
                " ".join(("connect-src 'self'", *sorted(asked))),
                "base-uri 'none'",
                "form-action 'none'",
            )
        )


def read_site(folder: Path, *, option: str) -> Site:
    """Read the ``site.json`` of a site.

    Raises:
        OptionError: If the folder is none.
    """
    remedy = f"`dimec web BUNDLE --out {folder}` writes a site"
    if not folder.is_dir():
        raise OptionError(f"{option} {folder} is no folder: {remedy}")
    for name in (INDEX, SITE):
        if not (folder / name).is_file():
            raise OptionError(f"{option} {folder} is no site, since it has no {name}: {remedy}")
    with trusting_nothing(folder / SITE, OptionError, remedy=remedy):
        return read_json(folder / SITE, Site, known=1)
