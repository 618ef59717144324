"""What a device refuses of the URLs, tokens and TLS files that it is given, and what it reads of a server's pause."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from dimec.core.errors import OptionError
from dimec.runtime.device.client import checked_token, checked_url, tls_context
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.resilience import refusal

HERE = "http://127.0.0.1:8101"


def url_of(url: str, token: str | None = None) -> str:
    return checked_url(url, option="--cloud", token=token, settings=DeviceSettings())


@pytest.mark.parametrize(
    "url",
    [
        "edge:8001",
        "http://",
        "ftp://cloud",
        "http://[::1:8101",
        "http://127.0.0.1:99999",
        f"{HERE}/v2/models/cloud",
        f"{HERE}/v2",
        f"{HERE}/gateway/v2/",
        f"{HERE}/%762",
        "http://user:secret@127.0.0.1:8101",
        "http://@127.0.0.1:8101",
        f"{HERE}/#cloud",
        f"{HERE}#",
        f"{HERE}?",
        f"{HERE}/a b",
        f" {HERE}",
        f"{HERE}\n",
        "http://127.0.0.1\t:8101",
        f"{HERE}/\x1b[31m",
        f"{HERE}/\u202e",
        f"{HERE}\u00a0",
    ],
)
def test_a_url_that_cannot_be_right_is_refused(url: str) -> None:
    with pytest.raises(OptionError, match="--cloud") as caught:
        url_of(url)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1]:8101/gateway", "https://tier.example/a/v20/%20b"])
def test_a_url_before_a_gateway_is_taken(url: str) -> None:
    assert url_of(f"{url}/") == url


def test_a_token_crosses_no_network_in_the_clear() -> None:
    for url in (HERE, "https://edge"):
        assert url_of(url, "secret") == url
    with pytest.raises(OptionError, match="unencrypted") as caught:
        url_of("http://edge:80", "secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(OptionError, match="the token holds"):
        checked_token("two words")
    with pytest.raises(OptionError, match="ca_file"):
        tls_context(DeviceSettings(ca_file=Path("/nowhere")))


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("Fri, 31 Dec 2199 23:59:59 GMT", 60.0),
        ("Friday, 31-Dec-99 23:59:59 GMT", 0.0),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
        ("99999999999999999999999", 60.0),
        ("soon", None),
        ("Mon, 99 Foo 2001 99:99:99 GMT", None),
        ("-5", None),
        ("", None),
    ],
)
def test_a_pause_that_a_server_asks_for(said: str, seconds: float | None) -> None:
    for status in (429, 503):
        fault = refusal(status, httpx.Headers({"Retry-After": said}), b"")
        assert fault.failure.retry_after_s == seconds
    assert refusal(500, httpx.Headers({"Retry-After": said}), b"").failure.retry_after_s is None
