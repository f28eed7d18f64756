"""The steps of a durable job: each makes again what it lacks, so any machine can go on.

What a step returns is small, is kept by the engine, and comes back in `results`. What is large
lies in the job's folder under the runner's home and in the model cache; a step that does not
find it there, because another machine had the job before, makes it again, to the same bytes.

The child that computes is not trusted: its answers are checked (`answers.py`), and what it made is
copied to where no child may write before anything rests on it (`job_folder.py`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dynquant.errors import (
    InvalidOptionError,
    NotEnoughMemoryError,
    StorageFullError,
    disk_errors_translated,
)
from dynquant.hub.listing import Listing
from dynquant.hub.models import HubModels
from dynquant.hub.transfers import go_by_plain_http
from dynquant.jobs.job import JobRequest, PublishedRepo, StepProgress
from dynquant.jobs.job_text import results_to_text
from dynquant.logs import job_context
from dynquant.model.limits import MAX_HEADER_BYTES, MAX_SMALL_FILE_BYTES
from dynquant.model.naming import is_ours, quantized_name
from dynquant.model.source import ModelSource
from dynquant.progress import OnStep
from dynquant.publish import (
    ModelPublisher,
    PublishedModel,
    already_published,
    destinations,
    publish,
)
from dynquant.quant.recipe import Recipe, variant_of
from dynquant.report.artefacts import cost_table_from_json
from dynquant.report.finished_files import CARD, papers
from dynquant.report.numbers import size
from dynquant.report.outputs import OutputFolders, read_facts, write_file
from dynquant.runner.answers import Asked
from dynquant.runner.child_process import ChildCancelledError
from dynquant.runner.job_folder import MODELS, PAPERS, JobFolder, remove_folder
from dynquant.runner.spec import JobSpec, Limits, recipe_of, save_text
from dynquant.runner.worker_process import Worker
from dynquant.texts.corpus import DEFAULT_CALIBRATION, DEFAULT_EVALUATION, Corpus
from dynquant.texts.documents import Text

__all__ = ["JobSteps"]

_TABLE = "cost_table.json"

_TEXT_CHARS_PER_TOKEN = 400
"""Windows are spread over 32 times the tokens asked for; a token has some 4 to 12 characters."""

_TEXTS = {"calibration": DEFAULT_CALIBRATION, "evaluation": DEFAULT_EVALUATION}
"""Role of a text, which is also the name of its option, → its default."""


_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One step of one job that is to be done now."""

    job_id: str
    step: str
    request: JobRequest
    results: Mapping[str, str]
    folder: JobFolder
    report: Callable[[StepProgress], None]
    is_cancelled: Callable[[], bool]

    @property
    def recipe(self) -> Recipe:
        return recipe_of({"targets_bpw": self.request.targets_bpw, **self.request.options})

    @property
    def resolved(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.results["resolve"])
        return found

    @property
    def asked(self) -> Asked:
        return self.asked_of(self.resolved["source"], self.resolved["texts"])

    def asked_of(self, source: Mapping[str, Any], texts: Mapping[str, str]) -> Asked:
        """What the child's answers are held against."""
        recipe = self.recipe
        targets = {quantized_name(source["name"], bpw): bpw for bpw in recipe.targets_bpw}
        return Asked(source=source, recipe=recipe, texts=texts, targets=targets)


