"""Check the locked packages: licenses and known vulnerabilities; list them for a release.

`licenses` fails for a license that was not reviewed. `audit` asks osv.dev, where pip-audit's
data comes from as well, in one request; out of its reach it says so and fails nothing. `sbom FILE`
writes a CycloneDX 1.6 document of requirements/run.lock; the other two read requirements/dev.lock,
which has the developers' tools as well. Licenses are those of the packages that are installed here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import requests

from dynquant import __version__

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
LOCKS = {"licenses": "dev.lock", "audit": "dev.lock", "sbom": "run.lock"}
OSV_URL = "https://api.osv.dev/v1/querybatch"
TIMEOUT_SECS = 4.0

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "CNRI-Python",
        "ISC",
        "LGPL-3.0-only",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Unlicense",
        "Zlib",
    }
)
"""Of libraries that are used as they are: permissive, or weak copyleft."""

# Words of older metadata → SPDX.
SPELLED = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD License": "BSD",
    # Of scipy, beside the classifier "BSD License".
    "Copyright (c) 2001-2002 Enthought, Inc. 2003, SciPy Developers.": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "zlib/libpng": "Zlib",
}


@dataclass(frozen=True)
class Locked:
    """A package of the lock, with the sha256 of each of its files."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def purl(self) -> str:
        """Its name among all packages of the world."""
        return f"pkg:pypi/{re.sub(r'[-_.]+', '-', self.name).lower()}@{self.version}"


def locked(text: str) -> Iterator[Locked]:
    """The packages of a lock, as uv writes it."""
    for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ")):
        found = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", entry)
        if found:
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
            yield Locked(found[1], found[2], tuple(hashes))


def license_of(about: Mapping[str, Any], classifiers: Sequence[str]) -> str:
    """The license of a package, as an SPDX expression where its metadata gives one."""
    written = about.get("License-Expression") or about.get("License") or ""
    first = str(written).strip().partition("\n")[0]
    if first in {"", "UNKNOWN"}:  # old build backends write this word for an empty field
        kinds = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License")]
        first = " AND ".join(SPELLED.get(kind, kind) for kind in kinds)
    return SPELLED.get(first, first)


def is_allowed(expression: str) -> bool:
    """Whether every license of an expression was looked at; one of an OR is enough."""
    parts = re.split(r"\s+AND\s+", expression.replace("(", " ").replace(")", " "))
    return bool(expression) and all(
        any(one.strip() in ALLOWED for one in re.split(r"\s+OR\s+", part)) for part in parts
    )


def installed(packages: Sequence[Locked]) -> dict[str, str]:
    """Name → license, of those that are installed here."""
    found = {}
    for each in packages:
        try:
            about = metadata.metadata(each.name)
        except metadata.PackageNotFoundError:  # of another system
            continue
        fields = {key: about[key] for key in ("License-Expression", "License") if key in about}
        found[each.name] = license_of(fields, about.get_all("Classifier") or [])
    return found


def vulnerable(packages: Sequence[Locked], url: str) -> dict[str, list[str]] | None:
    """Package → ids of its known vulnerabilities; None if the service does not answer."""
    queries = [{"package": {"purl": each.purl}} for each in packages]
    try:
        answer = requests.post(url, json={"queries": queries}, timeout=TIMEOUT_SECS)
        answer.raise_for_status()
        results = answer.json()["results"]
    except (requests.RequestException, KeyError, ValueError):
        return None
    return {
        f"{each.name} {each.version}": [one["id"] for one in result["vulns"]]
        for each, result in zip(packages, results, strict=True)
        if result.get("vulns")
    }


def sbom(packages: Sequence[Locked], licenses: Mapping[str, str]) -> dict[str, Any]:
    """A CycloneDX document; the same lock gives the same bytes."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "dynquant", "version": __version__}
        },
        "components": [
            {
                "type": "library",
                "bom-ref": each.purl,
                "name": each.name,
                "version": each.version,
                "purl": each.purl,
                **(
                    {"licenses": [{"license": {"name": licenses[each.name]}}]}
                    if licenses.get(each.name)
                    else {}
                ),
                "externalReferences": [
                    {
                        "type": "distribution",
                        "url": f"https://pypi.org/project/{each.name}/{each.version}/",
                        "hashes": [{"alg": "SHA-256", "content": sha} for sha in each.hashes],
                    }
                ],
            }
            for each in packages
        ],
    }


def main(words: Sequence[str]) -> int:
    """Do one of the three; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(LOCKS))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--osv", default=OSV_URL)
    asked = parser.parse_args(words)
    lock = asked.lock or REQUIREMENTS / LOCKS[asked.what]
    packages = list(locked(lock.read_text(encoding="utf-8")))
    if asked.what == "sbom":
        document = json.dumps(sbom(packages, installed(packages)), indent=1) + "\n"
        path = asked.file or Path("dist/sbom.cdx.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document, encoding="utf-8")
        print(f"{path}: {len(packages)} packages")
        return 0
    if asked.what == "licenses":
        found = installed(packages)
        unknown = {name: said for name, said in found.items() if not is_allowed(said)}
        for name, said in unknown.items():
            print(f"{name}: the license '{said}' is not among those that were looked at")
        print(f"licenses of {len(found)} packages: {len(unknown)} not allowed")
        return 1 if unknown else 0
    known = vulnerable(packages, asked.osv)
    if known is None:
        print("vulnerabilities: osv.dev does not answer from here, so nothing was looked up")
        return 0
    for name, ids in known.items():
        print(f"{name}: {', '.join(ids)}")
    print(f"vulnerabilities of {len(packages)} packages: {len(known)} have some")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
