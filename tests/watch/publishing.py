"""A runner whose steps do nothing, except the last step, which publishes to the local Hub.

    python -m tests.watch.publishing FOLDER RUNNER_ID

See `tests.jobs.driver` for the content of FOLDER. The models are small and name their sources.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dynquant.hub.publishing import HubPublisher
from dynquant.jobs.job import PublishedRepo
from dynquant.jobs.job_text import results_to_text
from dynquant.jobs.request import JobRequest
from dynquant.model.access import Access
from dynquant.model.naming import quantized_name, repo_ids
from dynquant.model.origin import Origin
from dynquant.progress import OnStep
from dynquant.report.finished_files import PLAN
from tests.jobs.driver import FakeSteps, main


class Silent:
    """Progress without output."""

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:
        yield lambda _step, _amount=1: None


class PublishingSteps(FakeSteps):
    """Publishes each target as a folder with a plan and tiny weights."""

    def publish(self, request: JobRequest, job_id: str) -> str:
        names = {quantized_name(request.model, bpw): bpw for bpw in request.targets_bpw}
        assert request.destination is not None
        ids = repo_ids(
            request.destination, {name: (request.model, bpw) for name, bpw in names.items()}
        )
        published = []
        for name, bpw in names.items():
            folder = self.local.parent.parent / "made" / job_id / name
            (folder / PLAN).parent.mkdir(parents=True, exist_ok=True)
            plan = {
                "source": request.model,
                "revision_sha": request.revision,
                "target_bpw": bpw,
            }
            card = {
                "tags": ["mlx", "dynquant"],
                "base_model": request.model,
                "base_model_relation": "quantized",
            }
            (folder / PLAN).write_text(json.dumps(plan))
            (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n# {name}\n")
            (folder / "config.json").write_text("{}")
            found = HubPublisher().publish(
                folder,
                ids[name],
                origin=Origin(name=request.model),
                title=f"{name} of {request.revision}",
                access=Access(is_private=request.private),
                progress=Silent(),
            )
            published.append(PublishedRepo(repo_id=found.repo_id, commit_sha=found.commit_sha))
            self.obey(f"published-{bpw:g}", request.model, job_id, lambda: False)
        return results_to_text(tuple(published))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], PublishingSteps)
