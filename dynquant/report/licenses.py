"""Licenses by their ids in a card's metadata, and `other` with a name for the rest."""

from __future__ import annotations

import re

__all__ = ["HUB_LICENSES", "on_the_hub"]

_IDS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m
bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause
bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc
h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""

HUB_LICENSES = frozenset(_IDS.split())
"""Ids that the Hub's `validate-yaml` accepts. A license added later is written as `other`.

Source: its own answer, in huggingface/huggingface_hub#4218.
"""

_OTHER = "other"
_MAX_NAME_CHARS = 100


def on_the_hub(text: str) -> tuple[list[str], str]:
    """The ids of a license, or of several with commas, and a name for licenses without an id.

    The Hub refuses a whole commit for an id that is not on its list.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    ids = [name.lower() if name.lower() in HUB_LICENSES else _OTHER for name in names]
    unknown = "-".join(name for name in names if name.lower() not in HUB_LICENSES)
    slug = re.sub(r"[^a-z0-9.+]+", "-", unknown.lower())[:_MAX_NAME_CHARS].strip("-")
    return list(dict.fromkeys(ids)), slug
