"""Base of the classes that call the Hub: the client with its token, and how its calls run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Literal

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from dynquant.errors import ModelNotFoundError, RequestError
from dynquant.hub.calls import TIMEOUT_SECS, HubCaller

__all__ = ["HubClient"]


class HubClient:
    """Calls the Hub. Every method may raise `HubUnavailableError`: network, rate limit, 5xx.

    Args:
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the token that huggingface_hub finds, False is no token.
        sleep: Waits that many seconds between two tries.
        on_try: Called before every call to the Hub; a file that is read is one call.
    """

    _noun: ClassVar[Literal["model", "dataset"]] = "model"
    _access: ClassVar[Literal["read", "write to"]] = "read"
    _refusal: ClassVar[type[RequestError]] = ModelNotFoundError

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        sleep: Callable[[float], None] = time.sleep,
        on_try: Callable[[], None] = lambda: None,
    ) -> None:
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._call = HubCaller(
            endpoint=self._api.endpoint,
            noun=self._noun,
            access=self._access,
            refusal=self._refusal,
            sleep=sleep,
            on_try=on_try,
        )

    def _request_headers(self) -> dict[str, str]:
        return build_hf_headers(token=self._api.token, library_name="dynquant")

    def _read_file(
        self, repo: str, path: str, *, max_bytes: int, revision: str | None = None
    ) -> bytes:
        """The first `max_bytes` of a file; the client's own download needs two requests and a disk.

        Raises:
            HfHubHTTPError, httpx2.HTTPError: The Hub does not give it.
        """
        url = hf_hub_url(
            repo, path, repo_type=self._noun, revision=revision, endpoint=self._api.endpoint
        )
        # Without compression, else a small answer could unpack to a large one.
        headers = self._request_headers() | {"Accept-Encoding": "identity"}
        content = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECS) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) >= max_bytes:
                    break
        return bytes(content[:max_bytes])
