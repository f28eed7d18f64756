"""The order in which a runner serves requesters."""

from __future__ import annotations

from dynquant.jobs.request import Priority


def test_one_requester_cannot_keep_the_others_waiting_and_persons_go_before_the_watcher(
    sqlite_arena,
):
    arena = sqlite_arena
    jobs = [arena.submit("org/Watched", requester="watcher", priority=Priority.WATCHER)]
    jobs += [arena.submit(f"org/Hog-{number}", requester="hog") for number in range(12)]
    jobs += [arena.submit("org/Late", requester=name) for name in ("ann", "bob")]
    arena.start()
    for job in jobs:
        arena.over(job)
    names = {job.id: job.request.requester for job in jobs}
    lines = (arena.folder / "marks").read_text().splitlines()
    published = [names[line.split()[2]] for line in lines if line.split()[1] == "published"]
    # Ann and Bob asked for the same model, which is one job.
    assert published == ["hog", "ann", *["hog"] * 11, "watcher"]
