"""The ordered steps of one job: measure → allocate → encode → verify → evaluate → card → publish.

Before them `runner.open_model` resolves and downloads; `steps.py` holds the steps themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dynquant.core.access import Access
from dynquant.core.allocate import check_target
from dynquant.core.artefacts import (
    check_measured_for,
    matched_table,
    requested,
    same_request,
)
from dynquant.core.facts import ModelFacts
from dynquant.core.formats import DEFAULT_MENU
from dynquant.core.naming import quantized_name, repo_ids
from dynquant.core.origin import Origin
from dynquant.core.papers import CARD, card, is_own_card, papers
from dynquant.core.plan import CostTable
from dynquant.core.planning import Forecast, fitting_bpw, memory_to_run_bytes
from dynquant.core.recipe import Alignment, Recipe
from dynquant.errors import DynquantError
from dynquant.ports import (
    ModelPublisher,
    ModelSource,
    OutputStore,
    Progress,
    PublishedModel,
    Quantizer,
    Text,
    W,
)
from dynquant.steps import Conversion, check_source, measure_costs

__all__ = [
    "Alignment",
    "QuantizedModel",
    "Recipe",
    "already_published",
    "check",
    "destinations",
    "forecast",
    "measure",
    "publish",
    "quant_access",
    "quantize",
]


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A finished folder: its facts, where it is, and what it wrote when it was tried."""

    facts: ModelFacts
    folder: Path
    sample: str


def forecast(
    source: ModelSource,
    quantizer: Quantizer[W],
    recipe: Recipe,
    *,
    fit_memory_bytes: int | None = None,
) -> list[Forecast]:
    """What each target gives and takes, from config and headers alone.

    Args:
        source: Where the model came from; its folder may hold headers only.
        quantizer: The open model.
        recipe: The targets; ignored when `fit_memory_bytes` is given.
        fit_memory_bytes: Take the largest BPW that runs on a Mac with this much memory.

    Raises:
        InfeasibleTargetError: A target lies outside the feasible range.
    """
    inventory = quantizer.inventory(recipe.menu)
    full = quantizer.inventory(DEFAULT_MENU)
    cache_bytes = quantizer.cache_bytes(recipe.context_tokens)
    targets = recipe.targets_bpw
    if fit_memory_bytes is not None:
        targets = (fitting_bpw(inventory, memory_bytes=fit_memory_bytes, cache_bytes=cache_bytes),)
    for target in targets:
        check_target(inventory, target)
    source_bytes = round(full.max_bpw * full.num_parameters / 8)
    sizes = {t: round(t * inventory.num_parameters / 8) for t in targets}
    return [
        Forecast(
            model=source.name,
            model_type=inventory.model_type,
            num_parameters=inventory.num_parameters,
            source_bytes=source_bytes,
            min_bpw=inventory.min_bpw,
            max_bpw=inventory.max_bpw,
            target_bpw=target,
            size_bytes=size_bytes,
            context_tokens=recipe.context_tokens,
            memory_bytes=memory_to_run_bytes(size_bytes, cache_bytes),
            conversion_memory_bytes=quantizer.conversion_bytes(recipe.calibration_tokens),
            conversion_disk_bytes=source_bytes + size_bytes,
            notes=tuple(filter(None, (*quantizer.notes, inventory.why_unquantized.strip()))),
        )
        for target, size_bytes in sizes.items()
    ]


def check(
    source: ModelSource,
    quantizer: Quantizer[W],
    recipe: Recipe,
    *,
    outputs: OutputStore,
    table: CostTable | None = None,
) -> list[Forecast]:
    """Refuse what cannot work before a download or a measurement; what each target takes.

    Args:
        source: Where the model came from; its folder may hold headers only.
        quantizer: The open model.
        recipe: How.
        outputs: Where the folders are to go.
        table: A cost table of an earlier measurement of the same model.

    Raises:
        RequestError: The request cannot work.
    """
    job = Conversion(source, quantizer, recipe)
    outputs.check(list(job.targets), source=source.name)
    if table is not None:
        matched_table(table, quantizer.inventory(recipe.menu), quantizer.revision_sha)
        check_measured_for(table, recipe)
    return forecast(source, quantizer, recipe)


def measure(
    quantizer: Quantizer[W], text: Text, recipe: Recipe, *, progress: Progress
) -> CostTable:
    """What every format of every layer costs; one artefact for every target.

    Raises:
        TextError: The calibration text is too short.
        InvalidModelError, UnsupportedModelError: See `Quantizer.check_tokenizer`.
        NonFiniteError: NaN or infinity; names the layer.
    """
    windows = quantizer.calibration_windows(text, recipe.calibration_tokens)
    quantizer.check_tokenizer()
    check_source(quantizer, windows, progress)
    return measure_costs(quantizer, windows, recipe, progress)


