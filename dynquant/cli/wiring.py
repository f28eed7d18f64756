"""Opens models, texts and the publisher for the commands, with MLX and the Hub."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from dynquant.errors import ImagesError, InvalidModelError, InvalidOptionError, TextError
from dynquant.hub.datasets import HubDatasets
from dynquant.hub.local import local_source, require_readable
from dynquant.hub.models import HubModels
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.model.source import ModelSource
from dynquant.progress import Progress
from dynquant.quant.chips import chip_named
from dynquant.quant.mlx import slow_blas_sentence
from dynquant.quant.mlx.calibration import Windows
from dynquant.quant.mlx.folder import check_folder
from dynquant.quant.mlx.generation_speed import machine_name
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.verify import verify_folder
from dynquant.quant.quality import Quality
from dynquant.report.artefacts.fields import image_facts, text_facts, whole
from dynquant.report.artefacts.json_text import MALFORMED
from dynquant.report.facts import ModelFacts
from dynquant.report.outputs import MARKER
from dynquant.settings import Settings
from dynquant.texts.corpus import Corpus
from dynquant.texts.overlap import Sketch, is_too_much

__all__ = [
    "access_now",
    "chip_here",
    "evaluate_folder",
    "open_model",
    "open_texts",
    "verify_finished",
]

_logger = logging.getLogger(__name__)
_MAX_TOKENS_CUT_AGAIN = 1 << 20
"""The length comes from an untrusted plan."""


@contextmanager
def open_model(
    model: str,
    *,
    revision: str | None = None,
    headers_only: bool = False,
    dequantize: bool = False,
    dtype: str = "auto",
    tower: str = "keep",
    progress: Progress | None = None,
    check: Callable[[ModelSource, MlxQuantizer], object] | None = None,
) -> Iterator[tuple[ModelSource, MlxQuantizer]]:
    """A local folder or a Hub repo, opened.

    Args:
        model: Folder or Hub id.
        revision: Branch, tag or commit of a repo.
        headers_only: Download no weights; enough to plan.
        dequantize: Take somebody's quant of a model too.
        dtype: See `Recipe.dtype`.
        tower: See `Recipe.tower`.
        progress: Shows the download.
        check: Called with the headers before weights are downloaded; may raise.
    """
    settings = Settings.from_environment(os.environ)
    with HubModels(cache_dir=settings.cache_dir, max_cache_bytes=settings.cache_bytes) as hub:
        if headers_only or check is not None:
            source = hub.fetch_headers(model, revision=revision, allow_quantized=dequantize)
            quantizer = _opened(source, dequantize=dequantize, dtype=dtype, tower=tower)
            if check is not None:
                check(source, quantizer)
            if headers_only or local_source(model, revision) is not None:
                yield source, quantizer
                return
            model, revision = source.name, source.revision_sha
        _warn_of_slow_blas()
        source = hub.fetch(model, revision=revision, allow_quantized=dequantize, progress=progress)
        yield source, _opened(source, dequantize=dequantize, dtype=dtype, tower=tower)


def _opened(source: ModelSource, *, dequantize: bool, dtype: str, tower: str) -> MlxQuantizer:
    return MlxQuantizer(
        source.folder,
        name=source.name,
        revision_sha=source.revision_sha,
        dequantize=dequantize,
        dtype=dtype,
        tower=tower,
    )


def evaluate_folder(
    folder: Path,
    reference: str,
    evaluation: str,
    *,
    num_tokens: int,
    evaluation_images: str | None = None,
    progress: Progress,
) -> tuple[Quality, Quality]:
    """Figures of the original and of a quantized folder on held-out text, and on images.

    Raises:
        InvalidModelError: The folder is of another model than the reference.
        ImagesError: The images cannot be used, or the model sees none.
        TextError: The text is too short, or the folder was calibrated on it.
    """
    require_readable(folder)
    check_folder(folder)
    written, texts = MlxQuantizer(folder, name=folder.name, dequantize=True), open_texts()
    layers, images = _layers(written), None
    if evaluation_images is not None:
        written.require_tower()
        images = texts.open_images(evaluation_images)
    text = texts.open(evaluation)

    def check(_source: ModelSource, original: MlxQuantizer) -> None:
        if layers != _layers(original):
            raise InvalidModelError(
                f"'{folder.name}' is not of the same model as the reference: their layers differ. "
                "Pass the original that it was made from to --reference."
            )

    with open_model(reference, check=check, progress=progress) as (_, quantizer):
        windows = quantizer.evaluation_windows(text, num_tokens, images)
        check_not_calibrated_on(folder, windows, partial(quantizer.calibration_windows, text))
        with progress.track({"evaluate": quantizer.num_blocks}) as on_step:
            original, found = quantizer.evaluate(
                {folder.name: folder}, {}, windows, on_step=on_step
            )
    return original, found[folder.name]


def check_not_calibrated_on(folder: Path, windows: Windows, cut: Callable[[int], Windows]) -> None:
    """Refuse to evaluate on a text or on images that the folder's plan was calibrated on.

    Args:
        folder: A quantized model; without a plan of dynquant nothing is compared.
        windows: The evaluation text, and perhaps images.
        cut: Cuts a number of tokens of that text like a calibration text; for plans of earlier
            versions, which only have a hash of the cut text.

    Raises:
        TextError: The text overlaps.
        ImagesError: The images are the same.
    """
    try:
        plan = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        calibration = text_facts(plan["calibration"])
        stored = plan.get("calibration_sketch")
        sketch = Sketch.from_text(stored) if stored else None
        num_tokens = whole(plan["request"]["calibration_tokens"])
        seen = image_facts(plan["request"].get("calibration_images"))
    except (OSError, *MALFORMED):
        return
    if seen is not None and windows.images and windows.images.facts.sha256 == seen.sha256:
        raise ImagesError(
            f"This model was calibrated on the images of '{windows.images.name}', so figures on "
            "them would flatter. Pass others to --eval-images."
        )
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


def access_now(origin: Origin) -> Access:
    """The current access to a model on the Hub, see `HubModels.access_of`."""
    with HubModels() as hub:
        return hub.access_of(origin)


def verify_finished(folder: Path, facts: ModelFacts) -> None:
    """Load a finished folder with stock mlx-lm in a fresh process.

    Raises:
        InvalidModelError: Its files are incomplete.
        VerificationError: It does not load, or differs from its plan.
    """
    require_readable(folder)
    check_folder(folder)
    verify_folder(folder, stored_bpw=facts.plan.stored_bpw)


def chip_here() -> str | None:
    """The chip of this machine by its name in `quant.chips`; None if it is not Apple's."""
    with suppress(InvalidOptionError):
        return chip_named(machine_name().rpartition(",")[0])
    return None


def open_texts() -> Corpus:
    """Local files and Hub datasets."""
    return Corpus(open_dataset=HubDatasets().open)


def _warn_of_slow_blas() -> None:
    sentence = slow_blas_sentence()
    if sentence is not None:
        _logger.warning(sentence)
