"""Wires MLX, the Hub, texts and output folders into a conversion."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dynquant.errors import InvalidModelError, TextError
from dynquant.hub.datasets import HubDatasets
from dynquant.hub.local import local_source, require_readable
from dynquant.hub.models import HubModels
from dynquant.hub.publishing import HubPublisher
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.model.source import ModelSource
from dynquant.progress import Progress
from dynquant.quant.mlx import slow_blas_sentence
from dynquant.quant.mlx.calibration import Windows
from dynquant.quant.mlx.folder import check_folder
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.verify import verify_folder
from dynquant.quant.quality import Quality
from dynquant.report.artefacts.fields import text_facts, whole
from dynquant.report.artefacts.json_text import MALFORMED
from dynquant.report.facts import ModelFacts
from dynquant.report.outputs import MARKER, OutputFolders
from dynquant.settings import Settings
from dynquant.texts.corpus import Corpus
from dynquant.texts.overlap import Sketch, is_too_much

__all__ = [
    "OutputFolders",
    "access_now",
    "evaluate_folder",
    "open_model",
    "open_publisher",
    "open_texts",
    "verify_finished",
]

_logger = logging.getLogger(__name__)
_MAX_TOKENS_CUT_AGAIN = 1 << 20
"""A plan is a stranger's, and so is how long a text it says to cut."""


@contextmanager
def open_model(
    model: str,
    *,
    revision: str | None = None,
    headers_only: bool = False,
    dequantize: bool = False,
    progress: Progress | None = None,
    check: Callable[[ModelSource, MlxQuantizer], object] | None = None,
) -> Iterator[tuple[ModelSource, MlxQuantizer]]:
    """A local folder or a Hub repo, opened.

    Args:
        model: Folder or Hub id.
        revision: Branch, tag or commit of a repo.
        headers_only: Download no weights; enough to plan.
        dequantize: Take a model that is quantized already.
        progress: Shows the download.
        check: Called before weights are downloaded, with headers alone; what it raises ends it.
    """
    settings = Settings.from_environment(os.environ)
    with HubModels(cache_dir=settings.cache_dir, max_cache_bytes=settings.cache_bytes) as hub:
        if headers_only or check is not None:
            source = hub.fetch_headers(model, revision=revision, allow_quantized=dequantize)
            quantizer = _opened(source, dequantize=dequantize)
            if check is not None:
                check(source, quantizer)
            if headers_only or local_source(model, revision) is not None:
                yield source, quantizer
                return
            model, revision = source.name, source.revision_sha
        _warn_of_slow_blas()
        source = hub.fetch(model, revision=revision, allow_quantized=dequantize, progress=progress)
        yield source, _opened(source, dequantize=dequantize)


def _opened(source: ModelSource, *, dequantize: bool) -> MlxQuantizer:
    return MlxQuantizer(
        source.folder,
        name=source.name,
        revision_sha=source.revision_sha,
        dequantize=dequantize,
    )


def evaluate_folder(
    folder: Path, reference: str, evaluation: str, *, num_tokens: int, progress: Progress
) -> tuple[Quality, Quality]:
    """Figures of the original and of a quantized folder on held-out text.

    Raises:
        InvalidModelError: The folder is of another model than the reference.
        TextError: The text is too short, or the folder was calibrated on it.
    """
    require_readable(folder)
    check_folder(folder)
    layers = _layers(MlxQuantizer(folder, name=folder.name, dequantize=True))
    text = open_texts().open(evaluation)

    def check(_source: ModelSource, original: MlxQuantizer) -> None:
        if layers != _layers(original):
            raise InvalidModelError(
                f"'{folder.name}' is not of the same model as the reference: their layers differ. "
                "Pass the original that it was made from to --reference."
            )

    with open_model(reference, check=check, progress=progress) as (_, quantizer):
        windows = quantizer.evaluation_windows(text, num_tokens)
        check_not_calibrated_on(folder, windows, partial(quantizer.calibration_windows, text))
        with progress.track({"evaluate": quantizer.num_blocks}) as on_step:
            original, found = quantizer.evaluate(
                {folder.name: folder}, {}, windows, on_step=on_step
            )
    return original, found[folder.name]


def check_not_calibrated_on(folder: Path, windows: Windows, cut: Callable[[int], Windows]) -> None:
    """Refuse a text that the folder's own plan tells to hold what it was calibrated on.

    Args:
        folder: A quantized model; without a plan of ours there is nothing to compare with.
        windows: The evaluation text.
        cut: Cuts so many tokens of that text as a calibration text is cut; for plans of earlier
            versions, which know nothing but a hash of the text that was cut.

    Args:
        folder: A quantized model.
        text: Name of the text.
        sha256: Of its content, once it was read.

    Raises:
        TextError: The text holds what the model was calibrated on.
    """
    try:
        plan = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        calibration = text_facts(plan["calibration"])
        stored = plan.get("calibration_sketch")
        sketch = Sketch.from_text(stored) if stored else None
        num_tokens = whole(plan["request"]["calibration_tokens"])
    except (OSError, *MALFORMED):
        return
    facts = windows.facts
    if sketch is not None:
        is_known = is_too_much(windows.sketch, known=sketch)
        is_known |= bool(facts.source_sha256) and facts.source_sha256 == calibration.source_sha256
    elif num_tokens > _MAX_TOKENS_CUT_AGAIN:
        is_known = False
    else:
        try:
            is_known = cut(num_tokens).facts.is_same_text(calibration)
        except TextError:  # too short to be that text
            is_known = False
    if is_known:
        raise TextError(
            f"This model was calibrated on text that '{facts.name}' holds, so figures on it would "
            "flatter. Pass a text to --eval that it has not seen."
        )


def _layers(quantizer: MlxQuantizer) -> set[tuple[str, tuple[int, ...]]]:
    return {(layer.path, layer.shape) for layer in quantizer.inventory(()).layers}


def open_publisher() -> HubPublisher:
    """The Hub, with the token that is found there."""
    return HubPublisher()


def access_now(origin: Origin) -> Access:
    """The current access to a model on the Hub, see `HubModels.access_of`."""
    with HubModels() as hub:
        return hub.access_of(origin)


def verify_finished(folder: Path, facts: ModelFacts) -> None:
    """Load a finished folder with stock mlx-lm in a fresh process.

    Raises:
        InvalidModelError: Its files are not whole.
        VerificationError: It does not load, or is not what its plan says.
    """
    require_readable(folder)
    check_folder(folder)
    verify_folder(folder, stored_bpw=facts.plan.stored_bpw)


def open_texts() -> Corpus:
    """Local files and Hub datasets."""
    return Corpus(open_dataset=HubDatasets().open)


def _warn_of_slow_blas() -> None:
    sentence = slow_blas_sentence()
    if sentence is not None:
        _logger.warning(sentence)
