"""The demonstration on the tiny model: servers in processes of their own, one of which is killed on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.commands import Here

import dimec
from dimec.bundle import Bundle
from dimec.cli import demo
from dimec.cli.app import load_verb
from dimec.deploying import site
from dimec.runs.run import Run


def test_every_text_is_answered_though_a_server_is_killed(
    tiny_run: Run, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setattr(dimec, "fit", lambda *_, **__: tiny_run)
    monkeypatch.setattr(
        dimec, "export", lambda *_, out, **__: shutil.copytree(tiny_bundle.folder, out)
    )
    told = json.loads(here("demo", "--out", tmp_path, "--texts", "15", "--json").out)
    assert told["n"] == 15
    assert [answer["index"] for answer in told["answers"]] == list(range(15))
    # the edge was killed after the first of these, and started again after the second
    assert [event["after"] for event in told["events"]] == [5, 10]
    assert told["exit_codes"] == {"edge": 0, "cloud": 0}
    assert sum(told["shares"].values()) == pytest.approx(1)
    assert all(told["requests"][tier] > 0 for tier in ("edge", "cloud"))
    assert {answer["degraded"] for answer in told["answers"][:5]} == {None}
    assert all("edge" in reason for reason in told["degraded"])


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