class JobSteps:
    """Does steps; a `dynquant.ports.StepRunner`.

    Args:
        home: The runner's folder; each job has a folder below `jobs` in it.
        publisher: Where finished models go.
        texts: Where texts come from; who asks may be a stranger.
        open_hub: Opens the Hub for one job; its models count as in use until it is closed.
        max_memory_bytes: What a child may take; a job that needs more is refused, not tried.
        limits: How long a child may take.
        free_bytes: Free space of the disk that holds a folder.
    """

    def __init__(
        self,
        *,
        home: Path,
        publisher: ModelPublisher,
        texts: Corpus,
        open_hub: Callable[[], HubModels],
        max_memory_bytes: int,
        limits: Limits = Limits(),
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._jobs = home / "jobs"
        self._publisher = publisher
        self._texts = texts
        self._open_hub = open_hub
        self._max_memory_bytes = max_memory_bytes
        self._limits = limits
        self._child = Worker(max_memory_bytes=max_memory_bytes, limits=limits)
        self._free_bytes = free_bytes
        self._open: dict[str, tuple[HubModels, ModelSource]] = {}
        go_by_plain_http()  # or a cancelled job would go on downloading

    def run(
        self,
        step: str,
        request: JobRequest,
        results: Mapping[str, str],
        *,
        job_id: str,
        report: Callable[[StepProgress], None],
        is_cancelled: Callable[[], bool],
    ) -> str:
        """Do `step`; returns what later steps need of it, as JSON.

        Raises:
            RequestError: The request cannot work.
            RetryLaterError: It may work later.
            NeverPublishError: The result is no good.
            ChildCancelledError: The job was cancelled.
        """
        call = _Call(
            job_id=job_id,
            step=step,
            request=request,
            results=results,
            folder=JobFolder(self._jobs / job_id),
            report=report,
            is_cancelled=is_cancelled,
        )
        with job_context(job_id, step), disk_errors_translated():
            call.folder.make()
            if step != "resolve" and call.resolved["published"] is not None:
                there = [PublishedModel(**each) for each in call.resolved["published"]]
                return _results(there) if step == "publish" else "null"
            found = getattr(self, f"_{step}")(call)
        return found if isinstance(found, str) else json.dumps(found)

    def local_jobs(self) -> Collection[str]:
        """Ids of the jobs that have a folder here."""
        return {each.name for each in self._jobs.iterdir()} if self._jobs.is_dir() else set()

    def release(self, job_id: str) -> None:
        """Free the disk of a job that is over, and let go of its model in the cache."""
        if (opened := self._open.pop(job_id, None)) is not None:
            opened[0].close()
        try:
            remove_folder(self._jobs / job_id)
        except OSError as error:
            _logger.warning("A job's folder could not be removed: %s", error.strerror)

    def _resolve(self, call: _Call) -> dict[str, Any]:
        request, recipe = call.request, call.recipe
        if not request.destination:
            raise InvalidOptionError("A job needs a destination: the namespace to publish to.")
        with self._open_hub() as hub:
            # Looked up at the Hub first: nobody may name a folder of this machine.
            found = hub.look_up(
                request.model, revision=request.revision, allow_quantized=call.recipe.dequantize
            )
            source = hub.fetch_headers(
                found.repo, revision=found.sha, allow_quantized=call.recipe.dequantize
            )
            ids = destinations(
                source,
                recipe,
                request.destination,
                self._publisher,
                private=_private(request),
                variant=_variant(call, hub, found),
            )
            texts = {role: self._open_text(call, role) for role in _TEXTS}
            names = {role: text.name for role, text in texts.items()}
            # The child reads a copy, so that its plan knows a text by its name alone.
            known = {role: replace(text, source_sha256="") for role, text in texts.items()}
            there = already_published(source, recipe, ids, self._publisher, **known)
            fields = {key: value for key, value in asdict(source).items() if key != "folder"}
            forecasts = []
            if there is None:
                self._write_spec(call, source, names)
                answer = self._compute(call, "resolve", source)
                forecasts = call.asked_of(fields, names).forecasts(answer)
                self._require_room(forecasts)
        return {
            "source": fields,
            "forecasts": forecasts,
            "repo_ids": ids,
            "texts": names,
            "published": None if there is None else [asdict(each) for each in there],
        }

    def _download(self, call: _Call) -> dict[str, Any]:
        source = self._require_model(call)
        return {"revision_sha": source.revision_sha}

    def _measure(self, call: _Call) -> str:
        source = self._require_model(call)
        table = call.folder.read(_TABLE)
        if table is None:
            self._compute(call, "measure", source)
            table = call.asked.cost_table(call.folder.left_by_child(_TABLE))
            call.folder.write(_TABLE, table)
        return table

    def _encode(self, call: _Call) -> list[str]:
        self._require_models(call)
        return sorted(call.asked.targets)

    def _verify(self, call: _Call) -> Any:
        source = self._require_models(call)
        return call.asked.samples(self._compute(call, "verify", source))

    def _evaluate(self, call: _Call) -> Any:
        source = self._require_models(call)
        return call.asked.figures(self._compute(call, "evaluate", source))

    def _card(self, call: _Call) -> list[str]:
        self._require_papers(call)
        return sorted(call.resolved["repo_ids"])

    def _publish(self, call: _Call) -> str:
        self._require_papers(call)
        ids: dict[str, str] = call.resolved["repo_ids"]
        models = {}
        for name in ids:
            folder = call.folder.models / name
            models[folder] = read_facts(folder)
        with self._open_hub() as hub:
            published = publish(
                models,
                ids,
                self._publisher,
                outputs=OutputFolders(call.folder.models),
                private=_private(call.request),
                access_now=hub.access_of,
                progress=_Reported(call),
            )
        return _results(published)

    def _require_model(self, call: _Call) -> ModelSource:
        """The model in the cache; the texts and the spec are in the job's folder then."""
        if call.job_id not in self._open:
            repo, sha = (call.resolved["source"][key] for key in ("name", "revision_sha"))
            dequantize = call.recipe.dequantize
            with ExitStack() as on_failure:
                hub = on_failure.enter_context(self._open_hub())
                # A file that an answer forgets would not be missed: two must agree on them.
                hub.look_up(repo, revision=sha, allow_quantized=dequantize)
                source = hub.fetch(
                    repo, revision=sha, allow_quantized=dequantize, progress=_Reported(call)
                )
                on_failure.pop_all()
            self._open[call.job_id] = hub, source
        source = self._open[call.job_id][1]
        for role in _TEXTS:
            name = f"{role}.jsonl"
            if not call.folder.has(name):
                num_tokens = getattr(call.recipe, f"{role}_tokens")
                max_chars = _TEXT_CHARS_PER_TOKEN * num_tokens
                with call.folder.written(name) as stream:
                    save_text(self._open_text(call, role), stream, max_chars=max_chars)
        self._write_spec(call, source, call.resolved["texts"])
        return source

    def _require_models(self, call: _Call) -> ModelSource:
        """The encoded models, from the cost table that was measured; returns the original."""
        source = self._require_model(call)
        folder = call.folder
        if not folder.has(_TABLE):
            folder.write(_TABLE, call.results["measure"])
        if not folder.has(MODELS):
            self._compute(call, "encode", source)
            sizes = [each["size_bytes"] for each in call.resolved["forecasts"]]

            def on_copied(_num_bytes: int) -> None:
                if call.is_cancelled():
                    raise ChildCancelledError

            folder.take_models(
                call.asked.targets,
                source=source.folder,
                max_bytes=sum(map(_most_bytes, sizes)),
                on_copied=on_copied,
            )
        return source

    def _require_papers(self, call: _Call) -> None:
        """The encoded models with their cards.

        What they say is worked out in the child, where the model can be opened, and they are
        written here.
        """
        source = self._require_models(call)
        folder, asked = call.folder, call.asked
        if all(folder.has(MODELS, name, CARD) for name in asked.targets):
            return
        folder.write("figures.json", call.results["evaluate"])
        self._compute(call, "card", source)
        table = cost_table_from_json(call.results["measure"], name=_TABLE)
        for name in asked.targets:
            said = [
                folder.left_by_child(PAPERS, name, each) for each in ("plan.json", "report.json")
            ]
            for paper, content in papers(asked.facts(name, *said), table).items():
                write_file(folder.models / name / paper, content)

    def _open_text(self, call: _Call, role: str) -> Text:
        return self._texts.open(str(call.request.options.get(role) or _TEXTS[role]))

    def _write_spec(self, call: _Call, source: ModelSource, texts: Mapping[str, str]) -> None:
        spec = JobSpec(
            source=source,
            recipe=call.recipe,
            max_reading_cpu_secs=self._limits.reading_cpu_secs,
            **texts,
        )
        call.folder.write("spec.json", spec.to_json())

    def _require_room(self, forecasts: Sequence[Mapping[str, Any]]) -> None:
        """Refuse before the download what this machine cannot hold."""
        need = max(each["conversion_memory_bytes"] for each in forecasts)
        if need > self._max_memory_bytes:
            raise NotEnoughMemoryError(
                f"Converting this model takes about {size(need)} of memory, and this runner may "
                f"use {size(self._max_memory_bytes)}.",
                needed_bytes=need,
            )
        targets = sum(each["size_bytes"] for each in forecasts)
        need = forecasts[0]["source_bytes"] + targets
        free = self._free_bytes(self._jobs)
        if need > free:
            raise StorageFullError(
                f"Converting this model takes about {size(need)} of disk, and this runner has "
                f"{size(free)} free. Free some space there, then retry the job."
            )

    def _compute(self, call: _Call, step: str, source: ModelSource) -> Any:
        """What the child process answers to `step`; nothing of it is checked yet."""

        def report(said: Mapping[str, Any]) -> None:
            call.report(
                StepProgress(
                    step=call.step,
                    fraction=said["fraction"],
                    eta_secs=said["eta_secs"],
                    layer=said["part"],
                )
            )

        return self._child.run(
            step,
            call.folder,
            model=source.folder,
            report=report,
            is_cancelled=call.is_cancelled,
        )


def _variant(call: _Call, hub: HubModels, found: Listing) -> str:
    """What sets a quant apart that a stranger asked for: it must not replace a better one.

    Raises:
        InvalidOptionError: The commit is perhaps not of the model's author.
    """
    request = call.request
    if is_ours(request.requester):
        return ""
    latest = hub.look_up(found.repo, allow_quantized=call.recipe.dequantize)
    if found.sha != latest.sha and not hub.is_in_history(found.sha, of=latest):
        raise InvalidOptionError(
            f"Commit {found.sha[:12]} of '{found.repo}' is not in the history of the main branch, "
            "as those of pull requests, which everybody may open. Ask for the latest commit, or "
            "have the operator of this runner ask for yours with 'dynquant submit'."
        )
    return variant_of(
        call.recipe,
        texts={role: str(request.options.get(role) or default) for role, default in _TEXTS.items()},
        default_texts=_TEXTS,
        revision_sha="" if found.is_same_model_as(latest) else found.sha,
    )


def _private(request: JobRequest) -> bool | None:
    """Whether what is made is private; None is private where the source is."""
    return request.private or (False if request.public else None)


def _most_bytes(size_bytes: int) -> int:
    """What the files of a model with so many bytes of weights may take."""
    return 2 * size_bytes + MAX_HEADER_BYTES + 5 * MAX_SMALL_FILE_BYTES


def _results(published: Sequence[PublishedModel]) -> str:
    return results_to_text(
        tuple(PublishedRepo(repo_id=each.repo_id, commit_sha=each.commit_sha) for each in published)
    )


class _Reported:
    """Progress in bytes, told as a step's own; implements `progress.Progress`."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:
        """Report how many of all bytes are there; a cancelled job ends here."""
        total = max(sum(steps.values()), 1)
        done = 0
        call = self._call

        def on_step(_step: str, amount: int = 1) -> None:
            nonlocal done
            if call.is_cancelled():
                raise ChildCancelledError
            done += amount
            call.report(
                StepProgress(step=call.step, fraction=min(done / total, 1.0), num_bytes=done)
            )

        yield on_step
