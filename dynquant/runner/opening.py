"""Wires MLX, the Hub, texts and folders into the pipeline."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynquant.core.facts import ModelFacts
from dynquant.core.plan import TextFacts
from dynquant.core.quality import Quality
from dynquant.corpus import Corpus
from dynquant.errors import InvalidModelError, TextError
from dynquant.hub.datasets import HubDatasets
from dynquant.hub.models import HubModels
from dynquant.hub.publishing import HubPublisher
from dynquant.mlx_backend import slow_blas_sentence
from dynquant.mlx_backend.folder import check_folder
from dynquant.mlx_backend.quantizer import MlxQuantizer
from dynquant.mlx_backend.verify import verify_folder
from dynquant.outputs import MARKER, OutputFolders
from dynquant.ports import ModelSource, Progress
from dynquant.settings import Settings

__all__ = [
    "OutputFolders",
    "evaluate_folder",
    "open_model",
    "open_publisher",
    "open_texts",
    "verify_finished",
]

_logger = logging.getLogger(__name__)


@contextmanager
def open_model(
    model: str,
    *,
    revision: str | None = None,
    headers_only: bool = False,
    dequantize: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[ModelSource, MlxQuantizer]]:
    """A local folder or a Hub repo, opened.

    Args:
        model: Folder or Hub id.
        revision: Branch, tag or commit of a repo.
        headers_only: Download no weights; enough to plan.
        dequantize: Take a model that is quantized already.
        progress: Shows the download.
    """
    settings = Settings.from_environment(os.environ)
    with HubModels(cache_dir=settings.cache_dir, max_cache_bytes=settings.cache_bytes) as hub:
        if headers_only:
            source = hub.fetch_headers(model, revision=revision, allow_quantized=dequantize)
        else:
            _warn_of_slow_blas()
            source = hub.fetch(
                model, revision=revision, allow_quantized=dequantize, progress=progress
            )
        quantizer = MlxQuantizer(
            source.folder,
            name=source.name,
            revision_sha=source.revision_sha,
            dequantize=dequantize,
        )
        yield source, quantizer


def evaluate_folder(
    folder: Path, reference: str, evaluation: str, *, num_tokens: int, progress: Progress
) -> tuple[Quality, Quality]:
    """Figures of the original and of a quantized folder on held-out text.

    Raises:
        InvalidModelError: The folder is of another model than the reference.
        TextError: The text is too short, or the folder was calibrated on it.
    """
    check_folder(folder)
    text = open_texts().open(evaluation)
    with open_model(reference) as (_, quantizer):
        if _layers(MlxQuantizer(folder, name=folder.name, dequantize=True)) != _layers(quantizer):
            raise InvalidModelError(
                f"'{folder.name}' is not of the same model as the reference: their layers differ. "
                "Pass the original that it was made from to --reference."
            )
        windows = quantizer.evaluation_windows(text, num_tokens)
        check_not_calibrated_on(folder, windows.facts)
        with progress.track({"evaluate": quantizer.num_blocks}) as on_step:
            original, found = quantizer.evaluate(
                {folder.name: folder}, {}, windows, on_step=on_step
            )
    return original, found[folder.name]


def check_not_calibrated_on(folder: Path, facts: TextFacts) -> None:
    """Refuse a text that the folder's own plan says it was calibrated on.

    Raises:
        TextError: It is that text.
    """
    try:
        plan = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        calibration = plan["calibration"]
        same = calibration["sha256"] == facts.sha256 or calibration["name"] == facts.name
    except (OSError, ValueError, KeyError, TypeError):
        return  # not a folder of ours: nobody can tell
    if same:
        raise TextError(
            f"This model was calibrated on '{facts.name}', so figures on it would flatter. "
            "Pass a text to --eval that it has not seen."
        )


def _layers(quantizer: MlxQuantizer) -> set[tuple[str, tuple[int, ...]]]:
    return {(layer.path, layer.shape) for layer in quantizer.inventory(()).layers}


def open_publisher() -> HubPublisher:
    """The Hub, with the token that is found there."""
    return HubPublisher()


def verify_finished(folder: Path, facts: ModelFacts) -> None:
    """Load a finished folder with stock mlx-lm in a fresh process.

    Raises:
        InvalidModelError: Its files are not whole.
        VerificationError: It does not load, or is not what its plan says.
    """
    check_folder(folder)
    verify_folder(folder, stored_bpw=facts.plan.stored_bpw)


def open_texts() -> Corpus:
    """Local files and Hub datasets."""
    return Corpus(open_dataset=HubDatasets().open)


def _warn_of_slow_blas() -> None:
    sentence = slow_blas_sentence()
    if sentence is not None:
        _logger.warning(sentence)
