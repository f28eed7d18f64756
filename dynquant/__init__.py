"""dynquant: language models at exactly the bits per weight you ask for, as stock MLX."""

__all__ = ["__version__"]

__version__ = "0.1.0"
