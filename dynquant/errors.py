"""Every error that dynquant raises on purpose.

    DynquantError
    ├── RequestError                 change the request; exit code 2, nothing was written
    │   ├── ModelNotFoundError       no such folder, repo or revision, or no access to it
    │   ├── UnsupportedModelError    the model exists, and dynquant cannot or may not take it
    │   │   └── QuantizedSourceError a quant that somebody made of it (`form`, `base_model`)
    │   ├── InvalidModelError        files missing, corrupt, or not of one model
    │   ├── InfeasibleTargetError    outside the feasible range (`min_bpw`, `max_bpw`)
    │   ├── InvalidOptionError       an option's value makes no sense
    │   ├── TextError                calibration or evaluation text unusable (`num_tokens_needed`)
    │   ├── ImagesError              images to calibrate or to evaluate on are unusable
    │   ├── SensitivitiesError       a sensitivities file or cost table that does not fit the model
    │   ├── OutputFolderError        the output exists and is not ours
    │   ├── DestinationError         the repo to publish to is not ours to write
    │   ├── CardError                the Hub does not take the card's metadata
    │   └── HubJobError              no Job of the Hub can be started for it, or there is none
    ├── RetryLaterError              the same request may work later; exit code 3
    │   ├── StorageFullError         disk full, or not writable any more
    │   ├── NotEnoughMemoryError     this machine has too little (`needed_bytes`)
    │   ├── HubUnavailableError      network, rate limit, 5xx
    │   ├── HubQuotaError            no storage left in the account on the Hub
    │   └── HubJobEndedError         a Job of the Hub ended before its conversion did
    └── NeverPublishError            a result that must not leave this machine; exit code 4
        ├── NonFiniteError           NaN or infinity (`layer`)
        └── VerificationError        the written folder is not what was planned

Messages are whole sentences for the person who made the request. They name no
token and no path that the person did not type. `reason` is a code for programs: a
board that counts refusals, a watcher that says why it skipped a model.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import ClassVar

__all__ = [
    "CardError",
    "DestinationError",
    "DynquantError",
    "HubJobEndedError",
    "HubJobError",
    "HubQuotaError",
    "HubUnavailableError",
    "ImagesError",
    "InfeasibleTargetError",
    "InvalidModelError",
    "InvalidOptionError",
    "ModelNotFoundError",
    "NeverPublishError",
    "NonFiniteError",
    "NotEnoughMemoryError",
    "OutputFolderError",
    "QuantizedSourceError",
    "Reason",
    "RequestError",
    "RetryLaterError",
    "SensitivitiesError",
    "StorageFullError",
    "TextError",
    "UnsupportedModelError",
    "VerificationError",
    "disk_errors_translated",
    "means_full_disk",
    "means_no_memory",
    "missing_driver",
]

_HUB = "https://huggingface.co"
_MAX_CHARS = 2_000
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
"""Error numbers of a disk that is full or can no longer be written."""

_NO_MEMORY = ("Unable to allocate", "bad_alloc")
"""Parts of the messages of MLX and C++ libraries when memory runs out."""


class Reason(StrEnum):
    """Why something was refused or failed, as a code that stays the same between releases."""

    # The model cannot be read.
    MODEL_NOT_FOUND = "model_not_found"
    REVISION_NOT_FOUND = "revision_not_found"
    INVALID_ID = "invalid_id"
    GATED = "gated"
    DISABLED = "disabled"
    TOKEN_REFUSED = "token_refused"  # noqa: S105
    NO_ACCESS = "no_access"
    # dynquant does not take it.
    ADAPTER = "adapter"
    ALREADY_QUANTIZED = "already_quantized"
    FOREIGN_LAYOUT = "foreign_layout"
    GGUF = "gguf"
    OWN_CODE = "own_code"
    PICKLED_WEIGHTS = "pickled_weights"
    UNKNOWN_ARCHITECTURE = "unknown_architecture"
    UNSUPPORTED_MODEL = "unsupported_model"
    # Its files are not a model.
    INVALID_MODEL = "invalid_model"
    NO_CONFIG = "no_config"
    NO_WEIGHTS = "no_weights"
    TAKES_TOO_LONG = "takes_too_long"
    # The request makes no sense.
    INFEASIBLE_TARGET = "infeasible_target"
    INVALID_OPTION = "invalid_option"
    INVALID_REQUEST = "invalid_request"
    OUTPUT_IN_THE_WAY = "output_in_the_way"
    UNFIT_IMAGES = "unfit_images"
    UNFIT_SENSITIVITIES = "unfit_sensitivities"
    UNFIT_TEXT = "unfit_text"
    # The repo to publish to.
    DESTINATION_FORBIDDEN = "destination_forbidden"
    DESTINATION_TAKEN = "destination_taken"
    DESTINATION_TOO_OPEN = "destination_too_open"
    NOT_SIGNED_IN = "not_signed_in"
    CARD_REFUSED = "card_refused"
    # The world outside.
    HUB_JOB = "hub_job"
    HUB_JOB_ENDED = "hub_job_ended"
    HUB_QUOTA = "hub_quota"
    HUB_UNAVAILABLE = "hub_unavailable"
    RETRY_LATER = "retry_later"
    NOT_ENOUGH_MEMORY = "not_enough_memory"
    STORAGE_FULL = "storage_full"
    # The result is no good.
    NEVER_PUBLISH = "never_publish"
    NON_FINITE = "non_finite"
    VERIFICATION_FAILED = "verification_failed"
    # Jobs.
    CANCELLED = "cancelled"
    DAILY_LIMIT = "daily_limit"
    KILLED_RUNNERS = "killed_runners"
    # A bug of ours.
    INTERNAL = "internal"


class DynquantError(Exception):
    """Base of every error that dynquant raises on purpose.

    Attributes:
        reason: Code of what went wrong; that of the class unless given.
        published: Repos, with their commits, that were published before it went wrong.
    """

    exit_code: ClassVar = 1
    default_reason: ClassVar = Reason.INTERNAL

    def __init__(self, message: str, *, reason: Reason | None = None) -> None:
        super().__init__(_printable(message))
        self.reason = reason or self.default_reason
        self.published: tuple[tuple[str, str], ...] = ()


class RequestError(DynquantError):
    """The request cannot work as it is; the person has to change it."""

    exit_code = 2
    default_reason = Reason.INVALID_REQUEST


class ModelNotFoundError(RequestError):
    """No such folder, repo or revision, or no access to it."""

    default_reason = Reason.MODEL_NOT_FOUND


class UnsupportedModelError(RequestError):
    """The model exists, and dynquant cannot or may not take it."""

    default_reason = Reason.UNSUPPORTED_MODEL


class QuantizedSourceError(UnsupportedModelError):
    """The model is a quant that somebody made of another one.

    Args:
        name: Repo id or folder name; empty where the caller does not know it.
        form: The form of its weights, in words; empty if that is not known.
        base_model: Repo id of the model that it was made of; empty if nothing tells.
        remedy: Another way than to take the base model, as the end of the sentence.
    """

    default_reason = Reason.ALREADY_QUANTIZED

    def __init__(
        self,
        name: str,
        *,
        form: str = "",
        base_model: str = "",
        remedy: str = ", or pass --dequantize to start from these weights all the same",
    ) -> None:
        what = f"'{name}'" if name else "This model"
        if base_model:
            what += f" is a quant of '{base_model}' ({_HUB}/{base_model})"
            original = "that model"
        else:
            what += f" is quantized already ({form})"
            original = "the original"
        super().__init__(
            f"{what}, and quantizing it again would add its error to ours. Use {original}{remedy}."
        )
        self.form = form
        self.base_model = base_model


class InvalidModelError(RequestError):
    """The model's files are missing, corrupt, or not of one model."""

    default_reason = Reason.INVALID_MODEL


