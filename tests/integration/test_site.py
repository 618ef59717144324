"""`dimec web`: what a site holds, what is refused, and that nothing of the user's is lost."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import with_policy
from tests.commands import Here
from tests.servers import client_of, run, tier_server

from dimec.bundle import Bundle, load_bundle
from dimec.core.errors import BundleError, OptionError
from dimec.core.options import checked
from dimec.deploying.options import WebOptions
from dimec.deploying.site import WrittenSite, write_site
from dimec.policies.random import Random

ROOT = Path(__file__).parents[2]
PAGE = {
    "index.html": "<!doctype html><!-- content-security-policy --><title>page</title>",
    "sw.js": "self.x = 1;",
    "manifest.webmanifest": "{}",
    "assets/app-1.js": "let a = 1;" * 400,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "page"
    (folder / "assets").mkdir(parents=True)
    for name, content in PAGE.items():
        (folder / name).write_text(content)
    return folder


def write(bundle: Bundle, out: Path, page: Path, **values: Any) -> WrittenSite:
    return write_site(bundle.folder, out, checked(WebOptions, {"page": page, **values}))


def test_a_site_holds_the_page_and_what_it_reads_of_the_bundle(
    tiny_export: Bundle, page: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    written = write(
        tiny_export, site, page, edge=".", cloud="https://cloud.example:8443/tiers/", title="Reviews",
        examples=["a gripping film"],
    )  # fmt: skip
    told = json.loads((site / "site.json").read_text())
    assert told == {
        "format": 1,
        "title": "Reviews",
        "edge": ".",
        "cloud": "https://cloud.example:8443/tiers",
        "examples": ["a gripping film"],
        "points": [],
    }
    mobile = tiny_export.mobile
    held = {path.name for path in (site / "bundle").iterdir() if path.suffix != ".gz"}
    graphs = {"embedding.onnx", *(f"segment-{layer}.onnx" for layer in mobile.layers)}
    others = {"manifest.json", "tokenizer.json", "policy.json", "policy.safetensors"}
    assert held == graphs | others | {"exit-zero.safetensors"}
    for name in held:
        assert (site / "bundle" / name).read_bytes() == (mobile.folder / name).read_bytes()
    index = (site / "index.html").read_text()
    assert "connect-src 'self' https://cloud.example:8443;" in index
    assert "<!-- content-security-policy -->" not in index
    packed = [*site.rglob("*.gz")]
    assert site / "bundle" / "tokenizer.json.gz" in packed
    for each in packed:
        assert gzip.decompress(each.read_bytes()) == each.with_suffix("").read_bytes()
    whole = [path for path in site.rglob("*") if path.is_file() and path.suffix != ".gz"]
    assert written.bytes == sum(path.stat().st_size for path in whole)
    assert written.packed_bytes < written.bytes
    with (
        tier_server("edge", tiny_export.folder, "--site", str(site)) as server,
        client_of(server) as client,
    ):
        answer = client.get("/")
        assert answer.text == index
        assert "https://cloud.example:8443" in answer.headers["content-security-policy"]


def test_operating_points_are_other_policies_of_the_same_model(
    tiny_export: Bundle, tiny_bundle: Bundle, page: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    write(tiny_export, site, page, points=[f"careful one={tiny_bundle.folder}"])
    [point] = json.loads((site / "site.json").read_text())["points"]
    assert point["name"] == "careful one"
    manifest = json.loads((site / point["folder"] / "manifest.json").read_text())
    assert manifest["policy"] == tiny_bundle.mobile.manifest.policy
    assert {path.name for path in (site / point["folder"]).iterdir() if path.suffix != ".gz"} == {
        *("manifest.json", "policy.json", "policy.safetensors")
    }


def test_a_site_is_written_anew_and_files_of_others_stay(
    tiny_export: Bundle, page: Path, tmp_path: Path
) -> None:
    site, newer = tmp_path / "site", shutil.copytree(page, tmp_path / "newer")
    write(tiny_export, site, page, edge="http://localhost:8101")
    (site / "robots.txt").write_text("mine")
    (newer / "assets/app-1.js").rename(newer / "assets/app-2.js")
    write(tiny_export, site, newer)
    assert (site / "robots.txt").read_text() == "mine"
    assert [path.name for path in sorted((site / "assets").iterdir())] == [
        *("app-2.js", "app-2.js.gz")
    ]
    assert json.loads((site / "site.json").read_text())["edge"] is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"edge": "edge.example"}, "--edge"),
        ({"edge": "https://me:secret@edge.example"}, "--edge"),
        ({"cloud": "ftp://cloud.example"}, "--cloud"),
        ({"cloud": "https://cloud.example/v2"}, "--cloud"),
        ({"cloud": "https://cloud.example;script-src"}, "--cloud"),
        ({"title": "t" * 81}, "--title"),
        ({"examples": [os.fsdecode(b"caf\xe9")]}, "--example"),
        ({"title": ""}, "--title"),
        ({"examples": ["x" * 301]}, "--example"),
        ({"examples": ["a\tb"]}, "--example"),
        ({"examples": ["a"] * 9}, "--example"),
        ({"points": ["bundle"]}, "--point"),
        ({"page": Path("missing")}, "--page"),
        ({"port": 1}, "'port'"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    tiny_export: Bundle, page: Path, tmp_path: Path, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(OptionError, match=named) as caught:
        write(tiny_export, tmp_path / "site", **{"page": page, **values})
    assert "secret" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_folders_of_the_user_are_left_alone(
    tiny_export: Bundle, page: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("my own page")
    with pytest.raises(OptionError, match="--out"):
        write(tiny_export, mine, page)
    assert [path.name for path in mine.iterdir()] == ["index.html"]
    for within in (tiny_export.folder, page, page.parent):
        with pytest.raises(OptionError, match="--out"):
            write(tiny_export, within, page)
    assert {path.relative_to(page).as_posix() for path in page.rglob("*.*")} == {*PAGE}


def test_a_policy_that_a_page_cannot_run_and_another_model_are_refused(
    tiny_export: Bundle, page: Path, tmp_path: Path
) -> None:
    own = tiny_export.mobile.policy()
    other = with_policy(tiny_export, tmp_path / "random", Random(own.depths, seed=0))
    with pytest.raises(BundleError, match="random"):
        write(other, tmp_path / "site", page)
    for tier in ("mobile", "edge", "cloud"):
        manifest = tmp_path / "random" / tier / "manifest.json"
        document = json.loads(manifest.read_text()) | {
            "model_fingerprint": "sha256:" + "0" * 64,
            "policy": tiny_export.mobile.manifest.policy,
        }
        manifest.write_text(json.dumps(document))
    with pytest.raises(OptionError, match="another model"):
        write(
            tiny_export, tmp_path / "site", page, points=[f"x={load_bundle(other.folder).folder}"]
        )
    assert not (tmp_path / "site").exists()


def test_on_the_command_line(tiny_export: Bundle, page: Path, tmp_path: Path, here: Here) -> None:
    command = ("web", tiny_export.folder, "--out", tmp_path / "site")
    said = here(*command, "--page", page, "--edge", ".", "--json").out
    assert json.loads(said)["bytes"] > 1_000_000
    assert "--page" in here(*command[:-1], tmp_path / "other", "--page", tmp_path, code=2).err


def test_the_page_comes_in_a_package_of_its_own(page: Path, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "web" / "pyproject.toml", tmp_path / "pyproject.toml")
    shutil.copytree(page, tmp_path / "dist")
    built = run([sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tmp_path)])
    assert built.returncode == 0, built.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    program = "from dimec.deploying.site import built_page; print(built_page())"
    path = os.pathsep.join([str(tmp_path / "installed"), *sys.path])
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    folder = Path(found.stdout.strip())
    assert folder == tmp_path / "installed" / "dimec_page"
    assert {each.relative_to(folder).as_posix() for each in folder.rglob("*.*")} == {*PAGE}
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    theirs = tomllib.loads((ROOT / "web" / "pyproject.toml").read_text())["project"]
    assert theirs["version"] == ours["version"]
