"""Say how to make MLX fast on a Linux CPU where `make setup` could not put an OpenBLAS in place."""

import sys

from dynquant.errors import missing_driver
from dynquant.quant.mlx import slow_blas_sentence


def main() -> None:
    """Print one line where MLX has only the reference BLAS, or no driver for its GPU build."""
    try:
        sentence = slow_blas_sentence()
    except ImportError as error:
        if (sentence := missing_driver(str(error))) is None:
            raise
    if sentence is not None:
        print(f"note: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
