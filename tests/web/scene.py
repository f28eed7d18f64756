"""The pages with a real board and a local Hub behind them, served from a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from dynquant.hub.accounts import Account
from dynquant.hub.hardware import Mac
from dynquant.hub.models import opened_briefly
from dynquant.hub.published import HubRepos
from dynquant.hub.publishing import HubPublisher
from dynquant.hub.search import HubSearch
from dynquant.hub.visitor import HubVisitor
from dynquant.jobs import tables
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.database import Database
from dynquant.jobs.job import JobState, Outcome, PublishedRepo, StepProgress
from dynquant.jobs.job_text import job_to_text
from dynquant.jobs.registry import Registry
from dynquant.jobs.request import JobRequest
from dynquant.jobs.store import JobStore
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.report.artefacts import facts_from_json
from dynquant.report.facts import ModelFacts
from dynquant.report.finished_files import PLAN, REPORT, file_contents
from dynquant.settings import Settings
from dynquant.watch.service import WatchService
from dynquant.watch.webhook import Webhook
from dynquant.web.finished_models import FinishedModels
from dynquant.web.model_lookup import ModelLookup
from dynquant.web.ports import JobsPort
from dynquant.web.service import Service
from dynquant.web.settings import WebSettings
from dynquant.web.sign_in import SignIn
from dynquant.web.site import make_site
from dynquant.web.space_watch import SpaceWatch
from local_hub import LocalHub
from tests.report.card_factories import (
    make_facts,
    make_original,
    make_row,
    make_uniform,
    make_variants,
)
from tests.waiting import PATIENCE_SECS, wait_until
from tests.watch.scene import add_model, model_files

SAMPLE = Path(__file__).parents[2] / "examples" / "sample-2m"
SOURCE = "team/sample-2m"
NAMESPACE = "quants"
WEBHOOK_SECRET = "what-the-hub-was-told"
CHIPS = {"mac-studio": "Apple M2 Ultra", "mac-mini": "Apple M4 Pro"}


@dataclass(frozen=True)
class Field:
    """A Hub, a database and the pages over both."""

    hub: LocalHub
    url: str
    service: Service
    board: DatabaseBoard
    database: Database
    store: JobStore
    registry: Registry
    site: FastAPI

    def submit(self, **overrides: Any) -> str:
        """Queue a job; its id."""
        request = make_request(**overrides)
        return self.board.submit(
            request,
            revision_sha="c0ffee",
            source_is_private=request.source_is_private,
            recipe_version=RECIPE_VERSION,
        ).id

    def run(self, job_id: str, *progress: StepProgress, runner: str = "mac-studio") -> str:
        """Have a runner take a job, and get so far; the session that has it."""
        session = self.registry.join(
            runner,
            memory_bytes=64 * 10**9,
            num_slots=1,
            heartbeat_secs=0.0,
            chip=CHIPS.get(runner, ""),
        )
        assert self.store.take(job_id, runner=runner, session=session) is not None
        for each in progress:
            self.store.begin_step(job_id, each.step, session=session)
            self.store.report(job_id, each, session=session)
        return session

    def end(self, job_id: str, outcome: Outcome, *, session: str) -> None:
        self.store.end(job_id, outcome, session=session, busy_secs=400.0)
        self.registry.leave(session)

    def publish(self, facts: Sequence[ModelFacts] = ()) -> tuple[PublishedRepo, ...]:
        """Repos on the Hub that dynquant made, one a variant; as a job names them."""
        return tuple(publish(self.hub, each) for each in facts or make_family())


def make_request(**overrides: Any) -> JobRequest:
    fields: dict[str, Any] = {
        "model": "Qwen/Qwen3-0.6B",
        "targets_bpw": (4.5,),
        "destination": NAMESPACE,
        "requester": "ann",
        **overrides,
    }
    return JobRequest(**fields)


def make_family(source: str = "Qwen/Qwen3-0.6B") -> list[ModelFacts]:
    """Models of all sizes of one original."""
    name = source.rpartition("/")[2]
    variants = tuple(
        replace(variant, name=f"{name}-MLX-{variant.target_bpw}bpw") for variant in make_variants()
    )
    found = []
    for variant in variants:
        row = make_row(
            stored_bpw=variant.stored_bpw,
            num_bytes=variant.num_bytes,
            mean_kl_nats=variant.mean_kl_nats,
            mean_kl_se_nats=variant.mean_kl_se_nats,
            top1_agreement=variant.top1_agreement,
        )
        facts = make_facts(
            name=variant.name,
            source=source,
            variants=variants,
            rows=(make_original(), make_uniform(), row),
        )
        plan = replace(facts.plan, target_bpw=variant.target_bpw, stored_bpw=variant.stored_bpw)
        found.append(replace(facts, plan=plan, menu=tuple(sorted(set(plan.formats.values())))))
    return found


def publish(hub: LocalHub, facts: ModelFacts, *, namespace: str = NAMESPACE) -> PublishedRepo:
    files = {name: content.encode() for name, content in file_contents(facts, None).items()}
    facts_from_json(files[PLAN].decode(), files[REPORT].decode(), name=facts.name)
    repo_id = f"{namespace}/{facts.name}"
    repo = hub.add(repo_id, {**files, "config.json": b"{}", "model.safetensors": bytes(64)})
    return PublishedRepo(repo_id=repo_id, commit_sha=repo.branches["main"])


@contextmanager
def opened(
    folder: Path,
    *,
    settings: WebSettings | None = None,
    jobs: JobsPort | None = None,
    user: str = "ann",
    rules: str | None = None,
    space_watch: SpaceWatch | None = None,
    **site_options: Any,
) -> Iterator[Field]:
    """The pages, a Hub with `SOURCE` on it, and an empty board; with `rules` a watcher, too.

    Args:
        space_watch: The watcher that runners post, on a Space.
    """
    web = settings or WebSettings()
    url = f"sqlite:///{folder / 'jobs.sqlite'}"
    with LocalHub() as hub:
        hub.add_user(NAMESPACE, token="hf_quants")
        hub.add_user("ann", token="hf_ann")
        hub.add_user("bob", token="hf_bob", orgs={"team": "write"})
        hub.add(SOURCE, SAMPLE, downloads=12_345)
        published = HubRepos(endpoint=hub.url, token="hf_quants")
        board, database = DatabaseBoard(url, published=published), Database(url)
        token = False if web.is_space else None
        search = HubSearch(endpoint=hub.url, token=token)

        def account(visitor_token: str) -> Account:
            return HubVisitor(visitor_token, endpoint=hub.url).account()

        def macs(visitor_token: str) -> tuple[Mac, ...]:
            return HubVisitor(visitor_token, endpoint=hub.url).macs()

        def check_destination(repo_id: str, origin: Origin, access: Access) -> None:
            HubPublisher(endpoint=hub.url, token="hf_quants").check(
                repo_id, origin=origin, access=access
            )

        watch = None
        if rules is not None:
            (folder / "watch.yaml").write_text(rules)
            environment = {"DYNQUANT_DATABASE_URL": url, "DYNQUANT_HOME": str(folder)}
            watch = WatchService(
                Settings.from_environment(environment), folder / "watch.yaml", endpoint=hub.url
            )
            webhook = Webhook(WEBHOOK_SECRET, covers=watch.covers, look=watch.look_at)
            site_options["webhook"] = webhook
        service = Service(
            settings=web,
            jobs=jobs or board,
            sign_in=SignIn(web, account=account, macs=macs, user=user),
            model_lookup=ModelLookup(
                search,
                open_hub=lambda: opened_briefly(endpoint=hub.url, token=token),
            ),
            search=search,
            finished_models=FinishedModels(search, namespace=NAMESPACE),
            namespace=lambda: NAMESPACE,
            check_destination=None if web.is_space else check_destination,
            watch=watch or space_watch,
        )
        try:
            with _event_loop():
                site = make_site(service, **site_options)
            with served(site) as address:
                yield Field(
                    hub=hub,
                    url=address,
                    service=service,
                    board=board,
                    database=database,
                    store=JobStore(database),
                    registry=Registry(database),
                    site=site,
                )
        finally:
            if watch is not None:
                watch.close()
            board.close()
            database.close()


@contextmanager
def _event_loop() -> Iterator[None]:
    """Gradio would make a loop for this thread, and leave it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def served(app: FastAPI, *, port: int = 0) -> Iterator[str]:
    """The application at the address that this yields."""
    listening = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, "the pages")
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECS)
        listening.close()


