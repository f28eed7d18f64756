from __future__ import annotations

import pytest

from dynquant.rented.job import Stage, why_it_ended
from tests.rented.factories import make_job


def test_a_job_is_named_as_the_commands_take_it():
    assert make_job().name == "you/c0ffee"


def test_a_stage_that_a_later_hub_adds_counts_as_running():
    assert not Stage("UPDATING").is_over
    assert [each for each in Stage if not each.is_over] == [Stage.SCHEDULING, Stage.RUNNING]


@pytest.mark.parametrize(
    ("stage", "message", "words"),
    [
        (Stage.CANCELED, "", "was cancelled. Models that it published before stay"),
        (Stage.DELETED, "", "was deleted"),
        (Stage.ERROR, "Job timeout", "at its timeout (Job timeout). Start it again with a larger"),
        (Stage.ERROR, "Job evicted", "failed (Job evicted). The last lines of its log say why"),
        (Stage.ERROR, "", "The Job failed. The last lines"),
    ],
)
def test_every_end_before_the_conversions_is_a_sentence_with_a_remedy(stage, message, words):
    assert words in why_it_ended(make_job(stage=stage, message=message))
