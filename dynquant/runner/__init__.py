"""Wires MLX, the Hub, texts and folders into the pipeline.

`opening` is for commands that do the work in their own process. Jobs go through `job_steps`,
which never imports MLX: it starts `compute` in a child process for every step that computes.
"""
