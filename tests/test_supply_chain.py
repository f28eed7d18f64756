"""Locked packages have hashes, are listed and licensed, and are looked up at osv.dev."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.supply_chain import REQUIREMENTS, is_allowed, license_of, locked, main

pytestmark = pytest.mark.harden("supply chain")

ROOT = REQUIREMENTS.parent
FILES = {name: REQUIREMENTS / f"{name}.lock" for name in ("run", "cuda", "dev", "installer")}
FILES["space"] = ROOT / "requirements.txt"
LOCKS = {name: list(locked(path.read_text())) for name, path in FILES.items()}
PACKAGES = LOCKS["run"]


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes(name):
    entries = re.split(r"\n(?=\S)", FILES[name].read_text().strip())
    assert len(entries) == len(LOCKS[name]) > 0  # no line is anything else than a package
    assert all(re.match(r"[\w.-]+==[\w.!+-]+ ", entry) for entry in entries)
    assert all(each.hashes for each in LOCKS[name])


def test_a_space_installs_what_was_tested_and_all_that_the_project_asks_for():
    assert set(LOCKS["space"]) < set(LOCKS["run"])
    versions = {canonicalize_name(each.name): each.version for each in LOCKS["space"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["mlx"], *extras["web"]]
    for each in map(Requirement, wanted):
        assert each.specifier.contains(versions[canonicalize_name(each.name)]), each


def test_a_space_lacks_nothing_that_its_packages_ask_for():
    """`--no-deps` leaves that to the lock; markers are those of this system."""
    installed = {canonicalize_name(each.name) for each in LOCKS["space"]}
    extras = {"gradio": {"mcp", "oauth"}, "mlx": {"cpu"}}
    for name in sorted(installed):
        try:
            asked = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:  # of another system
            continue
        chosen = {"", *extras.get(name, ())}
        for each in map(Requirement, asked):
            if each.marker is None or any(each.marker.evaluate({"extra": one}) for one in chosen):
                assert canonicalize_name(each.name) in installed, f"{name} asks for {each}"


def test_a_space_installs_by_hash_alone_and_runs_no_code_of_packages_to_do_it():
    steps = re.findall(r"^RUN (.*pip install.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    (step,) = steps
    options = step.split()
    assert {"--require-hashes", "--no-deps", "--only-binary", ":all:"} <= set(options)
    assert options[-2:] == ["-r", "/tmp/requirements.txt"]


def test_developers_have_what_runs_and_their_tools_besides():
    assert set(LOCKS["run"]) < set(LOCKS["dev"])
    added = {each.name for each in set(LOCKS["dev"]) - set(LOCKS["run"])}
    assert {"mypy", "ruff", "pytest", "playwright", "import-linter", "hypothesis"} <= added
    assert {"mlx-lm", "huggingface-hub", "dbos", "gradio"} <= {each.name for each in PACKAGES}


def test_the_installer_is_uv_alone():
    assert [each.name for each in LOCKS["installer"]] == ["uv"]


def test_every_installed_package_has_a_license_that_was_looked_at(capsys):
    assert main(["licenses"]) == 0
    assert " 0 not allowed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("MIT AND GPL-3.0-only", False),
        ("AGPL-3.0-only", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_a_license_that_nobody_has_looked_at_is_not_allowed(expression, allowed):
    assert is_allowed(expression) is allowed


def test_old_metadata_is_read_by_its_classifiers():
    classifiers = ["License :: OSI Approved :: MIT License"]
    assert license_of({}, classifiers) == "MIT"
    assert license_of({"License": "UNKNOWN"}, classifiers) == "MIT"
    assert license_of({"License": "UNKNOWN"}, []) == ""
    assert license_of({"License": "BSD 2-Clause License\nCopyright"}, []) == "BSD-2-Clause"


def test_the_list_for_a_release_names_each_package_with_its_hashes_and_is_always_the_same(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b" / "b.json"
    assert main(["sbom", str(first)]) == main(["sbom", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    document = json.loads(first.read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    refs = [each["bom-ref"] for each in document["components"]]
    assert len(set(refs)) == len(refs) == len(PACKAGES)
    assert all(each["externalReferences"][0]["hashes"] for each in document["components"])
    mlx = next(each for each in document["components"] if each["name"] == "mlx-lm")
    assert mlx["purl"] == f"pkg:pypi/mlx-lm@{mlx['version']}"
    assert mlx["licenses"] == [{"license": {"name": "MIT"}}]


@contextmanager
def osv(status: int, vulnerable: str = "") -> Iterator[str]:
    """Answers of osv.dev to a batch of queries."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            purls = [each["package"]["purl"] for each in asked]
            bad = {"vulns": [{"id": "PYSEC-2026-1", "modified": "2026-01-01T00:00:00Z"}]}
            found = [bad if vulnerable and vulnerable in purl else {} for purl in purls]
            body = json.dumps({"results": found}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_known_vulnerability_fails_and_names_the_package(capsys):
    with osv(200, vulnerable="pkg:pypi/requests@") as url:
        assert main(["audit", "--osv", url]) == 1
    assert "PYSEC-2026-1" in capsys.readouterr().out
    with osv(200) as url:
        assert main(["audit", "--osv", url]) == 0
    assert ": 0 have some" in capsys.readouterr().out


def test_out_of_reach_nothing_is_looked_up_and_nothing_fails(capsys):
    with osv(503) as url:
        assert main(["audit", "--osv", url]) == 0
    assert main(["audit", "--osv", "http://127.0.0.1:9"]) == 0
    assert capsys.readouterr().out.count("nothing was looked up") == 2
