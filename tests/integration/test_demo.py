"""The demonstration on the tiny model: servers in processes of their own, one of which is killed on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dimec.bundle import Bundle
from dimec.cli import demo
from dimec.cli.app import load_verb
from dimec.cli.demo import demonstrate
from dimec.core.tiers import TIERS, Tier
from dimec.deploying import site
from dimec.runs.run import Run


def test_every_text_is_answered_though_a_server_is_killed(
    tiny_run: Run, tiny_bundle: Bundle
) -> None:
    seen: list[int] = []
    summary = demonstrate(
        tiny_run, tiny_bundle.folder, limit=15, seen=lambda so_far: seen.append(len(so_far.answers))
    )
    assert seen == list(range(1, 16))
    assert [answer.index for answer in summary.answers] == list(range(15))
    assert summary.events == [(5, "edge server killed"), (10, "edge server started again")]
    assert summary.exit_codes == {Tier.EDGE: 0, Tier.CLOUD: 0}
    assert sum(summary.share(tier) for tier in TIERS) == 1
    assert all(summary.requests[tier] > 0 for tier in (Tier.EDGE, Tier.CLOUD))


def test_the_page_is_offered_where_it_is_built(
    tiny_export: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(site, "built_page", lambda: None)
    demo._offer_page(tiny_export.folder, tmp_path / "none")
    assert (capsys.readouterr().out, [*tmp_path.iterdir()]) == ("", [])
    page = tmp_path / "page"
    page.mkdir()
    for name in ("index.html", "sw.js"):
        (page / name).write_text("x")
    monkeypatch.setattr(site, "built_page", lambda: page)
    demo._offer_page(tiny_export.folder, tmp_path / "site")
    told = json.loads((tmp_path / "site" / "site.json").read_text())
    said = capsys.readouterr().out
    lines = [line.strip().removesuffix(" &") for line in said.splitlines()]
    commands = [line for line in lines if line.startswith("dimec serve")]
    assert len(commands) == 4
    serve = load_verb("serve")
    for command in commands:
        context = serve.make_context("serve", command.split()[2:])
        tier, port = context.params["tier"], context.params["port"]
        assert context.params["bundle"] == tiny_export.folder
        # Each page's origin is where the edge listens, and may ask the cloud, where the site says it is.
        if tier == "cloud":
            [origin] = context.params["allow_origin"]
            assert told["cloud"].endswith(f":{port}")
        else:
            assert context.params["site"] == tmp_path / "site"
            assert f"then open {origin}/" in said and origin.endswith(f":{port}")
    assert told["edge"] == "."
