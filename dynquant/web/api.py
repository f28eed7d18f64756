"""The four named endpoints for programs, also as MCP tools; all other endpoints are private."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import api

from dynquant.errors import DynquantError, InvalidOptionError
from dynquant.jobs.job import Job
from dynquant.web.orders import Order
from dynquant.web.service import DEFAULT_CONTEXT_TOKENS, Service

__all__ = ["add_api"]

_MAX_CONTEXT_TOKENS = 100_000_000
_LARGE = 1e9


def add_api(service: Service) -> None:
    """Add the endpoints to the Blocks that are open."""
    endpoints = _Api(service)
    for name in ("plan", "submit", "status", "cancel"):
        api(getattr(endpoints, name), api_name=name, queue=False)


class _Api:
    """The endpoints; the token of a call identifies the visitor."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def plan(
        self, model: str, bits_per_weight: list[float], context_tokens: int = DEFAULT_CONTEXT_TOKENS
    ) -> dict[str, Any]:
        """Forecast the result of quantizing a model, without downloading or queueing it.

        Args:
            model: Name of a model on the Hugging Face Hub, such as Qwen/Qwen3-8B, or its address.
            bits_per_weight: Stored bits per weight, one result each.
            context_tokens: Context length for the memory figure.
        """
        try:
            targets, tokens = _numbers(bits_per_weight), _whole(context_tokens)
            preview = self._service.look_at(_text("model", model))
            found = self._service.forecasts(preview, targets, context_tokens=tokens)
        except DynquantError as error:
            raise _refusal(error) from error
        return {
            "model": preview.repo_id,
            "revision_sha": preview.revision_sha,
            "num_parameters": preview.inventory.num_parameters,
            "min_bits_per_weight": round(preview.inventory.min_bpw, 3),
            "max_bits_per_weight": round(preview.inventory.max_bpw, 3),
            "tower_bytes": preview.inventory.tower_bits // 8,
            "notes": list(preview.notes),
            "targets": [
                {
                    "bits_per_weight": each.target_bpw,
                    "size_bytes": each.size_bytes,
                    "memory_bytes": each.memory_bytes,
                    "expected_quality": each.quality,
                    "is_measured": each.is_measured,
                }
                for each in found
            ],
            "existing": [each.repo_id for each in preview.quants],
        }

    def submit(  # noqa: PLR0917, D417  the token comes with the session
        self,
        model: str,
        bits_per_weight: list[float],
        formats: str = "",
        destination: str = "",
        private: bool = False,  # noqa: FBT001, FBT002  Gradio passes values by place
        notify_url: str = "",
        calibration: str = "",
        token: gr.OAuthToken | None = None,
    ) -> dict[str, Any]:
        """Queue a model; the same request again is the same job.

        Args:
            model: Name of a model on the Hugging Face Hub, such as Qwen/Qwen3-8B, or its address.
            bits_per_weight: Stored bits per weight, one published model each.
            formats: Formats to choose from, such as 3g64,4g64,8g64; empty for all.
            destination: Namespace to publish to; empty for the default.
            private: Whether the published models are private.
            notify_url: Address that is notified when the job ends; empty for none.
            calibration: Text to calibrate on, as the page Convert names it; empty for the default.
        """
        try:
            visitor = self._service.sign_in.require(token.token if token else None)
            job = self._service.submit(
                visitor,
                Order(
                    model=_text("model", model),
                    targets_bpw=_numbers(bits_per_weight),
                    formats=_text("formats", formats),
                    calibration=_text("calibration", calibration),
                    destination=_text("destination", destination),
                    private=_flag("private", private),
                    notify_url=_text("notify_url", notify_url),
                ),
            )
        except DynquantError as error:
            raise _refusal(error) from error
        return self._shown(job)

    def status(self, job_id: str) -> dict[str, Any]:
        """The state and progress of a job, and the models that it published.

        Args:
            job_id: As submit returned it.
        """
        try:
            job, _ = self._service.job(_text("job_id", job_id))
        except DynquantError as error:
            raise _refusal(error) from error
        return self._shown(job)

    def cancel(  # noqa: D417  as above
        self, job_id: str, token: gr.OAuthToken | None = None
    ) -> dict[str, Any]:
        """Cancel a job of your own.

        Args:
            job_id: As submit returned it.
        """
        try:
            visitor = self._service.sign_in.require(token.token if token else None)
            job = self._service.cancel(visitor, _text("job_id", job_id))
        except DynquantError as error:
            raise _refusal(error) from error
        return self._shown(job)

    def _shown(self, job: Job) -> dict[str, Any]:
        """The public fields of a job: without the address to notify, which may be a secret."""
        progress = job.progress
        return {
            "id": job.id,
            "page": f"{self._service.settings.address}/job?job={job.id}",
            "model": job.request.model,
            "revision_sha": job.request.revision,
            "bits_per_weight": list(job.request.targets_bpw),
            "requester": job.request.requester,
            "state": job.state.value,
            "is_over": job.is_over,
            "reason_code": job.reason_code,
            "sentence": job.sentence,
            "position": job.position,
            "step": progress.step if progress else None,
            "fraction": progress.fraction if progress else None,
            "eta_secs": job.eta_secs,
            "results": [
                {
                    "repo_id": each.repo_id,
                    "commit_sha": each.commit_sha,
                    "url": self._service.search.page_url(each.repo_id),
                }
                for each in job.results
            ],
        }


# Gradio does not check the types of the JSON that a program sends.


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidOptionError(f"{name} must be a text.")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidOptionError(f"{name} must be true or false.")
    return value


def _numbers(bits_per_weight: object) -> tuple[float, ...]:
    """A single number is a list of one."""
    values: list[Any] = bits_per_weight if isinstance(bits_per_weight, list) else [bits_per_weight]
    if any(type(each) not in {int, float} for each in values):
        raise InvalidOptionError("bits_per_weight must be a list of numbers, such as [3.5, 4.5].")
    # Whole numbers too large for a float are clipped; later checks refuse them.
    return tuple(float(min(max(each, -_LARGE), _LARGE)) for each in values)


def _whole(context_tokens: object) -> int:
    if type(context_tokens) is not int or not 0 <= context_tokens <= _MAX_CONTEXT_TOKENS:
        raise InvalidOptionError(
            f"context_tokens must be a whole number from 0 to {_MAX_CONTEXT_TOKENS:,}."
        )
    return context_tokens


def _refusal(error: DynquantError) -> gr.Error:
    return gr.Error(str(error), print_exception=False)
