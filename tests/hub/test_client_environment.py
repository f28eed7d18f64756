from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from huggingface_hub import close_session, constants

from dynquant.errors import InvalidOptionError, ModelNotFoundError, Reason
from dynquant.hub import HubModels
from dynquant.hub.client_environment import (
    certificates_problem,
    check_connection,
    check_imports,
    proxy_for,
    proxy_problem,
    token_problem,
)
from tests.hub.conftest import tiny_files

pytestmark = pytest.mark.harden("mishaps")

HUB = "https://huggingface.co"
SECRET = "s3cret-pw"
TOKEN = "hf_canaryCanaryCanary"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, tmp_path) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "SSL_CERT_", "HUGGING")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


# Proxies


def test_without_proxies_nothing_is_wrong():
    assert proxy_problem() is None
    assert proxy_for(HUB) is None
    check_connection()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:3128",
        "127.0.0.1:3128",
        f"https://ann:{SECRET}@proxy.example.org",
        "socks5://127.0.0.1:1080",
        "socks5h://[::1]:1080",
    ],
)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"])
def test_a_proxy_that_the_client_can_use_is_taken(monkeypatch, variable, url):
    monkeypatch.setenv(variable, url)
    assert proxy_problem() is None
    assert proxy_for(HUB) == variable


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("socks://127.0.0.1:7897/", "of the kind 'socks'"),
        (f"socks4://ann:{SECRET}@127.0.0.1:1080", "of the kind 'socks4'"),
        ("http://127.0.0.1:port", "cannot be used"),
        ("http://[::1", "cannot be used"),
        ("http://:3128", "no valid host or port"),
        ("http://127.0.0.1:99999", "no valid host or port"),
        ("http://a b:80", "no valid host or port"),
        (f"{SECRET}://x", "cannot be used"),
    ],
)
def test_a_proxy_that_cannot_work_is_named_by_its_variable_and_not_repeated(monkeypatch, url, says):
    monkeypatch.setenv("ALL_PROXY", url)
    with pytest.raises(InvalidOptionError, match=says) as caught:
        check_connection()
    assert str(caught.value).startswith("ALL_PROXY names a proxy")
    assert str(caught.value).endswith("or unset ALL_PROXY.")
    assert SECRET not in str(caught.value)


def test_of_several_proxies_the_one_that_cannot_work_is_named(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    monkeypatch.setenv("http_proxy", "socks://127.0.0.1:1")
    assert str(proxy_problem()).startswith("http_proxy names")
    assert proxy_for(HUB) == "HTTPS_PROXY"
    assert proxy_for("http://mirror.example.org") == "http_proxy"


def test_a_host_that_needs_no_proxy_uses_none(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("NO_PROXY", "localhost,huggingface.co")
    assert proxy_for(HUB) is None
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1080")
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy_problem() is None


def test_a_socks_proxy_without_its_package_is_told_so(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert "'socksio' is not installed" in str(proxy_problem())


def test_the_client_is_not_asked_through_a_proxy_that_cannot_work(monkeypatch, tmp_path):
    close_session()
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7897")
    with (
        HubModels(endpoint="http://hub.invalid", cache_dir=tmp_path) as models,
        pytest.raises(InvalidOptionError, match="ALL_PROXY names a proxy of the kind 'socks'"),
    ):
        models.look_up("alice/tiny")


def test_a_proxy_that_does_not_answer_is_named(monkeypatch, tmp_path):
    close_session()
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with (
        HubModels(
            endpoint="http://hub.invalid", cache_dir=tmp_path, sleep=lambda _: None
        ) as models,
        pytest.raises(Exception, match="through the proxy that ALL_PROXY names"),
    ):
        models.look_up("alice/tiny")
    close_session()


# Certificates


def test_certificates_that_cannot_be_read_are_named(monkeypatch, tmp_path):
    assert certificates_problem() is None
    (tmp_path / "none.pem").write_text("no certificate")
    for path in (tmp_path / "missing.pem", tmp_path / "none.pem", tmp_path):
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert str(certificates_problem()).startswith("SSL_CERT_FILE must name a file")
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "missing"))
    assert str(certificates_problem()).startswith("SSL_CERT_DIR must name a folder")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert certificates_problem() is None


# Read by huggingface_hub at its import


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
        ("HF_HUB_ETAG_TIMEOUT", ""),
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_ENDPOINT", ""),
        ("HF_ENDPOINT", "ftp://huggingface.co"),
        ("HF_ENDPOINT", "http://[::1"),
        ("HF_ENDPOINT", "http://127.0.0.1:99999"),
    ],
)
def test_what_the_client_cannot_be_imported_with_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidOptionError, match=f"^{name} must be "):
        check_imports()


def test_addresses_of_hubs_and_seconds_are_taken(monkeypatch):
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "30")
    for endpoint in (HUB, "http://127.0.0.1:9", "https://mirror.example.org/hf/"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        check_imports()


def test_importing_the_adapter_refuses_them_before_the_client_fails():
    done = subprocess.run(
        [sys.executable, "-c", "import dynquant.hub"],
        env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InvalidOptionError: HF_HUB_DOWNLOAD_TIMEOUT must be" in done.stderr
    assert done.stdout == ""  # the client itself raises an error


# Tokens

ODD_TOKENS = {
    "Bearer": f"Bearer {TOKEN}",
    "quotes": f'"{TOKEN}"',
    "not ASCII": f"{TOKEN}é",
    "spaces": f"{TOKEN} {TOKEN}",
    "not allowed in a token": f"{TOKEN}\x01",
}


@pytest.mark.parametrize("oddity", ODD_TOKENS)
def test_a_token_that_cannot_be_one_is_described_and_not_repeated(monkeypatch, oddity):
    monkeypatch.setenv("HF_TOKEN", ODD_TOKENS[oddity])
    problem = str(token_problem())
    assert oddity in problem
    assert problem.startswith("The token in HF_TOKEN has ")
    assert "canary" not in problem


@pytest.mark.parametrize("value", ["", "  ", TOKEN, f" {TOKEN}\n", "hf_jwt_a.b-c_d"])
def test_a_token_as_the_client_takes_it_is_no_problem(monkeypatch, value):
    monkeypatch.setenv("HF_TOKEN", value)
    assert token_problem() is None


def test_the_file_of_a_token_that_cannot_be_read_is_told(monkeypatch, tmp_path):
    assert token_problem() is None
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    assert "'hf auth login'" in str(token_problem())
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path))
    assert "cannot be read" in str(token_problem())


@pytest.mark.hub
@pytest.mark.parametrize("oddity", ODD_TOKENS)
def test_whatever_the_client_makes_of_such_a_token_the_error_is_about_the_token(
    monkeypatch, hub, models, oddity
):
    hub.add("alice/tiny", tiny_files())
    monkeypatch.setenv("HF_TOKEN", ODD_TOKENS[oddity])
    with pytest.raises(ModelNotFoundError) as caught:
        models.look_up("alice/tiny")
    assert caught.value.reason == Reason.TOKEN_REFUSED
    assert str(caught.value).startswith("The token in HF_TOKEN has ")
    assert "canary" not in str(caught.value)


@pytest.mark.hub
def test_a_good_token_that_the_hub_refuses_is_no_odd_one(monkeypatch, hub, models):
    hub.add("alice/tiny", tiny_files())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ModelNotFoundError, match="does not accept the token in use"):
        models.look_up("alice/tiny")