def swept(field: Field) -> None:
    """New models on the Hub, and what the watcher made of them."""
    assert isinstance(field.service.watch, WatchService)
    at = datetime.now(UTC) - timedelta(minutes=10)
    for name, files in {
        "Qwen/Qwen3-4B-Instruct-2511": model_files(4 * 10**9),
        "HuggingFaceTB/SmolLM4-1.7B": model_files(17 * 10**8),
        "mistralai/Ministral-9B-Unheard-Of": model_files(9 * 10**9, config={"model_type": "new"}),
        "someone/Merge-13B": model_files(13 * 10**9),
        "someone/Merge-13B-GGUF": model_files(13 * 10**9),
        "lab/Adapter": model_files(tags=["lora"]),
        "lab/Keep-Out": model_files(dynquant=False),
    }.items():
        add_model(field.hub, name, at, files)
    add_model(field.hub, "google/gemma-4-9b", at, gated="manual")
    field.service.watch.do_round()


def populated(field: Field) -> dict[str, str]:
    """Jobs in every state, with models on the Hub behind the finished one; name → id."""
    published = field.submit(targets_bpw=(3.5, 4.5, 6.0, 8.0))
    session = field.run(published, StepProgress(step="resolve"), StepProgress(step="publish"))
    results = field.publish()
    field.end(published, Outcome(state=JobState.PUBLISHED, results=results), session=session)
    _began_earlier(field, published, secs=1_260)
    field.publish(make_family("mistralai/Ministral-8B-Instruct-2410")[1:3])

    one = field.submit(model="meta-llama/Llama-3.2-3B-Instruct", requester="carol")
    session = field.run(one, StepProgress(step="publish"))
    results = field.publish(make_family("meta-llama/Llama-3.2-3B-Instruct")[1:2])
    field.end(one, Outcome(state=JobState.PUBLISHED, results=results), session=session)
    _began_earlier(field, one, secs=2_400)

    refused = field.submit(model="someone/Old-Model", requester="bob")
    session = field.run(refused, StepProgress(step="resolve"), runner="mac-mini")
    sentence = (
        "'someone/Old-Model' has only PyTorch weights (.bin or .pt), which can run code when "
        "opened. Convert them to safetensors first, for example with "
        "https://huggingface.co/spaces/safetensors/convert."
    )
    outcome = Outcome(state=JobState.REFUSED, reason_code="pickled_weights", sentence=sentence)
    field.end(refused, outcome, session=session)

    running = field.submit(model="Qwen/Qwen3-8B", targets_bpw=(4.5,))
    session = field.run(
        running,
        StepProgress(step="resolve", fraction=1.0),
        StepProgress(step="download", fraction=1.0, num_bytes=16_381_516_776),
        StepProgress(step="measure", fraction=0.43, eta_secs=730.0, layer="model.layers.15"),
    )
    _stays_alive(field, session)
    waiting = field.submit(model="google/gemma-3-27b-it", targets_bpw=(3.5, 5.0), requester="bob")
    cancelled = field.submit(model="org/<b>Bold</b>-Model", requester="carol")
    field.board.cancel(cancelled)
    return {
        "running": running,
        "waiting": waiting,
        "published": published,
        "published-one": one,
        "refused": refused,
        "cancelled": cancelled,
        "unknown": "0" * 20,
    }


def _began_earlier(field: Field, job_id: str, *, secs: float) -> None:
    """Have a job that is over look as if it had taken so long."""
    job = field.board.get(job_id)
    assert job.started_at is not None
    earlier = replace(job, started_at=job.started_at - timedelta(seconds=secs))
    with field.database.writing() as connection:
        connection.execute(
            sa.update(tables.jobs)
            .where(tables.jobs.c.id == job_id)
            .values(document=job_to_text(earlier))
        )


def _stays_alive(field: Field, session: str) -> None:
    """Have a runner look as if it had just been heard of, for the next hour."""
    with field.database.writing() as connection:
        connection.execute(
            sa.update(tables.runners)
            .where(tables.runners.c.session == session)
            .values(beat_at_secs=tables.runners.c.beat_at_secs + 3_600)
        )