def quantize(
    source: ModelSource,
    quantizer: Quantizer[W],
    recipe: Recipe,
    *,
    calibration: Text,
    evaluation: Text,
    outputs: OutputStore,
    progress: Progress,
    table: CostTable | None = None,
    on_sensitivities: Callable[[Mapping[str, float]], None] = lambda _found: None,
) -> list[QuantizedModel]:
    """Quantize one model to every target of the recipe: a finished folder each, or none.

    Args:
        source: Where the model came from.
        quantizer: The open model.
        recipe: How.
        calibration: Text to measure and encode with.
        evaluation: Held-out text for the figures.
        outputs: Where the folders go.
        progress: Shows the steps.
        table: A cost table of an earlier measurement of the same model.
        on_sensitivities: Gets what the alignment method measured.

    Raises:
        RequestError: The request cannot work; nothing was written.
        StorageFullError: The disk filled up; nothing was kept.
        NeverPublishError: A figure is not finite or the result is not what was planned.
    """
    job = Conversion(source, quantizer, recipe)
    outputs.check(list(job.targets), source=source.name)
    job.read(calibration=calibration, evaluation=evaluation)
    known = job.reuse(table) if table and recipe.alignment is None else None
    job.check(progress)
    if recipe.alignment is None:
        table = job.polish(known or job.measure(progress), progress)
        plans = job.allocate(table)
    else:
        table = None
        sensitivities = job.align(progress)
        on_sensitivities(sensitivities)
        plans = job.allocate(None, sensitivities)

    with outputs.staged(list(plans)) as folders:
        job.encode(plans, table, folders, progress)
        samples = job.verify(plans, folders, progress)
        figures = job.evaluate(plans, folders, progress)
        finished = job.facts(plans, table, figures)
        for facts in finished:
            for name, content in papers(facts, table).items():
                outputs.write_text(folders[facts.name], name, content)
    return [
        QuantizedModel(facts=facts, folder=outputs.final(facts.name), sample=samples[facts.name])
        for facts in finished
    ]


def destinations(
    source: ModelSource,
    recipe: Recipe,
    destination: str,
    publisher: ModelPublisher,
    *,
    private: bool | None,
    variant: str = "",
) -> dict[str, str]:
    """Name of each target → the repo to publish it as; each was looked at.

    Args:
        source: The original.
        recipe: The targets.
        destination: A namespace or a repo id, see `core.naming.repo_ids`.
        publisher: The Hub.
        private: See `quant_access`.
        variant: See `core.naming.repo_ids`.

    Raises:
        InvalidOptionError: `destination` makes no repo ids.
        DestinationError: A repo is not ours to write, or more open than the quant has to be.
    """
    name = source.name
    ids = repo_ids(
        destination,
        {quantized_name(name, bpw): (name, bpw) for bpw in recipe.targets_bpw},
        variant=variant,
    )
    access = quant_access(source.access, private=private)
    for repo_id in ids.values():
        publisher.check(repo_id, origin=source.origin, access=access)
    return ids


def quant_access(source: Access, *, private: bool | None) -> Access:
    """Who may read a quant.

    Args:
        source: Who may read its source.
        private: Whether the quant is private; None is private where the source is.
    """
    return Access(is_private=source.is_private if private is None else private, gated=source.gated)


def already_published(
    source: ModelSource,
    recipe: Recipe,
    repo_ids: Mapping[str, str],
    publisher: ModelPublisher,
    *,
    calibration: Text,
    evaluation: Text,
) -> list[PublishedModel] | None:
    """The repos, if each holds what this recipe would make of this commit; else None."""
    found = []
    for target in recipe.targets_bpw:
        there = publisher.published(repo_ids[quantized_name(source.name, target)])
        if there is None:
            return None
        model, plan = there
        asked = requested(
            source=source.name,
            revision_sha=source.revision_sha,
            target_bpw=target,
            recipe=recipe,
            calibration=_known_by(calibration),
            evaluation=_known_by(evaluation),
        )
        if not same_request(plan, asked):
            return None
        found.append(model)
    return found


def _known_by(text: Text) -> dict[str, str]:
    """By what a finished model tells whether it was made with `text`: a file by its content."""
    return {"source_sha256": text.source_sha256} if text.source_sha256 else {"name": text.name}


def publish(
    models: Mapping[Path, ModelFacts],
    repo_ids: Mapping[str, str],
    publisher: ModelPublisher,
    *,
    outputs: OutputStore,
    private: bool | None,
    access_now: Callable[[Origin], Access],
    progress: Progress,
) -> list[PublishedModel]:
    """Publish finished folders, each under its repo id, their cards linked with each other.

    Nothing is sent before every destination was looked at. A card that a person has edited
    stays as it is.

    Args:
        models: Folder → what is in it.
        repo_ids: Name of a model → repo id.
        publisher: The Hub.
        outputs: Reads and writes the cards.
        private: See `quant_access`.
        access_now: Tells who may read a repo now: a source may have been closed since it was
            quantized.
        progress: Shows the bytes.

    Raises:
        DestinationError: A repo is not ours to write.
        VerificationError: The Hub does not hold what was sent.
        CardError: The Hub does not take the metadata of a card.
        HubUnavailableError, HubQuotaError: The rest was not published.

        Each knows what was `published` before it.
    """
    sources = {facts.origin for facts in models.values() if facts.source_is_repo}
    now = {origin: access_now(origin) for origin in sources}
    access = {}
    for facts in models.values():
        source = facts.source_access
        if facts.origin in now:
            source = source.closed_like(now[facts.origin])
        access[facts.name] = quant_access(source, private=private)
        publisher.check(repo_ids[facts.name], origin=facts.origin, access=access[facts.name])
    published: list[PublishedModel] = []
    for folder, facts in models.items():
        repo_id = repo_ids[facts.name]
        if is_own_card(outputs.read_text(folder, CARD) or ""):  # perhaps for another repo
            linked = card(facts, repo_id=repo_id, repo_of=repo_ids)
            outputs.write_text(folder, CARD, linked)
        try:
            model = publisher.publish(
                folder,
                repo_id,
                origin=facts.origin,
                title=f"{facts.name} of {facts.source}@{facts.revision_sha[:12]}",
                access=access[facts.name],
                progress=progress,
            )
        except DynquantError as error:
            error.published = tuple((each.repo_id, each.commit_sha) for each in published)
            raise
        published.append(model)
    return published
