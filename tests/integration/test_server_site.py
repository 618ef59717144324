"""A site beside a tier, and pages of other origins: real servers, asked as browsers and as strangers would."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from tests.commands import dimec
from tests.servers import PATIENCE_S, TierServer, ask, client_of, metric, tier_server, tokens

from dimec.bundle import Bundle

TOKEN = "a-token-that-nobody-guesses"
PAGES = "https://pages.example"
BEARER = {"authorization": f"Bearer {TOKEN}"}
WASM = bytes(range(256)) * 2_000
ISOLATION = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def make_site(folder: Path, *, edge: str | None = ".", cloud: str | None = None) -> Path:
    """Write a site as `dimec web` does, with files that no site should have."""
    (folder / "assets").mkdir(parents=True)
    (folder / "bundle").mkdir()
    files: dict[str, bytes] = {
        "index.html": b"<!doctype html><title>a page</title>",
        "sw.js": b"self.x = 1;" * 100,
        "manifest.webmanifest": b"{}",
        "icon.svg": b"<svg/>",
        "assets/app-3fa9.js": b"let a = 1;" * 100,
        "assets/ort-77.mjs": b"export {};",
        "assets/ort-77.wasm": WASM,
        "bundle/embedding.onnx": b"\x08\x01",
        "empty.txt": b"",
        ".secret": b"hidden",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "assets/ort-77.wasm.gz").write_bytes(gzip.compress(WASM))
    (folder / "assets/ort-77.wasm.br").write_bytes(b"as if it were brotli")
    site = {"format": 1, "title": "a site", "edge": edge, "cloud": cloud}
    (folder / "site.json").write_text(json.dumps(site))
    return folder


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    secret = tmp_path_factory.mktemp("outside") / "secret.txt"
    secret.write_text("nobody's business")
    return secret


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, outside: Path) -> Path:
    folder = make_site(
        tmp_path_factory.mktemp("sites") / "site", cloud="https://cloud.example:8443/tiers"
    )
    (folder / "leads-out.txt").symlink_to(outside)
    (folder / "stays-in.txt").symlink_to(folder / "icon.svg")
    return folder


@pytest.fixture(scope="module")
def server(tiny_bundle: Bundle, site: Path) -> Iterator[TierServer]:
    options = (
        "--site",
        str(site),
        "--allow-origin",
        PAGES,
        "--allow-origin",
        "http://localhost:80",
    )
    with tier_server(
        "edge", tiny_bundle.folder, *options, environment={"DIMEC_TOKEN": TOKEN}
    ) as one:
        yield one


@pytest.fixture
def client(server: TierServer) -> Iterator[httpx.Client]:
    with client_of(server, headers={"accept-encoding": "identity"}) as one:
        yield one


@pytest.mark.parametrize(
    ("path", "name", "content_type"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/index.html", "index.html", "text/html; charset=utf-8"),
        ("/sw.js", "sw.js", "text/javascript; charset=utf-8"),
        ("/assets/ort-77.mjs", "assets/ort-77.mjs", "text/javascript; charset=utf-8"),
        ("/assets/ort-77.wasm", "assets/ort-77.wasm", "application/wasm"),
        ("/manifest.webmanifest", "manifest.webmanifest", "application/manifest+json"),
        ("/icon.svg", "icon.svg", "image/svg+xml"),
        ("/site.json", "site.json", "application/json"),
        ("/bundle/embedding.onnx", "bundle/embedding.onnx", "application/octet-stream"),
        ("/empty.txt", "empty.txt", "text/plain; charset=utf-8"),
        ("/stays-in.txt", "icon.svg", "image/svg+xml"),
    ],
)
def test_files_are_served_to_everybody_with_their_types_and_isolation(
    client: httpx.Client, site: Path, path: str, name: str, content_type: str
) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, (site / name).read_bytes())
    assert answer.headers["content-type"] == content_type
    assert ISOLATION.items() <= answer.headers.items()
    lasts = path.startswith("/assets/")
    assert ("immutable" in answer.headers["cache-control"]) == lasts
    assert (answer.headers["cache-control"] == "no-cache") != lasts
    policy = answer.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "connect-src 'self' https://cloud.example:8443" in policy
    alone = client.head(path)
    assert (alone.status_code, alone.content) == (200, b"")
    for each in ("content-length", "etag", "content-type"):
        assert alone.headers[each] == answer.headers[each]


def test_a_file_that_a_browser_has_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/sw.js")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/sw.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert ISOLATION.items() <= again.headers.items()
    assert client.get("/sw.js", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip", "gzip"),
        ("GZIP;q=0.5", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("br; q=0.000, gzip;q=0", None),
        ("identity", None),
        ("*", None),
        (",;,;q", None),
    ],
)
def test_what_is_there_compressed_is_sent_so(
    client: httpx.Client, site: Path, accepted: str, coding: str | None
) -> None:
    with client.stream(
        "GET", "/assets/ort-77.wasm", headers={"accept-encoding": accepted}
    ) as answer:
        content = b"".join(answer.iter_raw())
    end = {"br": ".br", "gzip": ".gz", None: ""}[coding]
    assert content == (site / f"assets/ort-77.wasm{end}").read_bytes()
    assert answer.headers.get("content-encoding") == coding
    assert answer.headers["content-type"] == "application/wasm"
    assert "accept-encoding" in answer.headers["vary"].lower()
    tags = {
        client.get("/assets/ort-77.wasm", headers={"accept-encoding": each}).headers["etag"]
        for each in ("gzip", "identity")
    }
    assert len(tags) == 2


PATHS = [
    "/../secret.txt",
    "/../../../../../../etc/passwd",
    "/assets/../../secret.txt",
    "/%2e%2e/secret.txt",
    "/..%2fsecret.txt",
    "/assets/%2e%2e%2f%2e%2e%2fsecret.txt",
    "/..\\secret.txt",
    "/..%5csecret.txt",
    "//etc/passwd",
    "/./index.html",
    "/assets//app-3fa9.js",
    "/index.html%00.txt",
    "/index.html/",
    "/INDEX.HTML",
    "/assets",
    "/assets/",
    "/.secret",
    "/leads-out.txt",
    "/assets/ort-77.wasm.gz",
    "/%ff%fe",
    "/" + "a/" * 2_000,
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_anywhere_else(server: TierServer, path: str, outside: Path) -> None:
    with socket.create_connection(("127.0.0.1", server.ready["port"]), PATIENCE_S) as sock:
        request = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        sock.sendall(f"{request}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        said = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert said.split(b" ", 2)[1] in (b"400", b"404")
    assert outside.read_bytes() not in said and b"root:" not in said


def test_only_the_site_needs_no_token(client: httpx.Client) -> None:
    for path in ("/v2", "/metrics", "/v2/models/edge", "/docs", "/openapi.json", "/nothing"):
        assert client.get(path).status_code == 401
    assert client.post("/", content=b"{}").status_code == 401
    assert client.post("/index.html", headers=BEARER).status_code == 404
    assert ask(client, tokens(4)).status_code == 401
    assert ask(client, tokens(4), headers=BEARER).status_code == 200
    assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 200


@pytest.mark.parametrize("origin", [PAGES, "http://localhost"])
def test_pages_of_an_allowed_origin_may_ask_and_read_answers(
    client: httpx.Client, origin: str
) -> None:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,inference-header-content-length",
    }
    told = client.options("/v2/models/edge/infer", headers=asked)
    assert (told.status_code, told.content) == (204, b"")
    assert told.headers["access-control-allow-origin"] == origin
    assert "POST" in told.headers["access-control-allow-methods"]
    allowed = {each.strip() for each in told.headers["access-control-allow-headers"].split(",")}
    assert set(asked["access-control-request-headers"].split(",")) <= allowed
    assert "access-control-allow-credentials" not in told.headers
    answers = [
        (200, ask(client, tokens(4), headers={"origin": origin, **BEARER})),
        (401, ask(client, tokens(4), headers={"origin": origin})),
        (
            400,
            client.post(
                "/v2/models/edge/infer", content=b"x", headers={"origin": origin, **BEARER}
            ),
        ),
        (404, client.get("/v2/models/other", headers={"origin": origin, **BEARER})),
    ]
    for status, answer in answers:
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin
        exposed = answer.headers["access-control-expose-headers"]
        assert {"inference-header-content-length", "retry-after"} <= set(exposed.split(", "))
        assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        f"{PAGES}.evil.example",
        f"{PAGES}:8443",
        "null",
        "*",
        "",
        PAGES.upper(),
    ],
)
def test_pages_of_other_origins_are_told_nothing(client: httpx.Client, origin: str) -> None:
    headers = {"origin": origin, "access-control-request-method": "POST"}
    told = client.options("/v2/models/edge/infer", headers=headers)
    answer = ask(client, tokens(4), headers={"origin": origin, **BEARER})
    assert (told.status_code, answer.status_code) == (403, 200)
    for each in (told, answer):
        assert not [name for name in each.headers if name.startswith("access-control")]
        assert "origin" in each.headers["vary"].lower()


def test_a_client_that_leaves_or_does_not_read_costs_no_more_than_a_piece(
    server: TierServer, client: httpx.Client
) -> None:
    request = b"GET /assets/ort-77.wasm HTTP/1.1\r\nHost: a\r\n\r\n"
    held = []
    for _ in range(40):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.ready["port"]))
        sock.sendall(request)
        held.append(sock)
    opened = [*Path(f"/proc/{server.process.pid}/fd").iterdir()]
    assert len(opened) < 40 + 40  # a socket each, and no open file beside it
    assert client.get("/assets/ort-77.wasm").content == WASM
    for sock in held:
        sock.close()
    assert client.get("/assets/ort-77.wasm").content == WASM
    assert not server.logged("fault")


def test_requests_for_files_are_no_inference(server: TierServer, client: httpx.Client) -> None:
    with client_of(server, headers=BEARER) as asking:
        before = metric(asking, 'dimec_responses_total{status="200"}')
        client.get("/")
        assert ask(asking, tokens(3)).status_code == 200
        assert metric(asking, 'dimec_responses_total{status="200"}') == before + 1


def test_a_site_that_is_removed_or_written_anew_is_not_served(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    folder = make_site(tmp_path / "site")
    with (
        tier_server("cloud", tiny_bundle.folder, "--site", str(folder)) as server,
        client_of(server) as client,
    ):
        assert client.get("/icon.svg").status_code == 200
        (folder / "icon.svg").write_bytes(b"<svg>other</svg>")
        assert client.get("/icon.svg").status_code == 404
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
        assert client.get("/").status_code == 404
        assert ask(client, tokens(3), tier="cloud").status_code == 200
        assert server.logged("request", reason="site changed")
        # Nobody asked for other origins: nothing of them is said.
        answer = ask(client, tokens(3), tier="cloud", headers={"origin": PAGES})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert client.options("/v2", headers={"origin": PAGES}).status_code == 405


def test_the_whole_cascade_has_its_page_and_its_root_side_by_side(
    tiny_bundle: Bundle, site: Path
) -> None:
    with (
        tier_server("device", tiny_bundle.folder, "--site", str(site)) as server,
        client_of(server) as client,
    ):
        assert b"a page" in client.get("/").content
        said = client.post("/", json={"inputs": "a gripping film"})
        assert said.status_code == 200
        assert {each["label"] for each in said.json()[0]} == set(
            tiny_bundle.mobile.manifest.label_names
        )


def test_over_tls_too(tiny_bundle: Bundle, site: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    files = ["--tls-certificate", str(tmp_path / "certificate.pem")]
    files += ["--tls-key", str(tmp_path / "key.pem")]
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with tier_server("edge", tiny_bundle.folder, "--site", str(site), *files) as server:
        assert server.url.startswith("https://")
        with httpx.Client(base_url=server.url, verify=context) as client:
            assert (
                client.get("/assets/ort-77.wasm", headers={"accept-encoding": "gzip"}).content
                == WASM
            )
            assert client.get("/").headers["cross-origin-opener-policy"] == "same-origin"


def test_a_folder_that_is_no_site_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    broken, taken = (make_site(tmp_path / name) for name in ("broken", "taken"))
    (broken / "site.json").write_text('{"format": 1, "title": 3}')
    (taken / "metrics").write_text("mine")
    splits = make_site(tmp_path / "splits", edge="https://a\r\nset-cookie: b")
    for folder, named in (
        (tmp_path / "missing", "--site"),
        (broken, "site.json"),
        (splits, "site.json"),
        (taken, "/metrics"),
    ):
        command = ("serve", "edge", tiny_bundle.folder, "--port", "0", "--site", folder)
        assert named in dimec(*command, code=2).stderr
