"""What a tier server may be told, and what it refuses to do."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import ValidationError

from dimec.core.errors import OptionError
from dimec.core.options import checked
from dimec.runtime.server.protocol import Connections
from dimec.runtime.server.settings import ServerSettings, bind, read_token, tls_context


def settings(**changes: Any) -> ServerSettings:
    return checked(ServerSettings, {"tier": "edge", "bundle": "b", "port": 0, **changes})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_row": 3}, "'max_row': .*max_rows"),
        ({"token": "x"}, "'token'"),
        ({"max_rows": 0}, "--max-rows 0: .*greater than or equal to 1"),
        ({"queue_requests": 0}, "--queue 0"),
        ({"port": 70_000}, "--port 70000"),
        ({"port": True}, "--port True"),
        ({"max_rows": "80"}, "--max-rows '80'"),
        ({"insecure": "yes"}, "--insecure 'yes'"),
        ({"tier": "mobile"}, "TIER 'mobile'"),
        ({"tls_key": "k.pem"}, "--tls-certificate and --tls-key"),
        ({"tls_client_ca": "ca.pem"}, "--tls-client-ca"),
        ({"drain_grace_s": 9, "drain_limit_s": 1}, "--drain-grace-s"),
        ({"allow_origin": ["*"]}, "--allow-origin"),
        ({"allow_origin": ["null"]}, "--allow-origin"),
        ({"allow_origin": ["pages.example"]}, "--allow-origin"),
        ({"allow_origin": ["https://pages.example/page"]}, "--allow-origin"),
        ({"allow_origin": ["https://me:secret@pages.example"]}, "--allow-origin"),
        ({"allow_origin": ["https://pages.example:99999"]}, "--allow-origin"),
        ({"allow_origin": ["https://pages.example", 3]}, "--allow-origin"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        settings(**changes)


def test_origins_are_those_that_browsers_send() -> None:
    given = ["HTTPS://Pages.Example:443/", "http://[::1]:8080", "http://10.0.0.2:80"]
    assert settings(allow_origin=given).allow_origin == (
        *("https://pages.example", "http://[::1]:8080", "http://10.0.0.2"),
    )


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        settings().port = 1  # type: ignore[misc]


def test_the_system_keeps_little_of_what_a_client_does_not_read() -> None:
    if not hasattr(socket, "TCP_NOTSENT_LOWAT"):
        return  # only some systems can be told
    with bind(settings(), secured=False) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            option = socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT
            assert accepted.getsockopt(*option) == 64 * 1024


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_beyond_loopback_needs_protection(host: str) -> None:
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with pytest.raises(OptionError, match="--insecure"):
        bind(settings(host=host), secured=False)
    try:
        bind(settings(host=host), secured=True).close()
        bind(settings(host=host, insecure=True), secured=False).close()
    except OptionError as exc:
        assert host == "::", exc  # a machine may have no IPv6 address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_loopback_needs_none(host: str) -> None:
    with bind(settings(host=host), secured=False) as listener:
        assert listener.getsockname()[1] > 0
        with pytest.raises(OptionError, match="choose another --port"):
            listener.listen()
            bind(settings(host=host, port=listener.getsockname()[1]), secured=False)


def test_an_unknown_address_is_named() -> None:
    with pytest.raises(OptionError, match="--host"):
        bind(settings(host="300.1.1.1"), secured=True)


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-the-file-0123456\n")
    environment = {"DIMEC_TOKEN": "from-the-environment"}
    assert read_token(None, {}) is None
    assert read_token(None, environment) == "from-the-environment"
    assert read_token(file, environment) == "from-the-file-0123456"
    for bad in ("", "short", "two words, that are long", "ümläute-are-no-header"):
        with pytest.raises(OptionError, match="at least 16"):
            read_token(None, {"DIMEC_TOKEN": bad})
    with pytest.raises(OptionError, match="cannot be read"):
        read_token(tmp_path / "nowhere", {})


def test_certificates_are_checked_before_anything_listens(tmp_path: Path) -> None:
    certificate, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    chain, key, wrong, text = (tmp_path / name for name in ("chain", "key", "wrong", "text"))
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    other.private_key_pem.write_to_path(wrong)
    text.write_text("no certificate")
    assert tls_context(settings()) is None
    made = tls_context(settings(tls_certificate=chain, tls_key=key))
    assert made is not None
    assert made.verify_mode is ssl.CERT_NONE
    mutual = tls_context(settings(tls_certificate=chain, tls_key=key, tls_client_ca=chain))
    assert mutual is not None
    assert mutual.verify_mode is ssl.CERT_REQUIRED
    for bad in (wrong, text, tmp_path / "nowhere"):
        with pytest.raises(OptionError, match="cannot be used"):
            tls_context(settings(tls_certificate=chain, tls_key=bad))
    with pytest.raises(OptionError, match="client CA"):
        tls_context(settings(tls_certificate=chain, tls_key=key, tls_client_ca=text))


def test_large_heads_are_read_one_in_each_turn_of_the_loop() -> None:
    read: list[tuple[str, int]] = []
    turns = 0

    class Waiting:
        held = 0

        def __init__(self, name: str) -> None:
            self.name = name

        def go_on(self) -> None:
            read.append((self.name, turns))

    async def run() -> None:
        nonlocal turns
        connections = Connections(settings(), tls=None)
        first, second, third, gone = (Waiting(name) for name in ("1", "2", "3", "gone"))
        waiting: list[Any] = [first, gone, second]
        for each in waiting:
            connections.queue(each)
        connections.forget(waiting[1])
        for turns in range(1, 8):
            await asyncio.sleep(0)
            if turns == 4:
                connections.queue(third)  # type: ignore[arg-type]

    asyncio.run(run())
    assert [name for name, _ in read] == ["1", "2", "3"]
    at = [turn for _, turn in read]
    assert at == sorted(set(at))