class InfeasibleTargetError(RequestError):
    """The target lies outside of what the menu of formats can reach."""

    default_reason = Reason.INFEASIBLE_TARGET

    def __init__(self, message: str, *, min_bpw: float, max_bpw: float) -> None:
        super().__init__(message)
        self.min_bpw = min_bpw
        self.max_bpw = max_bpw


class InvalidOptionError(RequestError):
    """An option's value makes no sense."""

    default_reason = Reason.INVALID_OPTION


class TextError(RequestError):
    """A calibration or evaluation text cannot be used."""

    default_reason = Reason.UNFIT_TEXT

    def __init__(
        self,
        message: str,
        *,
        num_tokens_needed: int | None = None,
        reason: Reason | None = None,
    ) -> None:
        super().__init__(message, reason=reason)
        self.num_tokens_needed = num_tokens_needed


class ImagesError(RequestError):
    """Images to calibrate or to evaluate on cannot be used, or the model sees none."""

    default_reason = Reason.UNFIT_IMAGES


class SensitivitiesError(RequestError):
    """A sensitivities file or cost table that is malformed or of another model."""

    default_reason = Reason.UNFIT_SENSITIVITIES


class OutputFolderError(RequestError):
    """The output folder exists and dynquant did not make it."""

    default_reason = Reason.OUTPUT_IN_THE_WAY


