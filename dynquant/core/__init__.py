"""The pure core: no I/O, clock, randomness, MLX or Hub."""
