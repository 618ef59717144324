"""The documents: links lead somewhere, and lines can be read in a terminal."""

from __future__ import annotations

import ast
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for folder in (".", ".ci", "benchmarks", "deploy", "docs", "examples")
    for page in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
DOCS = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def prose(page: Path) -> str:
    """Read a page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page: Path) -> set[str]:
    """Collect what GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    found = set()
    for heading in re.findall(r"^#+ +(.*)$", text, flags=re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("page", DOCS, ids=names(DOCS))
def test_no_line_of_the_docs_is_longer_than_200_characters(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [n for n, line in enumerate(lines, start=1) if len(line) > 200] == []


def test_the_site_lists_every_page_but_experiments_and_systems() -> None:
    found = re.findall(r"^ +- (?:\w+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    pages = [str(page.relative_to(ROOT / "docs")) for page in DOCS]
    single = [
        each for each in pages if re.match(r"(experiments|reference/systems)/(?!README)", each)
    ]
    assert sorted(found) == sorted(set(pages) - set(single))


def test_pages_that_code_names_are_there() -> None:
    """Docstrings, messages and manifests name pages by their path."""
    named: dict[str, str] = {}
    for folder in ("src", "deploy", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in {".py", ".json", ".yaml"}:
                text = file.read_text(encoding="utf-8")
                named |= dict.fromkeys(re.findall(r"docs/[a-z0-9/-]+\.md", text), str(file))
    assert named
    assert {page: file for page, file in named.items() if not (ROOT / page).exists()} == {}


def test_what_pages_name_of_dimec_is_there() -> None:
    """A module that is renamed, or a call that goes, is found in the pages too."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?<![\w./-])dimec(?:\.[A-Za-z_]\w*)+", text))
    named -= {"dimec.device"}  # a logger
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dimec"):
                named |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert named
    for name in sorted(named):
        pkgutil.resolve_name(name)