class DestinationError(RequestError):
    """The repo to publish to is not ours to write."""

    default_reason = Reason.DESTINATION_FORBIDDEN


class CardError(RequestError):
    """The Hub does not take the metadata of the card."""

    default_reason = Reason.CARD_REFUSED


class HubJobError(RequestError):
    """No Job of the Hub can be started for the request, or there is none to look at."""

    default_reason = Reason.HUB_JOB


class RetryLaterError(DynquantError):
    """Nothing is wrong with the request; the same one may work later."""

    exit_code = 3
    default_reason = Reason.RETRY_LATER


class StorageFullError(RetryLaterError):
    """The disk is full or can no longer be written."""

    default_reason = Reason.STORAGE_FULL


class NotEnoughMemoryError(RetryLaterError):
    """This machine has too little memory; one that has `needed_bytes` can do it."""

    default_reason = Reason.NOT_ENOUGH_MEMORY

    def __init__(self, message: str, *, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class HubUnavailableError(RetryLaterError):
    """The Hub did not answer, or asked us to come back later."""

    default_reason = Reason.HUB_UNAVAILABLE


class HubQuotaError(RetryLaterError):
    """The account on the Hub has no storage left."""

    default_reason = Reason.HUB_QUOTA


class HubJobEndedError(RetryLaterError):
    """A Job of the Hub ended before its conversion did: timeout, eviction, cancel, failure."""

    default_reason = Reason.HUB_JOB_ENDED


class NeverPublishError(DynquantError):
    """A result that must not leave this machine."""

    exit_code = 4
    default_reason = Reason.NEVER_PUBLISH


class NonFiniteError(NeverPublishError):
    """NaN or infinity turned up; `layer` says where."""

    default_reason = Reason.NON_FINITE

    def __init__(self, message: str, *, layer: str) -> None:
        super().__init__(message)
        self.layer = layer


class VerificationError(NeverPublishError):
    """The written folder is not what was planned."""

    default_reason = Reason.VERIFICATION_FAILED


def _printable(message: str) -> str:
    """`message` without what a stranger's names could do to a terminal, a log or a database.

    Control characters, marks that turn the line around, halves of characters, and the middle of
    what is too long for anybody to read.
    """
    if len(message) > _MAX_CHARS:
        message = f"{message[: _MAX_CHARS // 2]}…{message[-_MAX_CHARS // 2 :]}"
    return "".join(char if char.isprintable() else "?" for char in message)


@contextmanager
def disk_errors_translated() -> Iterator[None]:
    """Turn a full or vanished disk into our own error.

    Raises:
        StorageFullError: The disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise StorageFullError(
            "The disk is full or cannot be written, so nothing was kept. Free some space, or "
            "choose a folder on another disk, and try again."
        ) from error


def means_full_disk(error: BaseException) -> bool:
    """Whether a disk is full or cannot be written; MLX says so by other errors than the system."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return True
    return isinstance(error, RuntimeError) and os.strerror(errno.ENOSPC) in str(error)


def means_no_memory(error: BaseException) -> bool:
    """Whether the system gives no more memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _NO_MEMORY)


def missing_driver(message: str) -> str | None:
    """Instructions, if the message of a failed import says that MLX finds no NVIDIA driver."""
    if "libcuda.so" not in message:
        return None
    return (
        "MLX is the build for an NVIDIA GPU, and this machine has no NVIDIA driver (libcuda.so.1). "
        "Install the driver, or MLX for the CPU: 'make setup CUDA=', or 'dynquant[mlx]' in place "
        "of 'dynquant[cuda]' in a new environment."
    )
