#!/bin/sh
# Make the virtual environment and install dynquant in it, exactly as locked.
# usage: scripts/setup_venv.sh VENV PART
# PART is "run" (what the demo and the pages need), "cuda" (the same with MLX for an NVIDIA GPU) or
# "dev" (what tests and lint need beside "run").
# A fresh machine has python3 and make, so this is plain sh.
set -eu

venv=$1
part=$2
# There while the environment is being changed: after an interruption it is made anew, because
# half of a package can look like a whole one.
unfinished=$venv/.dynquant-unfinished

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

# The two builds of MLX bring the same files, so neither is installed over the other.
case $part in
    run) other=$venv/.dynquant-setup-cuda ;;
    cuda)
        [ "$(uname -s)" = Linux ] || fail "CUDA=1 is for Linux with an NVIDIA GPU; leave it out here."
        other=$venv/.dynquant-setup
        ;;
    dev) other= ;;
esac
[ ! -e "$other" ] || : >"$unfinished"

# An environment whose interpreter is gone or too old is made anew too.
if [ -e "$unfinished" ] || ! is_new_enough "$venv/bin/python"; then
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
    echo "setup: making $venv with $python"
    rm -rf "$venv/bin" # first: what is left then counts as gone, should the next line be cut off
    rm -rf "$venv"
    mkdir "$venv"
    : >"$unfinished"
    "$python" -m venv "$venv" || fail "'$python -m venv $venv' failed, see above."
fi
: >"$unfinished"

echo "setup: installing requirements/$part.lock into $venv"
"$venv/bin/python" scripts/install_locked.py "$part" || {
    # Without a network nothing was begun, and what was there is as good as before.
    begun=$(find "$venv"/lib/python*/site-packages -maxdepth 0 -newer "$unfinished")
    [ -n "$begun" ] || rm "$unfinished"
    fail "the packages could not be installed, see above. 'make setup' tries again."
}
if [ "$(uname -s)" = Linux ] && [ "$part" != dev ]; then
    # Without it everything works, only slower; the hint says so.
    "$venv/bin/python" scripts/openblas_for_mlx.py || true
fi
rm "$unfinished"
