"""Install a lock into this environment, by uv or, where uv cannot run, by pip.

    python scripts/install_locked.py run    # dynquant and what it, its pages and the demo need
    python scripts/install_locked.py cuda   # the same with MLX for an NVIDIA GPU
    python scripts/install_locked.py dev    # the first, and what tests and lint need

Every file is checked against the lock's sha256, uv's own wheel too (requirements/installer.lock).
uv does not read pip's configuration, so the index, certificates and proxy that pip would use are
handed to it. Only the standard library and pip are here before this script has run.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
PARTS = ("run", "cuda", "dev")

# Nothing is resolved: a lock is complete. pip 23 would take the newest release of a package that is
# asked for with an extra, and refuse it for having no hash.
LOCKED = ("--no-deps", "--require-hashes", "-r")
# The build backend is in the lock, so nothing is fetched for it.
ITSELF = ("--no-deps", "--no-build-isolation", "--editable", ".")

# Option of pip → variable of uv, and what stands between several values there.
_SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", None),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "timeout": ("UV_HTTP_TIMEOUT", None),
    "cert": ("SSL_CERT_FILE", None),
    "proxy": ("ALL_PROXY", None),
}
_YES = frozenset({"1", "on", "true", "yes"})


def main(words: Sequence[str]) -> int:
    """Install one part; the exit code of the installer that tried last."""
    (part,) = words
    if part not in PARTS:
        sys.exit(f"Name one of: {', '.join(PARTS)}.")
    lock = str(REQUIREMENTS / f"{part}.lock")
    targets = [(*LOCKED, lock)] if part == "dev" else [(*LOCKED, lock), ITSELF]
    if _uv(targets) == 0:
        return 0
    say("uv could not install the packages here, so pip does, which takes a few minutes.")
    return max(_pip(target) for target in targets)


def _uv(targets: Sequence[Sequence[str]]) -> int:
    """Install by uv, which is installed first; not 0 where any of that fails."""
    own = (*LOCKED, str(REQUIREMENTS / "installer.lock"), "--only-binary", ":all:")
    if _pip(own, quiet=True) != 0:
        return 1
    settings = pip_settings()
    environment = os.environ | uv_environment(settings, os.environ)
    alone = ["--no-index"] if settings.get("no-index", "").lower() in _YES else []
    for target in targets:
        command = [str(Path(sys.executable).with_name("uv")), "pip", "install", *_quiet("-q")]
        command += [*alone, "--python", sys.executable, *target]
        try:
            code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        except OSError:  # a wheel of another system
            return 1
        if code != 0:
            return code
    return 0


def _pip(target: Sequence[str], *, quiet: bool = False) -> int:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    command += ["-qq"] if quiet else _quiet("-qq")
    return subprocess.run([*command, *target], cwd=ROOT, check=False).returncode


def _quiet(option: str) -> list[str]:
    """On a terminal the installer shows its progress."""
    return [] if sys.stderr.isatty() else [option]


def pip_settings() -> dict[str, str]:
    """Option → value, as `pip install` takes it from its files and variables."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return read_settings(listed)


def read_settings(listed: str) -> dict[str, str]:
    """Option → value, from what `pip config list` prints: `global.index-url='https://…'`."""
    found: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.partition(".")
        found.setdefault(section, {})[option] = str(ast.literal_eval(value))
    sections = ("global", "install", ":env:")  # a later one wins
    return {
        option.lstrip("."): value
        for section in sections
        for option, value in found.get(section, {}).items()
    }


def uv_environment(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables with which uv reaches what pip reaches; those that are set already stay.

    Args:
        settings: pip's.
        environment: That uv would get.
    """
    settings = dict(settings)
    if "default-timeout" in settings:
        settings.setdefault("timeout", settings["default-timeout"])
    variables = {}
    for option, (variable, between) in _SETTINGS.items():
        value = settings.get(option, "").strip()
        if value and variable not in environment:
            variables[variable] = value if between is None else between.join(value.split())
    # pip takes a release from any index that has it; the lock's hashes say which file it must be.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match"} | variables


def say(line: str) -> None:
    """Print at once, before what the installers print."""
    sys.stdout.write(f"setup: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
