"""The steps of a durable job: each restores the files that it lacks, so any machine can continue.

The result of a step is small, is kept by the engine, and comes back in `results`. Large files are
in the job's folder under the runner's home and in the model cache; if they are missing there,
because another machine had the job before, the step makes them again, to the same bytes.

The child process that computes is not trusted: its answers are checked (`answers.py`), and its
files are copied out of its reach before they are used (`job_folder.py`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
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
from dynquant.hub.transfers import use_plain_http
from dynquant.jobs.job import PublishedRepo, StepProgress
from dynquant.jobs.job_text import results_to_text
from dynquant.jobs.request import JobRequest
from dynquant.logs import job_context
from dynquant.model.limits import MAX_HEADER_BYTES, MAX_SMALL_FILE_BYTES
from dynquant.model.naming import is_ours
from dynquant.model.source import ModelSource
from dynquant.publish import (
    ModelPublisher,
    PublishedModel,
    already_published,
    destinations,
    publish,
)
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import variant_of
from dynquant.report.artefacts import cost_table_from_json
from dynquant.report.finished_files import CARD, file_contents
from dynquant.report.numbers import size
from dynquant.report.outputs import OutputFolders, read_facts, write_file
from dynquant.runner.job_folder import FACTS, MODELS, JobFolder, remove_folder
from dynquant.runner.spec import JobSpec, Limits, save_text
from dynquant.runner.step_call import StepCall
from dynquant.runner.worker_process import Worker
from dynquant.texts.corpus import Corpus
from dynquant.texts.documents import Text
from dynquant.texts.images import ImagePrompts

__all__ = ["JobSteps"]

_TABLE, _VERIFIED, _FIGURES = "cost_table.json", "verified.json", "figures.json"

_TEXT_CHARS_PER_TOKEN = 400
"""Windows are spread over 32 times the requested tokens; a token has some 4 to 12 characters."""

_logger = logging.getLogger(__name__)


class JobSteps:
    """Does steps; a `jobs.ports.StepRunner`.

    Args:
        home: The runner's folder; each job has a folder below `jobs` in it.
        publisher: Publishes finished models.
        texts: Opens the texts of a request, which is not trusted.
        open_hub: Opens the Hub for one job; its models count as in use until it is closed.
        max_memory_bytes: Memory that a child may use; a job that needs more is not tried.
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
        self._actions: Mapping[Step, Callable[[StepCall], Any]] = {
            Step.RESOLVE: self._resolve,
            Step.DOWNLOAD: self._download,
            Step.MEASURE: self._measure,
            Step.ENCODE: self._encode,
            Step.VERIFY: lambda call: call.asked.verified(self._compute(call, Step.VERIFY)),
            Step.EVALUATE: lambda call: call.asked.figures(self._compute(call, Step.EVALUATE)),
            Step.CARD: self._card,
            Step.PUBLISH: self._publish,
        }
        use_plain_http()  # else a cancelled job would continue its download

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
        """Do `step`; returns its result for later steps, as JSON.

        Raises:
            RequestError: The request cannot work.
            RetryLaterError: It may work later.
            NeverPublishError: The result must not be published.
            ChildCancelledError: The job was cancelled.
        """
        call = StepCall(
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
            found = self._actions[call.step](call)
        return found if isinstance(found, str) else json.dumps(found)

    def _restore(self, call: StepCall, need: Step) -> None:
        """Restore the files of an earlier step, which another machine may have done."""
        if need is Step.MEASURE:
            if not call.folder.has(_TABLE):
                call.folder.write(_TABLE, call.results[need])
        elif need is Step.VERIFY:
            call.folder.write(_VERIFIED, call.results[need])
        elif need is Step.EVALUATE:
            call.folder.write(_FIGURES, call.results[need])
        else:
            self._actions[need](call)

    def local_jobs(self) -> Collection[str]:
        """Ids of the jobs that have a folder here."""
        return {each.name for each in self._jobs.iterdir()} if self._jobs.is_dir() else set()

    def release(self, job_id: str) -> None:
        """Remove the files of a job that is over, and release its model in the cache."""
        if (opened := self._open.pop(job_id, None)) is not None:
            opened[0].close()
        try:
            remove_folder(self._jobs / job_id)
        except OSError as error:
            _logger.warning("A job's folder could not be removed: %s", error.strerror)

    def _resolve(self, call: StepCall) -> dict[str, Any]:
        request, recipe = call.request, call.recipe
        if not request.destination:
            raise InvalidOptionError("A job needs a destination: the namespace to publish to.")
        with self._open_hub() as hub:
            # Looked up at the Hub first, so that a request cannot name a folder of this machine.
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
                private=call.private,
                variant=_variant(call, hub, found),
            )
            texts = {role: self._open_text(call, role) for role in request.options.texts}
            images = {role: self._open_images(call, role) for role in request.options.images}
            names = {role: text.name for role, text in texts.items()}
            names |= {role: each.name for role, each in images.items()}
            # The child reads a copy, so its plan identifies a text by its name alone.
            known = {role: replace(text, source_sha256="") for role, text in texts.items()}
            there = already_published(
                source,
                recipe,
                ids,
                self._publisher,
                calibration=known["calibration"],
                evaluation=known["evaluation"],
                **images,
            )
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

    def _download(self, call: StepCall) -> dict[str, Any]:
        """The model in the cache; the texts and the spec in the job's folder."""
        if call.job_id not in self._open:
            repo, sha = (call.resolved["source"][key] for key in ("name", "revision_sha"))
            dequantize = call.recipe.dequantize
            with ExitStack() as on_failure:
                hub = on_failure.enter_context(self._open_hub())
                # Two answers must list the same files, as a file that one omits goes unnoticed.
                hub.look_up(repo, revision=sha, allow_quantized=dequantize)
                source = hub.fetch(repo, revision=sha, allow_quantized=dequantize, progress=call)
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
        for role in call.request.options.images:
            name = f"{role}.json"
            if not call.folder.has(name):
                with call.folder.written(name) as stream:
                    json.dump(self._open_images(call, role).to_json(), stream)
        self._write_spec(call, source, call.resolved["texts"])
        return {"revision_sha": source.revision_sha}

    def _measure(self, call: StepCall) -> str:
        """The cost table, for every later step and every machine."""
        table = call.folder.read(_TABLE)
        if table is None:
            self._compute(call, Step.MEASURE)
            table = call.asked.cost_table(call.folder.left_by_child(_TABLE))
            call.folder.write(_TABLE, table)
            call.folder.keep_windows()
        return table

    def _encode(self, call: StepCall) -> list[str]:
        """Encode the models from the cost table; returns their names."""
        names = sorted(call.asked.targets)
        if call.folder.has(MODELS):
            return names
        self._compute(call, Step.ENCODE)
        sizes = [each["size_bytes"] for each in call.resolved["forecasts"]]

        call.folder.take_models(
            call.asked.targets,
            source=self._open[call.job_id][1].folder,
            max_bytes=sum(map(_most_bytes, sizes)),
            on_part=call.require_not_cancelled,
        )
        return names

    def _card(self, call: StepCall) -> list[str]:
        """Write cards, plots and artefacts into the folders of the models; returns their names.

        The child, which can open the model, computes their facts; the runner writes the files.
        """
        folder, asked = call.folder, call.asked
        names = sorted(call.resolved["repo_ids"])
        if all(folder.has(MODELS, name, CARD) for name in asked.targets):
            return names
        self._compute(call, Step.CARD)
        table = cost_table_from_json(call.results[Step.MEASURE], name=_TABLE)
        for name in asked.targets:
            said = [
                folder.left_by_child(FACTS, name, each) for each in ("plan.json", "report.json")
            ]
            for file_name, content in file_contents(asked.facts(name, *said), table).items():
                write_file(folder.models / name / file_name, content)
        return names

    def _publish(self, call: StepCall) -> str:
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
                private=call.private,
                access_now=hub.access_of,
                progress=call,
            )
        return _results(published)

    def _open_text(self, call: StepCall, role: str) -> Text:
        return self._texts.open(call.request.options.texts[role])

    def _open_images(self, call: StepCall, role: str) -> ImagePrompts:
        """The images of a request, which its child decodes."""
        return self._texts.open_images(call.request.options.images[role], decode=False)

    def _write_spec(self, call: StepCall, source: ModelSource, texts: Mapping[str, str]) -> None:
        spec = JobSpec(
            source=source,
            targets_bpw=call.request.targets_bpw,
            options=call.request.options.model_copy(update=texts),
            max_reading_cpu_secs=self._limits.reading_cpu_secs,
        )
        call.folder.write("spec.json", spec.to_json())

    def _require_room(self, forecasts: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a model that is too large for this machine, before its download."""
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

    def _compute(self, call: StepCall, step: Step, source: ModelSource | None = None) -> Any:
        """The child's answer to `step`, not checked yet.

        Args:
            call: The current step of the job.
            step: The step that the child does.
            source: The model's headers; None is the downloaded model.
        """
        model = source or self._open[call.job_id][1]
        return self._child.run(
            step,
            call.folder,
            model=model.folder,
            report=call.report_child,
            is_cancelled=call.is_cancelled,
        )


def _variant(call: StepCall, hub: HubModels, found: Listing) -> str:
    """A suffix for the repo's name if a visitor's request must not replace the default quant.

    Raises:
        InvalidOptionError: The commit may not be of the model's author.
    """
    request = call.request
    if is_ours(request.requester):
        return ""
    latest = hub.look_up(found.repo, allow_quantized=call.recipe.dequantize)
    if found.sha != latest.sha and not hub.is_in_history(found.sha, of=latest):
        raise InvalidOptionError(
            f"Commit {found.sha[:12]} of '{found.repo}' is not in the history of the main branch; "
            "it may be of a pull request, which every account may open. Ask for the latest commit, "
            "or have the operator of this runner ask for yours with 'dynquant submit'."
        )
    return variant_of(
        call.recipe,
        texts={**request.options.texts, **request.options.images},
        default_texts=RecipeOptions().texts,
        revision_sha="" if found.is_same_model_as(latest) else found.sha,
    )


def _most_bytes(size_bytes: int) -> int:
    """Bound for the files of a model whose weights have `size_bytes`."""
    return 2 * size_bytes + MAX_HEADER_BYTES + 5 * MAX_SMALL_FILE_BYTES


def _results(published: Sequence[PublishedModel]) -> str:
    return results_to_text(
        tuple(PublishedRepo(repo_id=each.repo_id, commit_sha=each.commit_sha) for each in published)
    )
