"""Say how to make MLX fast on a Linux CPU where `make setup` could not put an OpenBLAS in place."""

import sys

from dynquant.quant.mlx import slow_blas_sentence


def main() -> None:
    """Print one line where MLX has only the reference BLAS; say nothing otherwise."""
    sentence = slow_blas_sentence()
    if sentence is not None:
        print(f"note: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
