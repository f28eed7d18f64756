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

from dynquant.convert import NEEDS, Step
from dynquant.errors import (
    InvalidOptionError,
    NotEnoughMemoryError,
    StorageFullError,
    disk_errors_translated,
)
from dynquant.hub.listing import Listing
from dynquant.hub.models import HubModels
from dynquant.hub.transfers import go_by_plain_http
from dynquant.jobs.job import PublishedRepo, StepProgress
from dynquant.jobs.job_text import results_to_text
from dynquant.jobs.request import JobRequest
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
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import Recipe, variant_of
from dynquant.report.artefacts import cost_table_from_json
from dynquant.report.finished_files import CARD, file_contents
from dynquant.report.numbers import size
from dynquant.report.outputs import OutputFolders, read_facts, write_file
from dynquant.runner.answers import Asked
from dynquant.runner.child_process import ChildCancelledError
from dynquant.runner.job_folder import MODELS, PAPERS, JobFolder, remove_folder
from dynquant.runner.spec import JobSpec, Limits, save_text
from dynquant.runner.worker_process import Worker
from dynquant.texts.corpus import Corpus
from dynquant.texts.documents import Text

__all__ = ["JobSteps"]

_TABLE, _FIGURES = "cost_table.json", "figures.json"

_TEXT_CHARS_PER_TOKEN = 400
"""Windows are spread over 32 times the tokens asked for; a token has some 4 to 12 characters."""


_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One step of one job that is to be done now."""

    job_id: str
    step: Step
    request: JobRequest
    results: Mapping[str, str]
    folder: JobFolder
    report: Callable[[StepProgress], None]
    is_cancelled: Callable[[], bool]

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    @property
    def resolved(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.results[Step.RESOLVE])
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
    """Does steps; a `jobs.ports.StepRunner`.

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
            step=Step(step),
            request=request,
            results=results,
            folder=JobFolder(self._jobs / job_id),
            report=report,
            is_cancelled=is_cancelled,
        )
        with job_context(job_id, step), disk_errors_translated():
            call.folder.make()
            if step != Step.RESOLVE and call.resolved["published"] is not None:
                there = [PublishedModel(**each) for each in call.resolved["published"]]
                return _results(there) if step == Step.PUBLISH else "null"
            for need in NEEDS[call.step]:
                self._restore(call, need)
            found = self._do(call)
        return found if isinstance(found, str) else json.dumps(found)

    def _do(self, call: _Call) -> Any:
        """Do the step of `call`; what it returns is kept by the engine."""
        match call.step:
            case Step.RESOLVE:
                return self._resolve(call)
            case Step.DOWNLOAD:
                return self._download(call)
            case Step.MEASURE:
                return self._measure(call)
            case Step.ENCODE:
                return self._encode(call)
            case Step.VERIFY:
                return call.asked.samples(self._compute(call, Step.VERIFY))
            case Step.EVALUATE:
                return call.asked.figures(self._compute(call, Step.EVALUATE))
            case Step.CARD:
                return self._card(call)
            case Step.PUBLISH:
                return self._publish(call)

    def _restore(self, call: _Call, need: Step) -> None:
        """Have the results of an earlier step on this machine, which may not have done it."""
        match need:
            case Step.DOWNLOAD:
                self._download(call)
            case Step.MEASURE:
                if not call.folder.has(_TABLE):
                    call.folder.write(_TABLE, call.results[Step.MEASURE])
            case Step.ENCODE:
                self._encode(call)
            case Step.EVALUATE:
                call.folder.write(_FIGURES, call.results[Step.EVALUATE])
            case Step.CARD:
                self._card(call)
            case _:
                raise ValueError(need)

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
            texts = {role: self._open_text(call, role) for role in request.options.texts}
            names = {role: text.name for role, text in texts.items()}
            # The child reads a copy, so that its plan knows a text by its name alone.
            known = {role: replace(text, source_sha256="") for role, text in texts.items()}
            there = already_published(source, recipe, ids, self._publisher, **known)
            fields = {key: value for key, value in asdict(source).items() if key != "folder"}
            forecasts = []
            if there is None:
                self._write_spec(call, source, names)
                answer = self._compute(call, Step.RESOLVE, source)
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
        """The model in the cache; the texts and the spec in the job's folder."""
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
        for role in call.request.options.texts:
            name = f"{role}.jsonl"
            if not call.folder.has(name):
                num_tokens = getattr(call.recipe, f"{role}_tokens")
                max_chars = _TEXT_CHARS_PER_TOKEN * num_tokens
                with call.folder.written(name) as stream:
                    save_text(self._open_text(call, role), stream, max_chars=max_chars)
        self._write_spec(call, source, call.resolved["texts"])
        return {"revision_sha": source.revision_sha}

    def _measure(self, call: _Call) -> str:
        """The cost table, which serves every later step and every machine."""
        table = call.folder.read(_TABLE)
        if table is None:
            self._compute(call, Step.MEASURE)
            table = call.asked.cost_table(call.folder.left_by_child(_TABLE))
            call.folder.write(_TABLE, table)
            call.folder.keep_windows()
        return table

    def _encode(self, call: _Call) -> list[str]:
        """The encoded models, from the cost table that was measured; their names."""
        names = sorted(call.asked.targets)
        if call.folder.has(MODELS):
            return names
        self._compute(call, Step.ENCODE)
        sizes = [each["size_bytes"] for each in call.resolved["forecasts"]]

        def on_copied(_num_bytes: int) -> None:
            if call.is_cancelled():
                raise ChildCancelledError

        call.folder.take_models(
            call.asked.targets,
            source=self._open[call.job_id][1].folder,
            max_bytes=sum(map(_most_bytes, sizes)),
            on_copied=on_copied,
        )
        return names

    def _card(self, call: _Call) -> list[str]:
        """The cards and what lies beside them, in the folders of the models; their names.

        What they say is worked out in the child, where the model can be opened, and they are
        written here.
        """
        folder, asked = call.folder, call.asked
        names = sorted(call.resolved["repo_ids"])
        if all(folder.has(MODELS, name, CARD) for name in asked.targets):
            return names
        self._compute(call, Step.CARD)
        table = cost_table_from_json(call.results[Step.MEASURE], name=_TABLE)
        for name in asked.targets:
            said = [
                folder.left_by_child(PAPERS, name, each) for each in ("plan.json", "report.json")
            ]
            for file_name, content in file_contents(asked.facts(name, *said), table).items():
                write_file(folder.models / name / file_name, content)
        return names

    def _publish(self, call: _Call) -> str:
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

    def _open_text(self, call: _Call, role: str) -> Text:
        return self._texts.open(call.request.options.texts[role])

    def _write_spec(self, call: _Call, source: ModelSource, texts: Mapping[str, str]) -> None:
        spec = JobSpec(
            source=source,
            targets_bpw=call.request.targets_bpw,
            options=call.request.options.model_copy(update=texts),
            max_reading_cpu_secs=self._limits.reading_cpu_secs,
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

    def _compute(self, call: _Call, step: Step, source: ModelSource | None = None) -> Any:
        """What the child process answers to `step`; nothing of it is checked yet.

        Args:
            call: The step of the job that needs it.
            step: What the child does.
            source: The model's headers; without them the downloaded model.
        """
        model = source or self._open[call.job_id][1]

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
            model=model.folder,
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
        texts=request.options.texts,
        default_texts=RecipeOptions().texts,
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
