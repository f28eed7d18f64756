"""Say how to make MLX fast on a Linux CPU, where its wheel brings only the reference BLAS."""

import ctypes
import sys


def main() -> None:
    """Print one line when OpenBLAS cannot be loaded; say nothing otherwise."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL("libopenblas.so.0")
    except OSError:
        print(
            "note: 'sudo apt-get install libopenblas0-pthread' makes dynquant about 40 times "
            "faster on this machine's CPU.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
