"""Whatever is sent to the pages, no answer is an error of the server."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dynquant.web.limits import LIMITS, Limit
from dynquant.web.settings import WebSettings
from dynquant.web.snapshots import Snapshots
from local_hub import account_id
from tests.hardening import long_form
from tests.waiting import PATIENCE_SECS
from tests.web.scene import SOURCE, Field, opened

pytestmark = [
    pytest.mark.hub,
    pytest.mark.harden("web"),
    # The server is a thread of this process: it may draw random numbers while examples are made up,
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
    # and Gradio's queue uses an old option of pandas, of which no server makes an error.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
]

SECRET = "a-secret-canary-of-the-fuzz"
JSON = {"content-type": "application/json"}
NUM_MINUTES, MINUTE_SECS = 10, 60.0

texts = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2),
    st.sampled_from(
        [SOURCE, "team/missing", "https://[x/y", "../../etc/passwd", "", "\0", "hf_x", "0" * 20]
    ),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 4.5, 16, 10**400, 1e308, 2**63]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
plans = st.tuples(
    texts, st.one_of(values, st.lists(numbers, max_size=4)), st.one_of(values, numbers)
)
orders = st.tuples(
    st.one_of(values, texts), st.lists(numbers, max_size=3), values, values, values, values, values
)
calls = st.one_of(
    st.tuples(st.just("plan"), plans.map(list)),
    st.tuples(st.just("submit"), orders.map(list)),
    st.tuples(
        st.sampled_from(["status", "cancel"]), st.lists(st.one_of(texts, values), max_size=2)
    ),
    st.tuples(st.sampled_from(["plan", "submit", "status", "cancel", "choose", "x"]), values),
)
bodies = st.one_of(
    values.map(lambda found: json.dumps(found).encode()),
    st.binary(max_size=200),
    st.fixed_dictionaries(
        {
            "data": st.one_of(values, st.lists(values, max_size=14)),
            "fn_index": st.one_of(st.integers(-1, 40), values),
            "session_hash": st.one_of(st.none(), texts, values),
        }
    ).map(lambda found: json.dumps(found).encode()),
)
tokens = st.one_of(
    st.just({}), st.fixed_dictionaries({"oauth_token": st.one_of(st.just("hf_ann"), texts, values)})
)
headers = st.dictionaries(
    st.sampled_from(["authorization", "cookie", "x-forwarded-for", "range", "accept"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip),
    max_size=3,
)
boards = st.one_of(
    values,
    st.fixed_dictionaries({"runner_id": values, "jobs": values, "runners": values}),
    st.fixed_dictionaries(
        {"runner_id": texts, "jobs": st.lists(values), "runners": st.lists(values)}
    ),
)
paths = st.sampled_from(
    [
        "/gradio_api/queue/join",
        "/gradio_api/queue/data",
        "/gradio_api/run/plan",
        "/gradio_api/run/predict",
        "/gradio_api/api/plan",
        "/gradio_api/call/plan",
        "/gradio_api/call/submit",
        "/gradio_api/upload",
        "/gradio_api/reset",
        "/gradio_api/cancel",
        "/gradio_api/heartbeat/x",
        "/config",
        "/login",
        "/",
    ]
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Field]:
    """The pages of a local machine, without sign-in and without limits."""
    folder = tmp_path_factory.mktemp("fuzz")
    with opened(folder, snapshots=Snapshots(), space_secret=SECRET) as space:
        yield space


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[Field]:
    """A Space with sign-in by tokens; without limits, which would end the fuzz."""
    folder = tmp_path_factory.mktemp("fuzz-space")
    settings = WebSettings(is_space=True, operator_ids=frozenset({account_id("bob")}))
    with opened(folder, settings=settings, snapshots=Snapshots(), space_secret=SECRET) as space:
        endless = dict.fromkeys(LIMITS, Limit(burst=10**9, secs=1e-6))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(space.service._limits, "_limits", endless)
            # Gradio has buttons to sign in only where the Hub runs it; tokens count all the same.
            signs_in = replace(settings, signs_in=True)
            patch.setattr(space.service.sign_in, "_settings", signs_in)
            yield space


def attack(space: Field, *, num_examples: int, number: int) -> Counter[int]:
    """Statuses of the answers to `num_examples` requests of each kind."""
    statuses: Counter[int] = Counter()
    # The server ends a connection that waits for five seconds, as while examples are made up.
    no_reuse = httpx2.Limits(max_keepalive_connections=0)
    client = httpx2.Client(base_url=space.url, timeout=PATIENCE_SECS, limits=no_reuse)

    def answered(answer: httpx2.Response, said: Any) -> None:
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (said, answer.text[:500])

    def kind(strategy: Any) -> Any:
        def decorate(test: Any) -> None:
            run = settings(
                max_examples=num_examples,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(seed(number)(given(strategy)(test)))
            run()

        return decorate

    with client:

        @kind(st.tuples(calls, headers, tokens))
        def call(asked: Any) -> None:
            (name, data), extra, token = asked
            content = json.dumps({"data": data} | token).encode()
            url = f"/gradio_api/run/{name}"
            answered(client.post(url, content=content, headers=JSON | extra), asked)

        @kind(st.tuples(paths, bodies, headers))
        def send(asked: Any) -> None:
            path, body, extra = asked
            answered(client.post(path, content=body, headers=JSON | extra), asked)

        @kind(boards)
        def post_board(board: Any) -> None:
            proof = {"authorization": f"Bearer {SECRET}"}
            content = json.dumps(board).encode()
            answered(client.post("/runner/board", content=content, headers=proof), board)

        @kind(st.tuples(st.sampled_from(["job", "board"]), texts, texts, texts))
        def look(asked: Any) -> None:
            page, *words = asked
            names = ("job", "seen", "state") if page == "job" else ("state", "words", "seen")
            words = [word.encode(errors="replace").decode() for word in words]
            query = dict(zip(names, words, strict=True))
            for prefix in ("/live/", "/"):
                if prefix == "/live/" or words[0]:
                    answered(client.get(f"{prefix}{page}", params=query), asked)

    return statuses


@pytest.mark.parametrize("kind", ["machine", "space"])
def test_no_request_is_an_error_of_the_server(request, harden, kind):
    statuses = attack(request.getfixturevalue(kind), num_examples=15, number=1)
    harden("handled", statuses.total())
    assert len(statuses) > 3


@long_form
@pytest.mark.slow
@pytest.mark.parametrize("minute", range(NUM_MINUTES))
def test_no_request_of_ten_minutes_is_an_error_of_the_server(
    request, harden, record_property, minute
):
    kind = ("machine", "space")[minute % 2]
    pages = request.getfixturevalue(kind)
    statuses: Counter[int] = Counter()
    began = time.monotonic()
    for number in itertools.count(1_000 * (minute + 1)):
        statuses += attack(pages, num_examples=100, number=number)
        if time.monotonic() - began >= MINUTE_SECS:
            break
    secs = time.monotonic() - began
    harden("handled", statuses.total())
    record_property(
        "chaos",
        f"fuzz of a {kind}, minute {minute + 1}: {statuses.total()} requests in {secs:.0f} s, "
        f"by status: {dict(sorted(statuses.items()))}",
    )
