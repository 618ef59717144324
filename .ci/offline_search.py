"""Let the search of build/site work on pages that are opened from a disk.

Browsers start no worker from a disk. The generator names a script on another host that stands in for one; here it lies
beside the pages, so that reading the site fetches nothing. Without npm it is left out: the search then works where the
pages are served.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SITE = Path("build/site")
PACKAGE = "iframe-worker@1.0.4"  # MIT
_NAMED = re.compile(r'<script src="https://[^"]*/iframe-worker/shim"([^>]*>)')


def main() -> None:
    """Put the script beside the pages, and name it in each."""
    found = shutil.which("npm") is not None
    if found:
        fetch()
    else:
        sys.stderr.write("npm is missing: to search, python -m http.server -d build/site\n")
    pages = [*SITE.rglob("*.html")]
    named = 0
    for page in pages:
        up = "../" * (len(page.relative_to(SITE).parts) - 1)
        tag = rf'<script src="{up}assets/worker-shim.js"\1' if found else r"<script\1"
        text, count = _NAMED.subn(tag, page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
        named += count
    if named != len(pages):
        raise SystemExit(f"{named} of {len(pages)} pages name the script of the search")


def fetch() -> None:
    """Fetch the script."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=scratch, check=True)
        (packed,) = Path(scratch).glob("*.tgz")
        with tarfile.open(packed) as files:
            script = files.extractfile("package/shim/index.js")
            assert script is not None
            (SITE / "assets" / "worker-shim.js").write_bytes(script.read())


if __name__ == "__main__":
    main()
