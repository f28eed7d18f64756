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
from dynquant.texts.documents import Text

__all__ = ["Quantizer", "W", "Windows"]


class Windows(Protocol):
    """Token windows of one text, opaque to the pipeline."""

    @property
    def facts(self) -> TextFacts:
        """What the card says about the text."""
        ...

    def check_disjoint(self, calibration: Self) -> None:
        """Refuse to evaluate on what was calibrated on.

        Raises:
            TextError: The texts are the same, or overlap.
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
        """How many blocks a pass goes through."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the tools that a result depends on."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the card on what of the model is not in use."""
        ...

    def check_tokenizer(self) -> None:
        """Refuse a tokenizer that would be another one beside the quantized weights.

        Raises:
            InvalidModelError, UnsupportedModelError: It does not open, or would differ.
        """
        ...

    def check_source(self, windows: W) -> None:
        """Refuse a source that would be another model in mlx-lm; settle the dtype of results.

        Raises:
            InvalidModelError, UnsupportedModelError: Stock mlx-lm computes something else.
            NonFiniteError: The source computes NaN or infinity.
        """
        ...

    def store_as(self, dtype: str) -> None:
        """Store results in the dtype that an earlier `check_source` settled."""
        ...

    def inventory(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        """What the model weighs, and which formats of `menu` each layer may take."""
        ...

    def cache_bytes(self, context_tokens: int) -> int:
        """Memory of the key-value cache at `context_tokens`."""
        ...

    def conversion_bytes(self, num_tokens: int) -> int:
        """Memory that converting takes at its peak, estimated."""
        ...

    def calibration_windows(self, text: Text, num_tokens: int) -> W:
        """Windows to calibrate on."""
        ...

    def evaluation_windows(self, text: Text, num_tokens: int) -> W:
        """Windows to evaluate on."""
        ...

    def windows_from_json(self, raw: Any) -> W:
        """The windows that `Windows.to_json` wrote for the same model.

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
        """What every format of every layer costs."""
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
        """Plans of the same size that the whole model finds better; target → plan.

        Empty where `keep_going` left no time for a round.
        """
        ...

    def refine(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: W,
        *,
        effort: Effort,
        keep_going: Callable[[], bool],
        on_step: OnStep,
    ) -> None:
        """Better scales and biases in written folders, where there are any."""
        ...

    def align(
        self, windows: W, *, low: QuantFormat, high: QuantFormat, on_step: OnStep
    ) -> dict[str, float]:
        """The seed's sensitivities, path → value."""
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
        """Write one folder per plan; folder → bytes of weights."""
        ...

    def verify(self, folder: Path, plan: QuantPlan, windows: W) -> str:
        """Compare stock mlx-lm in a fresh process with the plan; what the folder generated."""
        ...

    def evaluate(
        self,
        folders: Mapping[str, Path],
        uniform: Mapping[str, QuantPlan],
        windows: W,
        *,
        on_step: OnStep,
    ) -> tuple[Quality, dict[str, Quality]]:
        """Figures of the original, and by name of written folders and uniform plans."""
        ...
