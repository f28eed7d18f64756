"""What a model's author is told, once, where the operator wants that."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MENTION_TITLE", "mention_text"]

MENTION_TITLE = "Quants of this model for MLX, made by dynquant"
"""By this a discussion is known again, so it must stay the same."""


def mention_text(repo_ids: Sequence[str]) -> str:
    """The discussion, in Markdown.

    Args:
        repo_ids: What was published.
    """
    links = "\n".join(f"- [{repo_id}](/{repo_id})" for repo_id in repo_ids)
    return (
        "This model has been quantized for [MLX](https://github.com/ml-explore/mlx), so that it "
        f"runs on Macs with less memory:\n\n{links}\n\n"
        "Their cards have the figures beside the original's. dynquant found the model by itself; "
        "this is the only message about it, also if its weights change.\n\n"
        "If you do not want quants of your models, write `dynquant: false` into the metadata of "
        "the card, or say so here."
    )
