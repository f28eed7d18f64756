"""The Hub that a model is on: huggingface.co, or another that commands have to be pointed at."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

__all__ = ["HUB_URL", "is_hugging_face", "pointed_at"]

HUB_URL = "https://huggingface.co"


def is_hugging_face(hub_url: str) -> bool:
    """Whether it is huggingface.co."""
    return urlsplit(hub_url).hostname in {"huggingface.co", "hf.co"}


def pointed_at(hub_url: str, command: str) -> str:
    """`command` with the variable that points it at another Hub than huggingface.co."""
    if is_hugging_face(hub_url):
        return command
    return f"HF_ENDPOINT={shlex.quote(hub_url.rstrip('/'))} {command}"
