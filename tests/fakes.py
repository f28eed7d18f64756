"""Hand-written stand-ins for the ports: no MLX, no Hub, and a log of what was asked in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynquant.errors import HubUnavailableError, OutputFolderError, TextError
from dynquant.jobs.job import PublishedRepo
from dynquant.model.source import ModelSource
from dynquant.progress import OnStep
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.plan import CostTable, LayerProfile, ModelInventory, QuantPlan, TextFacts
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import Effort
from dynquant.quant.verified import Verified
from dynquant.texts.documents import Text
from dynquant.texts.images import ImagePrompt, ImagePrompts
from tests.report.factories import make_inventory, make_layer

__all__ = [
    "FakeOutputs",
    "FakeProgress",
    "FakeQuantizer",
    "FakeRepos",
    "FakeWindows",
    "make_images",
    "make_quality",
    "make_source",
    "make_text",
    "seen_images",
]


def make_source(**overrides: Any) -> ModelSource:
    fields: dict[str, Any] = {
        "name": "org/Model",
        "folder": Path("model"),
        "is_repo": True,
        "revision_sha": "c0ffee",
        "license_fields": {"license": "mit"},
    }
    return ModelSource(**fields | overrides)


def make_text(name: str = "text.txt", content: str = "") -> Text:
    """A text that is its name, unless it is another."""
    return Text(name=name, documents=lambda: iter([content or name]))


def make_quality(**overrides: Any) -> Quality:
    fields: dict[str, Any] = {
        "perplexity": 10.0,
        "perplexity_se": 0.5,
        "mean_kl_nats": 0.01,
        "mean_kl_se_nats": 0.001,
        "median_kl_nats": 0.005,
        "p99_kl_nats": 0.1,
        "p999_kl_nats": 0.2,
        "top1_agreement": 0.9,
        "num_tokens": 510,
        "num_windows": 2,
    }
    return Quality(**fields | overrides)


def make_images(name: str = "photos", num_images: int = 4) -> ImagePrompts:
    """Images that do not open, for parts that only pass them on."""
    return ImagePrompts(
        name=name,
        prompts=tuple(
            ImagePrompt(name=f"{i}.png", content=f"{name} {i}".encode(), question="What?")
            for i in range(num_images)
        ),
    )


def seen_images(num_images: int) -> dict[str, Any]:
    """Figures on images."""
    return {
        "image_mean_kl_nats": 0.02,
        "image_mean_kl_se_nats": 0.003,
        "num_images": num_images,
        "num_image_positions": 20 * num_images,
    }


@dataclass(frozen=True)
class FakeWindows:
    """Windows of a text; what they are compared by is the text itself."""

    facts: TextFacts
    images: ImagePrompts | None = None

    def check_disjoint(self, calibration: FakeWindows) -> None:
        if self.facts.sha256 == calibration.facts.sha256:
            raise TextError("The same text.")

    def to_json(self) -> dict[str, Any]:
        return {"facts": asdict(self.facts)}


@dataclass
class FakeQuantizer:
    """A model whose costs halve with every bit; `log` tells what was asked of it.

    Attributes:
        layers: Its layers.
        log: Names of the steps in order.
        fails: Step → the error that it ends in.
    """

    layers: tuple[LayerProfile, ...] = field(
        default_factory=lambda: tuple(
            make_layer(path=f"layers.{i}", shape=(128, 128)) for i in range(6)
        )
    )
    log: list[str] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)
    revision_sha: str = "c0ffee"
    num_blocks: int = 6
    versions: Mapping[str, str] = field(default_factory=lambda: {"mlx": "0"})
    notes: Sequence[str] = ()
    stored_as: str = ""
    context_limit: int | None = None
    encoded: dict[Path, QuantPlan] = field(default_factory=dict)
    importance: Mapping[str, Any] | None = None
    uniform: Mapping[str, QuantPlan] = field(default_factory=dict)

    def inventory(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        layers = []
        for layer in self.layers:
            formats = tuple(fmt for fmt in menu if fmt.fits(layer.shape))
            layers.append(dataclasses.replace(layer, formats=formats or (UNQUANTIZED,)))
        return make_inventory(layers)

    def check_tokenizer(self) -> None:
        self._step("check_tokenizer")

    def windows_from_json(self, raw: Any, images: ImagePrompts | None = None) -> FakeWindows:
        return FakeWindows(facts=TextFacts(**raw["facts"]), images=images)

    def require_tower(self) -> None:
        self._step("require_tower")

    def check_source(self, windows: FakeWindows) -> None:
        self._step("check_source")

    def store_as(self, dtype: str) -> None:
        self.stored_as = dtype

    def cache_bytes(self, context_tokens: int, *, kv_bits: int = 16) -> int:
        return 10 * context_tokens * kv_bits // 16

    def read_shares(self) -> dict[str, float]:
        return {layer.path: 1.0 for layer in self.layers}

    def conversion_bytes(self, num_tokens: int, *, num_fitting_tokens: int = 0) -> int:
        return 7 * num_tokens

    def calibration_windows(
        self,
        text: Text,
        num_tokens: int,
        images: ImagePrompts | None = None,
        *,
        num_fitting_tokens: int = 0,
    ) -> FakeWindows:
        return self._windows("calibration_windows", text, num_tokens, images)

    def evaluation_windows(
        self, text: Text, num_tokens: int, images: ImagePrompts | None = None
    ) -> FakeWindows:
        return self._windows("evaluation_windows", text, num_tokens, images)

    def measure(
        self,
        windows: FakeWindows,
        *,
        menu: Sequence[QuantFormat],
        encoder: str,
        effort: Effort,
        seed: int,
        on_step: OnStep,
    ) -> CostTable:
        self._step("measure")
        on_step("measure")
        on_step("probe")
        inventory = self.inventory(menu)
        layers = tuple(
            dataclasses.replace(
                layer,
                costs_nats=tuple(
                    0.0 if fmt == UNQUANTIZED else (i + 1) * 2.0**-fmt.bits for fmt in layer.formats
                ),
            )
            for i, layer in enumerate(inventory.layers)
        )
        return CostTable(
            inventory=dataclasses.replace(inventory, layers=layers),
            method="fisher",
            encoder=encoder,
            effort=effort.name,
            calibration=windows.facts,
            calibration_images=None if windows.images is None else windows.images.facts,
            seed=seed,
            source="org/Model",
            source_sha=self.revision_sha,
            scales={"up_proj:4": 1.25},
            importance={"layers.0": (("cm93cw==", "Y29scw=="),)},
            versions=self.versions,
        )

    def polish(
        self,
        table: CostTable,
        plans: Mapping[float, QuantPlan],
        windows: FakeWindows,
        *,
        effort: Effort,
        keep_going: Callable[[], bool],
        on_step: OnStep,
    ) -> dict[float, QuantPlan]:
        self._step("polish")
        if keep_going():
            on_step("polish")
        return dict(plans)

    def reconstruct(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: FakeWindows,
        *,
        effort: Effort,
        on_step: OnStep,
    ) -> None:
        self._step("reconstruct")
        on_step("reconstruct")

    def distil(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: FakeWindows,
        *,
        effort: Effort,
        keep_going: Callable[[], bool],
        on_step: OnStep,
    ) -> None:
        self._step("distil")
        if keep_going():
            on_step("distil")

    def align(
        self, windows: FakeWindows, *, low: QuantFormat, high: QuantFormat, on_step: OnStep
    ) -> dict[str, float]:
        self._step("align")
        on_step("align")
        return {
            layer.path: float(i)
            for i, layer in enumerate(self.layers)
            if low.fits(layer.shape) and high.fits(layer.shape)
        }

    def encode(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: FakeWindows,
        *,
        encoder: str,
        effort: Effort,
        importance: Mapping[str, tuple[tuple[str, str], ...]],
        on_step: OnStep,
    ) -> dict[Path, int]:
        self._step("encode")
        on_step("encode")
        self.encoded, self.importance = dict(plans), importance
        sizes = self.inventory(()).num_parameters
        return {folder: round(plan.stored_bpw * sizes / 8) for folder, plan in plans.items()}

    def verify(
        self, folder: Path, plan: QuantPlan, windows: FakeWindows, *, effort: Effort
    ) -> Verified:
        self._step("verify")
        return Verified(f"The text of {folder.name}")

    def evaluate(
        self,
        folders: Mapping[str, Path],
        uniform: Mapping[str, QuantPlan],
        windows: FakeWindows,
        *,
        on_step: OnStep,
    ) -> tuple[Quality, dict[str, Quality]]:
        self._step("evaluate")
        on_step("evaluate")
        self.uniform = dict(uniform)
        seen = {} if windows.images is None else seen_images(len(windows.images.prompts))
        original = make_quality(mean_kl_nats=0.0, top1_agreement=1.0, **seen)
        return original, {name: make_quality(**seen) for name in (*folders, *uniform)}

    def _windows(
        self, step: str, text: Text, num_tokens: int, images: ImagePrompts | None
    ) -> FakeWindows:
        self._step(step)
        facts = TextFacts(
            name=text.name,
            sha256="".join(map(str, text.documents())),
            num_tokens=num_tokens,
            window_tokens=256,
        )
        return FakeWindows(facts, images)

    def _step(self, name: str) -> None:
        self.log.append(name)
        if name in self.fails:
            raise self.fails[name]


@dataclass
class FakeProgress:
    """Remembers which steps were announced, with their parts, and which parts were done."""

    announced: list[dict[str, int]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:
        self.announced.append(dict(steps))

        def on_step(step: str, amount: int = 1) -> None:
            self.done.append(step)

        yield on_step


@dataclass
class FakeOutputs:
    """Folders in memory: what was staged becomes final only when the context ends well.

    Attributes:
        log: Shared with the quantizer, so that a test sees the order of both.
        foreign: Names that are taken by something else.
        finished: Name → file → content.
    """

    log: list[str] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    finished: dict[str, dict[str, str]] = field(default_factory=dict)
    _open: dict[Path, dict[str, str]] = field(default_factory=dict)

    def check(self, names: Sequence[str], *, source: str = "") -> None:
        self.log.append("check")
        if taken := self.foreign & set(names):
            raise OutputFolderError(f"'{taken.pop()}' is not ours.")

    @contextmanager
    def staged(self, names: Sequence[str]) -> Iterator[Mapping[str, Path]]:
        self.log.append("stage")
        folders = {name: Path("staged") / name for name in names}
        self._open = {folder: {} for folder in folders.values()}
        try:
            yield folders
            self.finished |= {name: self._open[folder] for name, folder in folders.items()}
            self.log.append("finish")
        finally:
            self._open = {}

    def write_text(self, folder: Path, name: str, content: str) -> None:
        self.log.append(f"write {name}")
        self._open[folder][name] = content

    def read_text(self, folder: Path, name: str) -> str | None:
        return self.finished[folder.name].get(name)

    def final(self, name: str) -> Path:
        return Path("final") / name


@dataclass
class FakeRepos:
    """The Hub as far as published repos go; implements `job_ports.PublishedRepos`."""

    deleted: set[str] = field(default_factory=set)
    is_down: bool = False
    num_asked: int = 0

    def are_there(self, repos: Sequence[PublishedRepo]) -> bool:
        self.num_asked += 1
        if self.is_down:
            raise HubUnavailableError("The Hub does not answer.")
        return not self.deleted & {each.repo_id for each in repos}
