"""The steps of a durable job: each makes again what it lacks, so any machine can go on.

What a step returns is small, is kept by the engine, and comes back in `results`. What is large
lies in the job's folder under the runner's home and in the model cache; a step that does not
find it there, because another machine had the job before, makes it again, to the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynquant.core.artefacts import facts_from_json
from dynquant.core.figures import size
from dynquant.core.job import JobRequest, PublishedRepo, StepProgress
from dynquant.core.job_text import results_to_text
from dynquant.core.papers import CARD, PLAN, REPORT
from dynquant.core.recipe import Recipe
from dynquant.corpus import DEFAULT_CALIBRATION, DEFAULT_EVALUATION
from dynquant.errors import (
    InvalidOptionError,
    NotEnoughMemoryError,
    StorageFullError,
    disk_errors_translated,
)
from dynquant.hub.models import HubModels
from dynquant.hub.transfers import go_by_plain_http
from dynquant.log_lines import job_context
from dynquant.outputs import OutputFolders, read_text, write_file
from dynquant.pipeline import already_published, destinations, publish
from dynquant.ports import ModelPublisher, ModelSource, OnStep, PublishedModel, Text, TextReader
from dynquant.runner.child import ChildCancelledError
from dynquant.runner.computing import ComputeChild
from dynquant.runner.spec import JobSpec, Limits, recipe_of, save_text

__all__ = ["JobSteps"]

_TEXT_CHARS_PER_TOKEN = 400
"""Windows are spread over 32 times the tokens asked for; a token has some 4 to 12 characters."""

_TEXTS = {"calibration": DEFAULT_CALIBRATION, "evaluation": DEFAULT_EVALUATION}
"""Role of a text, which is also the name of its option, → its default."""


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One step of one job that is to be done now."""

    job_id: str
    step: str
    request: JobRequest
    results: Mapping[str, str]
    folder: Path
    report: Callable[[StepProgress], None]
    is_cancelled: Callable[[], bool]

    @property
    def recipe(self) -> Recipe:
        return recipe_of({"targets_bpw": self.request.targets_bpw, **self.request.options})

    @property
    def resolved(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.results["resolve"])
        return found


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
        texts: TextReader,
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
        self._child = ComputeChild(
            home=home / "child", max_memory_bytes=max_memory_bytes, limits=limits
        )
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
            folder=self._jobs / job_id,
            report=report,
            is_cancelled=is_cancelled,
        )
        with job_context(job_id, step), disk_errors_translated():
            call.folder.mkdir(parents=True, exist_ok=True)
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
        shutil.rmtree(self._jobs / job_id, ignore_errors=True)

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
            ids = destinations(source.name, recipe, request.destination, self._publisher)
            texts = {role: self._open_text(call, role) for role in _TEXTS}
            names = {role: text.name for role, text in texts.items()}
            there = already_published(source, recipe, ids, self._publisher, **texts)
            forecasts = []
            if there is None:
                self._write_spec(call, source, names)
                forecasts = self._compute(call, "resolve")
                self._require_room(forecasts)
        return {
            "source": {key: value for key, value in asdict(source).items() if key != "folder"},
            "forecasts": forecasts,
            "repo_ids": ids,
            "texts": names,
            "published": None if there is None else [asdict(each) for each in there],
        }

    def _download(self, call: _Call) -> dict[str, Any]:
        source = self._require_model(call)
        return {"revision_sha": source.revision_sha}

    def _measure(self, call: _Call) -> str:
        self._require_model(call)
        table = read_text(call.folder / "cost_table.json")
        if table is None:
            self._compute(call, "measure")
            table = read_text(call.folder / "cost_table.json")
        assert table is not None
        return table

    def _encode(self, call: _Call) -> list[str]:
        self._require_models(call)
        return sorted(each.name for each in (call.folder / "models").iterdir())

    def _verify(self, call: _Call) -> Any:
        self._require_models(call)
        return self._compute(call, "verify")

    def _evaluate(self, call: _Call) -> Any:
        self._require_models(call)
        return self._compute(call, "evaluate")

    def _card(self, call: _Call) -> list[str]:
        self._require_papers(call)
        return sorted(call.resolved["repo_ids"])

    def _publish(self, call: _Call) -> str:
        self._require_papers(call)
        ids: dict[str, str] = call.resolved["repo_ids"]
        models = {}
        for name in ids:
            folder = call.folder / "models" / name
            plan, report = read_text(folder / PLAN), read_text(folder / REPORT)
            models[folder] = facts_from_json(plan or "", report or "", name=name)
        return _results(
            publish(
                models,
                ids,
                self._publisher,
                outputs=OutputFolders(call.folder / "models"),
                private=call.request.private or (False if call.request.public else None),
                progress=_Reported(call),
            )
        )

    def _require_model(self, call: _Call) -> ModelSource:
        """The model in the cache, the texts and the spec in the job's folder."""
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
            path = call.folder / f"{role}.jsonl"
            if not path.exists():
                num_tokens = getattr(call.recipe, f"{role}_tokens")
                max_chars = _TEXT_CHARS_PER_TOKEN * num_tokens
                save_text(self._open_text(call, role), path, max_chars=max_chars)
        self._write_spec(call, source, call.resolved["texts"])
        return source

    def _require_models(self, call: _Call) -> None:
        """The encoded models, from the cost table that was measured."""
        self._require_model(call)
        table = call.folder / "cost_table.json"
        if not table.exists():
            write_file(table, call.results["measure"])
        if not (call.folder / "models").exists():
            self._compute(call, "encode")

    def _require_papers(self, call: _Call) -> None:
        """The encoded models with their cards."""
        self._require_models(call)
        names = call.resolved["repo_ids"]
        if not all((call.folder / "models" / name / CARD).exists() for name in names):
            write_file(call.folder / "figures.json", call.results["evaluate"])
            self._compute(call, "card")

    def _open_text(self, call: _Call, role: str) -> Text:
        return self._texts.open(str(call.request.options.get(role) or _TEXTS[role]))

    def _write_spec(self, call: _Call, source: ModelSource, texts: Mapping[str, str]) -> None:
        spec = JobSpec(
            source=source,
            recipe=call.recipe,
            max_reading_cpu_secs=self._limits.reading_cpu_secs,
            **texts,
        )
        write_file(call.folder / "spec.json", spec.to_json())

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

    def _compute(self, call: _Call, step: str) -> Any:
        """What the child process answers to `step`."""

        def report(said: Mapping[str, Any]) -> None:
            call.report(
                StepProgress(
                    step=call.step,
                    fraction=said["fraction"],
                    eta_secs=said["eta_secs"],
                    layer=said["part"],
                )
            )

        return self._child.run(step, call.folder, report=report, is_cancelled=call.is_cancelled)


def _results(published: Sequence[PublishedModel]) -> str:
    return results_to_text(
        tuple(PublishedRepo(repo_id=each.repo_id, commit_sha=each.commit_sha) for each in published)
    )


class _Reported:
    """Progress in bytes, told as a step's own; implements `ports.Progress`."""

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
