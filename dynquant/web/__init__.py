"""The web pages: they read and submit jobs, and know nothing of MLX."""
