"""A model that can be quantized, as a conversion sees it; `quant.mlx.quantizer` implements it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from dynquant.progress import OnStep
from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import CostTable, ModelInventory, QuantPlan, TextFacts
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import Effort
from dynquant.quant.verified import Verified
from dynquant.texts.documents import Text
from dynquant.texts.images import ImagePrompts

__all__ = ["Quantizer", "W", "Windows"]


class Windows(Protocol):
    """Token windows of one text, opaque to the pipeline."""

    @property
    def facts(self) -> TextFacts:
        """The facts about the text for the card."""
        ...

    @property
    def images(self) -> ImagePrompts | None:
        """Questions about images beside the text."""
        ...

    def check_disjoint(self, calibration: Self) -> None:
        """Refuse evaluation windows that share text or images with the calibration windows.

        Raises:
            TextError: The texts are the same, or overlap.
            ImagesError: Both have one image.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """The windows as JSON types, for another process of the same job."""
        ...


W = TypeVar("W", bound=Windows)


class Quantizer(Protocol[W]):
    """One open model, and what can be done with it; see `quant.mlx.quantizer`."""

    @property
    def revision_sha(self) -> str:
        """Commit of the model's repo, or the fingerprint of its weights."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of the model."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the tools that a result depends on."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the card on parts of the model that the result leaves out."""
        ...

    def check_tokenizer(self) -> None:
        """Refuse a tokenizer that would differ when opened beside the quantized weights.

        Raises:
            InvalidModelError, UnsupportedModelError: It does not open, or would differ.
        """
        ...

    def check_source(self, windows: W) -> None:
        """Refuse a source that stock mlx-lm reads as another model; choose the dtype of results.

        Raises:
            InvalidModelError, UnsupportedModelError: Stock mlx-lm computes other logits.
            NonFiniteError: The source computes NaN or infinity.
        """
        ...

    def store_as(self, dtype: str) -> None:
        """Store results in the dtype that an earlier `check_source` chose."""
        ...

    def inventory(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        """Layers and sizes of the model, with the formats of `menu` that each layer may take."""
        ...

    def cache_bytes(self, context_tokens: int, *, kv_bits: int = 16) -> int:
        """Memory of the key-value cache at `context_tokens`.

        Raises:
            InvalidOptionError: The model's caches take no fewer bits.
        """
        ...

    @property
    def context_limit(self) -> int | None:
        """Tokens of the longest context that the model's config names; None if it names none."""
        ...

    def read_shares(self) -> Mapping[str, float]:
        """Path of a layer → share of its weights that generating a token reads; may be empty."""
        ...

    def conversion_bytes(self, num_tokens: int, *, num_fitting_tokens: int = 0) -> int:
        """Peak memory of a conversion, estimated."""
        ...

    def require_tower(self) -> None:
        """Refuse questions about images for a model that sees none.

        Raises:
            ImagesError: It has no tower, or none is kept.
        """
        ...

    def calibration_windows(
        self,
        text: Text,
        num_tokens: int,
        images: ImagePrompts | None = None,
        *,
        num_fitting_tokens: int = 0,
    ) -> W:
        """Windows to calibrate on, and more of the same text where weights are fitted on more.

        Questions about images stand beside them.

        Raises:
            TextError: The text is too short.
            ImagesError: The model's processor makes nothing of an image that the model can take.
        """
        ...

    def evaluation_windows(
        self, text: Text, num_tokens: int, images: ImagePrompts | None = None
    ) -> W:
        """Windows to evaluate on; see `calibration_windows`."""
        ...

    def windows_from_json(self, raw: Any, images: ImagePrompts | None = None) -> W:
        """The windows that `Windows.to_json` wrote for the same model, beside `images`.

        Raises:
            InvalidModelError: They are not windows of this model.
        """
        ...

    def measure(
        self,
        windows: W,
        *,
        menu: Sequence[QuantFormat],
        encoder: str,
        effort: Effort,
        seed: int,
        on_step: OnStep,
    ) -> CostTable:
        """The cost of every format of every layer."""
        ...

    def polish(
        self,
        table: CostTable,
        plans: Mapping[float, QuantPlan],
        windows: W,
        *,
        effort: Effort,
        keep_going: Callable[[], bool],
        on_step: OnStep,
    ) -> dict[float, QuantPlan]:
        """Plans of the same size with less KL divergence on the whole model; target → plan.

        Empty where `keep_going` left no time for a round.
        """
        ...

    def reconstruct(
        self, plans: Mapping[Path, QuantPlan], windows: W, *, effort: Effort, on_step: OnStep
    ) -> None:
        """Replace codes, scales and biases in written folders by those that fit whole blocks.

        Args:
            plans: Written folder → its formats.
            windows: The calibration windows.
            effort: How much work to put in.
            on_step: Called with `reconstruct` after each block of each folder.
        """
        ...

    def distil(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: W,
        *,
        effort: Effort,
        keep_going: Callable[[], bool],
        on_step: OnStep,
    ) -> None:
        """Replace scales, biases and norms in written folders by better ones that it finds."""
        ...

    def align(
        self, windows: W, *, low: QuantFormat, high: QuantFormat, on_step: OnStep
    ) -> dict[str, float]:
        """Sensitivities of the alignment method, path → value."""
        ...

    def encode(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: W,
        *,
        encoder: str,
        effort: Effort,
        importance: Mapping[str, tuple[tuple[str, str], ...]],
        on_step: OnStep,
    ) -> dict[Path, int]:
        """Write one folder per plan; folder → bytes of weights.

        Args:
            plans: Empty folder → its formats.
            windows: The calibration windows.
            encoder: Name of the encoder.
            effort: How much work to put in.
            importance: `CostTable.importance`.
            on_step: Called with `encode` after each block.

        Raises:
            StorageFullError: The disk is full.
            NonFiniteError: A weight is NaN or infinite; names the layer.
        """
        ...

    def verify(self, folder: Path, plan: QuantPlan, windows: W, *, effort: Effort) -> Verified:
        """Compare stock runtimes in fresh processes with the plan.

        Args:
            folder: A written folder.
            plan: Its plan.
            windows: Held-out windows; a few tokens of them are compared.
            effort: How long a text to time it on, and to try caches of fewer bits on.

        Raises:
            VerificationError: It does not load, stores or computes something else than planned,
                computes NaN or infinity, or repeats one token.
        """
        ...

    def evaluate(
        self,
        folders: Mapping[str, Path],
        uniform: Mapping[str, QuantPlan],
        windows: W,
        *,
        on_step: OnStep,
    ) -> tuple[Quality, dict[str, Quality]]:
        """Figures of the original; name → figures of written folders and uniform plans."""
        ...
