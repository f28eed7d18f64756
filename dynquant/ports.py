"""What the pipeline speaks to; the implementations are wired in `runner/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

from dynquant.core.access import Access
from dynquant.core.formats import QuantFormat
from dynquant.core.origin import Origin
from dynquant.core.plan import CostTable, ModelInventory, QuantPlan, TextFacts
from dynquant.core.quality import Quality
from dynquant.core.recipe import Effort
from dynquant.core.texts import Chat

__all__ = [
    "Chat",
    "Document",
    "ModelHub",
    "ModelPublisher",
    "ModelSource",
    "OnStep",
    "OutputStore",
    "Progress",
    "PublishedModel",
    "Quantizer",
    "Text",
    "TextReader",
    "W",
    "Windows",
]

Document = str | Chat
"""Plain text, or a chat."""


class OnStep(Protocol):
    """Called with the name of a step whenever so many parts of it are done."""

    def __call__(self, step: str, amount: int = 1, /) -> None:
        """Count `amount` parts of `step` as done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model in a local folder, and where it came from.

    Attributes:
        name: Repo id, or the name of the local folder; never a path.
        folder: Where the files are.
        is_repo: Whether it came from the Hub.
        revision_sha: Commit of the repo; empty for a local folder.
        license_fields: `license`, `license_name`, `license_link` of the card, as far as present.
        gated: How a gated repo lets people in: `auto` or `manual`; empty for an open one.
        gated_fields: The `extra_gated_*` fields of the card.
        is_private: Whether only some may read the repo.
        hub_id: The Hub's own id of the repo, see `core.origin.Origin`; may be empty.
    """

    name: str
    folder: Path
    is_repo: bool
    revision_sha: str
    license_fields: Mapping[str, str]
    gated: str = ""
    gated_fields: Mapping[str, object] = field(default_factory=dict)
    is_private: bool = False
    hub_id: str = ""

    @property
    def origin(self) -> Origin:
        """What a quant of it names as its source."""
        return Origin(name=self.name, hub_id=self.hub_id)

    @property
    def access(self) -> Access:
        """Access to its repo."""
        return Access(is_private=self.is_private, gated=self.gated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to measure on.

    Attributes:
        name: What the person called it, without folders: `heldout.txt`, or a dataset's name.
        documents: Gives a fresh pass over the documents; their texts are well-formed, see
            `core.texts.well_formed`.
        source_sha256: Hash of the file and the name of its column; empty for a dataset, whose
            name alone says which text it is.
    """

    name: str
    documents: Callable[[], Iterator[Document]]
    source_sha256: str = ""


class ModelHub(Protocol):
    """Where models come from."""

    def fetch(
        self,
        model: str,
        *,
        revision: str | None = None,
        allow_quantized: bool = False,
        progress: Progress | None = None,
    ) -> ModelSource:
        """The whole model in a local folder; downloads what is missing.

        Raises:
            ModelNotFoundError, UnsupportedModelError, HubUnavailableError, StorageFullError.
        """
        ...

    def fetch_headers(
        self, model: str, *, revision: str | None = None, allow_quantized: bool = False
    ) -> ModelSource:
        """The model with real headers and no weights: its safetensors files are sparse."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """A finished repo on the Hub.

    Attributes:
        repo_id: Its name of today.
        commit_sha: The commit that holds the model.
        url: Its page.
        is_new: Whether publishing made that commit; False when all was there already.
    """

    repo_id: str
    commit_sha: str
    url: str
    is_new: bool


class ModelPublisher(Protocol):
    """Where finished models go; a reader finds a whole model there, or none."""

    def check(self, repo_id: str, *, origin: Origin, access: Access) -> None:
        """Refuse before any work when a quant of `origin` could not be published there.

        Raises:
            DestinationError: No token, no permission, the repo holds something else, or more
                people may read it than `access` says.
        """
        ...

    def published(self, repo_id: str) -> tuple[PublishedModel, str] | None:
        """What dynquant published there, and its `dynquant/plan.json`; None if nothing."""
        ...

    def publish(
        self,
        folder: Path,
        repo_id: str,
        *,
        origin: Origin,
        title: str,
        access: Access,
        progress: Progress,
    ) -> PublishedModel:
        """Make the repo hold exactly the files of `folder`, in one commit.

        Raises:
            DestinationError: See `check`.
            VerificationError: The Hub does not hold what was sent.
            HubQuotaError, HubUnavailableError: Nothing was published.
        """
        ...


class TextReader(Protocol):
    """Where texts come from."""

    def open(self, source: str) -> Text:
        """The text that `source` names: a local file or a Hub dataset.

        Raises:
            TextError: No such file or dataset, not UTF-8, or no text in it.
        """
        ...


class Progress(Protocol):
    """Shows how far a long step is."""

    def track(self, steps: Mapping[str, int]) -> AbstractContextManager[OnStep]:
        """A context in which `steps` (name → number of parts) are done.

        Its value is called with a step's name whenever a part of that step is done.
        """
        ...


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


W = TypeVar("W", bound=Windows)


class Quantizer(Protocol[W]):
    """One open model, and what can be done with it; see `mlx_backend.quantizer`."""

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


class OutputStore(Protocol):
    """Where finished folders go; a folder is there whole or not at all."""

    def check(self, names: Sequence[str], *, source: str = "") -> None:
        """Refuse before any work when one of the folders could not be made.

        Args:
            names: Of the folders.
            source: What they will be made of; empty while nobody knows.

        Raises:
            OutputFolderError: Something that is not ours, or is made of another model, is in the
                way.
        """
        ...

    def staged(self, names: Sequence[str]) -> AbstractContextManager[Mapping[str, Path]]:
        """Name → a folder to fill; on leaving without an error they take their final names."""
        ...

    def write_text(self, folder: Path, name: str, content: str) -> None:
        """Write a file into a staged folder."""
        ...

    def read_text(self, folder: Path, name: str) -> str | None:
        """Contents of a file of a folder; None if there is no such file."""
        ...

    def final(self, name: str) -> Path:
        """Where the finished folder is."""
        ...
