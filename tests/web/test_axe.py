"""axe-core finds no serious barrier on any page, light or dark.

It is no Python package: `npm pack axe-core`, unpack it, set DYNQUANT_AXE to its `axe.min.js`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.web.browser import settled
from tests.web.scene import SOURCE, opened, populated, swept

AXE = os.environ.get("DYNQUANT_AXE", "")
RULES = Path(__file__).parents[2] / "space_config" / "watch.yaml"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.hub,
    pytest.mark.skipif(not AXE, reason="DYNQUANT_AXE names no axe.min.js"),
]

FINDINGS = """() => axe.run().then((found) => found.violations
  .filter((each) => ["serious", "critical"].includes(each.impact))
  .map((each) => `${each.id}: ${each.nodes.map((node) => node.failureSummary).join(" | ")}`))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    rules = RULES.read_text(encoding="utf-8")
    with opened(tmp_path_factory.mktemp("axe"), rules=rules) as field:
        jobs = populated(field)
        swept(field)
        paths = ["", f"?model={SOURCE}&bpw=4.5", "?model=team/none", "board", "gallery", "watcher"]
        yield field, [*paths, "help", *(f"job?job={job_id}" for job_id in jobs.values())]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_no_page_has_a_serious_barrier(pages, browser, scheme, width):
    field, paths = pages
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    found = {}
    for path in paths:
        settled(page, f"{field.url}/{path}")
        page.locator("h1").first.wait_for()
        page.get_by_text("Looking").wait_for(state="hidden")
        for name in ("Advanced", "The card"):
            for button in page.get_by_role("button", name=name).all():
                button.click()
        page.add_script_tag(content=Path(AXE).read_text(encoding="utf-8"))
        if barriers := page.evaluate(FINDINGS):
            found[path] = barriers
    page.close()
    assert found == {}
