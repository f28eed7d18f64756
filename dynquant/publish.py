"""Publish finished models: destination, access, and whether a model is published already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dynquant.errors import DynquantError
from dynquant.in_process import OutputStore
from dynquant.model.access import Access
from dynquant.model.naming import quantized_name, repo_ids
from dynquant.model.origin import Origin
from dynquant.model.source import ModelSource
from dynquant.progress import Progress
from dynquant.quant.recipe import Recipe
from dynquant.report.artefacts import requested, same_request
from dynquant.report.facts import ModelFacts
from dynquant.report.finished_files import CARD, card, is_own_card
from dynquant.texts.documents import Text
from dynquant.texts.images import ImagePrompts

__all__ = [
    "ModelPublisher",
    "PublishedModel",
    "already_published",
    "destinations",
    "publish",
    "quant_access",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """A finished repo on the Hub.

    Attributes:
        repo_id: Its current name.
        commit_sha: The commit that holds the model.
        url: Its page.
        is_new: Whether publishing made that commit; False for a model that was published before.
    """

    repo_id: str
    commit_sha: str
    url: str
    is_new: bool


class ModelPublisher(Protocol):
    """Publishes finished models; readers never see an incomplete model."""

    @property
    def hub_url(self) -> str:
        """Address of the Hub."""
        ...

    def check(self, repo_id: str, *, origin: Origin, access: Access) -> None:
        """Refuse before any work when a quant of `origin` could not be published there.

        Raises:
            DestinationError: No token, no permission, the repo holds something else, or more
                people may read it than `access` says.
        """
        ...

    def published(self, repo_id: str) -> tuple[PublishedModel, str] | None:
        """The model of dynquant in the repo, and its `dynquant/plan.json`; None without it."""
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
            VerificationError: The files on the Hub differ from those sent.
            HubQuotaError, HubUnavailableError: Nothing was published.
        """
        ...


def destinations(
    source: ModelSource,
    recipe: Recipe,
    destination: str,
    publisher: ModelPublisher,
    *,
    private: bool | None,
    variant: str = "",
) -> dict[str, str]:
    """Name of each target → the repo to publish it as; every repo was checked.

    Args:
        source: The original.
        recipe: The targets.
        destination: A namespace or a repo id, see `model.naming.repo_ids`.
        publisher: The Hub.
        private: See `quant_access`.
        variant: See `model.naming.repo_ids`.

    Raises:
        InvalidOptionError: `destination` makes invalid repo ids.
        DestinationError: A repo may not be written, or is more open than the quant may be.
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
    """Access to a quant.

    Args:
        source: Access to its source.
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
    calibration_images: ImagePrompts | None = None,
    evaluation_images: ImagePrompts | None = None,
) -> list[PublishedModel] | None:
    """The repos, if each has the quant of this commit by this recipe; else None."""
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
            calibration_images=_images_known_by(calibration_images),
            evaluation_images=_images_known_by(evaluation_images),
        )
        if not same_request(plan, asked):
            return None
        found.append(model)
    return found


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

    Every destination is checked before the first upload. A card that a person has edited is kept.

    Args:
        models: Folder → facts of its model.
        repo_ids: Name of a model → repo id.
        publisher: The Hub.
        outputs: Reads and writes the cards.
        private: See `quant_access`.
        access_now: The current access to a repo: the source may have been closed since it was
            quantized.
        progress: Shows the bytes.

    Raises:
        DestinationError: A repo may not be written.
        VerificationError: The files on the Hub differ from those sent.
        CardError: The Hub refuses the metadata of a card.
        HubUnavailableError, HubQuotaError: The rest was not published.

        Each has the models that were `published` before it.
    """
    access = _access_of_each(models.values(), access_now, private=private)
    for facts in models.values():
        publisher.check(repo_ids[facts.name], origin=facts.origin, access=access[facts.name])
    published: list[PublishedModel] = []
    for folder, facts in models.items():
        repo_id = repo_ids[facts.name]
        if is_own_card(outputs.read_text(folder, CARD) or ""):  # perhaps for another repo
            linked = card(facts, repo_id=repo_id, repo_of=repo_ids, hub_url=publisher.hub_url)
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


def _access_of_each(
    models: Collection[ModelFacts], access_now: Callable[[Origin], Access], *, private: bool | None
) -> dict[str, Access]:
    """Name of a model → access to its quant: as closed as its source was, or is now."""
    sources = {facts.origin for facts in models if facts.source_is_repo}
    now = {origin: access_now(origin) for origin in sources}
    access = {}
    for facts in models:
        source = facts.source_access
        if facts.origin in now:
            source = source.closed_like(now[facts.origin])
        access[facts.name] = quant_access(source, private=private)
    return access


def _known_by(text: Text) -> dict[str, str]:
    """The fields that identify `text` in a plan: the hash of a file, the name of a dataset."""
    return {"source_sha256": text.source_sha256} if text.source_sha256 else {"name": text.name}


def _images_known_by(images: ImagePrompts | None) -> dict[str, str] | None:
    return None if images is None else {"sha256": images.facts.sha256}
