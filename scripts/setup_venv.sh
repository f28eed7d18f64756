#!/bin/sh
# Make the virtual environment and install dynquant in it, exactly as locked.
# usage: scripts/setup_venv.sh VENV
# A fresh machine has python3 and make, so this is plain sh.
set -eu

venv=$1
lock=requirements/dev.lock

fail() {
    echo "setup: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# macOS brings Python 3.9 as python3; a newer one often lies beside it.
find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "dynquant needs Python 3.11 or newer and found none (python3 is $(
        python3 --version 2>/dev/null || echo missing)). Install one, then run make again:" \
        "https://www.python.org/downloads, 'brew install python@3.13' or" \
        "'sudo apt-get install python3.11-venv'."
}

# A .venv whose interpreter is gone or too old is made anew.
if ! is_new_enough "$venv/bin/python"; then
    python=$(find_python)
    "$python" - <<'CHECK' || exit 1
import importlib.util, platform, sys

version = f"{sys.version_info.major}.{sys.version_info.minor}"
if sys.platform == "darwin" and platform.machine() != "arm64":
    sys.exit(
        "setup: MLX needs a Mac with Apple silicon and a Python built for arm64; "
        f"{sys.executable} is built for {platform.machine()}."
    )
if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
    sys.exit(
        f"setup: this Python {version} cannot make virtual environments. "
        f"On Debian or Ubuntu run 'sudo apt-get install python{version}-venv', then make again."
    )
CHECK
    "$python" -m venv --clear "$venv" || fail "'$python -m venv $venv' failed, see above."
fi

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}
echo "setup: installing the packages of $lock into $venv (the first time this takes a minute or two)"
# The lock is complete, so nothing is resolved: pip 23 would take the newest release of a package that
# is asked for with an extra, and refuse it for having no hash.
pip install -qq --no-deps --require-hashes -r "$lock"
# The build backend is in the lock, so nothing is fetched here.
pip install -qq --no-deps --no-build-isolation --editable .
