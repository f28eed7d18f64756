"""Choose a format for each layer and encode its weights: pure here, with MLX in `mlx/`."""
