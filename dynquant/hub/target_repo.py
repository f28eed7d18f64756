"""A repo that a model is to be published to, at one commit, and why dynquant refuses some repos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import ModelInfo

from dynquant.errors import DestinationError, Reason, VerificationError
from dynquant.hub.listing import access_in
from dynquant.hub.local_files import LocalFile
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.report.finished_files import PLAN

__all__ = ["TargetRepo"]

_WRITTEN_BY_HUB = ".gitattributes"
"""The Hub writes it into every new repo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRepo:
    """A repo at its head, or at a commit.

    Attributes:
        repo_id: Its current name.
        head: The commit.
        oids: File name → sha256 if it is stored as LFS, else git's sha1.
        sizes: File name → bytes.
        access: Its visibility and gate.
    """

    repo_id: str
    head: str
    oids: Mapping[str, str]
    sizes: Mapping[str, int]
    access: Access

    @classmethod
    def of(cls, info: ModelInfo) -> TargetRepo:
        """The repo in an answer of the Hub to a request with `files_metadata=True`."""
        siblings = info.siblings or []
        return cls(
            repo_id=info.id,
            head=info.sha or "",
            oids={
                each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id or ""
                for each in siblings
            },
            sizes={each.rfilename: each.size or 0 for each in siblings},
            access=access_in(info),
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was uploaded to it."""
        return not set(self.oids) - {_WRITTEN_BY_HUB}

    def has(self, name: str, file: LocalFile) -> bool:
        """Whether it holds `name` with the content of `file`."""
        is_sized = self.sizes.get(name) == file.num_bytes  # cheaper than hashing
        return is_sized and file.is_called(self.oids[name])

    def names_to_delete(self, files: Mapping[str, LocalFile]) -> list[str]:
        """Names of its files that are not among `files`, sorted."""
        return sorted(set(self.oids) - set(files) - {_WRITTEN_BY_HUB})

    def require_not_moved(self, repo_id: str) -> None:
        """Refuse a repo that was moved from `repo_id` to another namespace.

        The Hub redirects to it, and the token may be able to write there; the requester has not
        named that namespace as a destination.

        Raises:
            DestinationError: It was moved.
        """
        if self.repo_id.partition("/")[0].lower() != repo_id.partition("/")[0].lower():
            raise DestinationError(
                f"'{repo_id}' was moved to '{self.repo_id}', which is not where this quant is to "
                "be published. Publish under another name, or name that namespace as the "
                "destination.",
                reason=Reason.DESTINATION_TAKEN,
            )

    def require_plan(self) -> None:
        """Refuse a repo that dynquant did not publish.

        Raises:
            DestinationError: It has no plan.
        """
        if PLAN not in self.oids:
            raise DestinationError(
                f"'{self.repo_id}' holds files that dynquant did not publish, and dynquant "
                "overwrites only its own. Publish under another name, or delete that repo first.",
                reason=Reason.DESTINATION_TAKEN,
            )

    def require_origin(self, theirs: Origin | None, origin: Origin) -> None:
        """Refuse a repo whose quant was made from another model than `origin`.

        Args:
            theirs: The original that the repo's plan names.
            origin: The original of the quant to publish.

        Raises:
            DestinationError: They are different models.
        """
        if theirs is not None and theirs.is_same_as(origin):
            return
        named = theirs.name if theirs is not None else "a model that its plan does not name"
        what = (
            f"of an earlier model that was called '{origin.name}'"
            if named == origin.name
            else f"of {named!r:.200}, not of '{origin.name}'"
        )
        raise DestinationError(
            f"'{self.repo_id}' holds a quant {what}. Publish under another name, or delete that "
            "repo first.",
            reason=Reason.DESTINATION_TAKEN,
        )

    def require_no_more_open(self, access: Access) -> None:
        """Refuse a repo with files that more people may read than `access` allows.

        Its owner made it open and has to close it; an empty repo is closed by `HubPublisher`.

        Raises:
            DestinationError: It is more open.
        """
        if self.access.is_more_open_than(access) and not self.is_empty:
            raise self.too_open(access)

    def too_open(self, access: Access) -> DestinationError:
        """The refusal of a repo that is more open than `access`."""
        return DestinationError(
            f"'{self.repo_id}' is {self.access}, and this quant has to be {access}, as its source "
            "is or as was asked for. Make that repo as closed in its settings on the Hub, or "
            "publish under another name.",
            reason=Reason.DESTINATION_TOO_OPEN,
        )

    def require_whole(self, files: Mapping[str, LocalFile]) -> None:
        """Compare names, sizes and hashes of the Hub with those of the local files.

        Raises:
            VerificationError: They differ.
        """
        wrong = [name for name, file in files.items() if not self.has(name, file)]
        if wrong or self.names_to_delete(files):
            raise VerificationError(
                f"'{self.repo_id}' does not hold what was published"
                + (f": '{wrong[0]}' differs" if wrong else ": it has other files too")
                + ". Somebody else may be writing to it. Publish again."
            )
