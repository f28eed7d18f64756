"""Every error that dynquant raises on purpose.

    DynquantError
    ├── RequestError                 change the request; exit code 2, nothing was written
    │   ├── ModelNotFoundError       no such folder, repo or revision, or no access to it
    │   ├── UnsupportedModelError    the model exists, and dynquant cannot or may not take it
    │   ├── InvalidModelError        files missing, corrupt, or not of one model
    │   ├── InfeasibleTargetError    outside the feasible range (`min_bpw`, `max_bpw`)
    │   ├── InvalidOptionError       an option's value makes no sense
    │   ├── TextError                calibration or evaluation text unusable (`num_tokens_needed`)
    │   ├── SensitivitiesError       a sensitivities file or cost table that does not fit the model
    │   └── OutputFolderError        the output exists and is not ours
    ├── RetryLaterError              the same request may work later; exit code 3
    │   ├── StorageFullError         disk full, or not writable any more
    │   └── HubUnavailableError      network, rate limit, 5xx
    └── NeverPublishError            a result that must not leave this machine; exit code 4
        ├── NonFiniteError           NaN or infinity (`layer`)
        └── VerificationError        the written folder is not what was planned

Messages are whole sentences for the person who made the request. They name no
token and no path that the person did not type.
"""

from __future__ import annotations

__all__ = [
    "DynquantError",
    "HubUnavailableError",
    "InfeasibleTargetError",
    "InvalidModelError",
    "InvalidOptionError",
    "ModelNotFoundError",
    "NeverPublishError",
    "NonFiniteError",
    "OutputFolderError",
    "RequestError",
    "RetryLaterError",
    "SensitivitiesError",
    "StorageFullError",
    "TextError",
    "UnsupportedModelError",
    "VerificationError",
]


class DynquantError(Exception):
    """Base of every error that dynquant raises on purpose."""

    exit_code = 1


class RequestError(DynquantError):
    """The request cannot work as it is; the person has to change it."""

    exit_code = 2


class ModelNotFoundError(RequestError):
    """No such folder, repo or revision, or no access to it."""


class UnsupportedModelError(RequestError):
    """The model exists, and dynquant cannot or may not take it."""


class InvalidModelError(RequestError):
    """The model's files are missing, corrupt, or not of one model."""


class InfeasibleTargetError(RequestError):
    """The target lies outside of what the menu of formats can reach."""

    def __init__(self, message: str, *, min_bpw: float, max_bpw: float) -> None:
        super().__init__(message)
        self.min_bpw = min_bpw
        self.max_bpw = max_bpw


class InvalidOptionError(RequestError):
    """An option's value makes no sense."""


class TextError(RequestError):
    """A calibration or evaluation text cannot be used."""

    def __init__(self, message: str, *, num_tokens_needed: int | None = None) -> None:
        super().__init__(message)
        self.num_tokens_needed = num_tokens_needed


class SensitivitiesError(RequestError):
    """A sensitivities file or cost table that is malformed or of another model."""


class OutputFolderError(RequestError):
    """The output folder exists and dynquant did not make it."""


class RetryLaterError(DynquantError):
    """Nothing is wrong with the request; the same one may work later."""

    exit_code = 3


class StorageFullError(RetryLaterError):
    """The disk is full or can no longer be written."""


class HubUnavailableError(RetryLaterError):
    """The Hub did not answer, or asked us to come back later."""


class NeverPublishError(DynquantError):
    """A result that must not leave this machine."""

    exit_code = 4


class NonFiniteError(NeverPublishError):
    """NaN or infinity turned up; `layer` says where."""

    def __init__(self, message: str, *, layer: str) -> None:
        super().__init__(message)
        self.layer = layer


class VerificationError(NeverPublishError):
    """The written folder is not what was planned."""
