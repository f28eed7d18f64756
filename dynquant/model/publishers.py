"""Accounts on the Hub that publish models of their own under names that people know them by.

Quants of their models carry the model's name alone, as `Qwen3-8B-MLX-4.5bpw`. Quants of all other
models carry the author too, or whoever asks first for a quant of `somebody/Qwen3-8B` would take
the name that belongs to Qwen's.
"""

from __future__ import annotations

__all__ = ["is_well_known"]

_WELL_KNOWN = frozenset(
    {
        "01-ai", "ai21labs", "allenai", "apple", "arcee-ai", "baidu", "bigcode", "bigscience",
        "bytedance-seed", "coherelabs", "databricks", "deepseek-ai", "eleutherai",
        "facebook", "google", "huggingfacetb", "ibm-granite", "inclusionai", "internlm",
        "lgai-exaone", "liquidai", "meta-llama", "microsoft", "minimaxai", "mistralai",
        "moonshotai", "nvidia", "openai", "openai-community", "openbmb",
        "primeintellect", "qwen", "rednote-hilab", "salesforce", "sarvamai", "servicenow-ai",
        "snowflake", "stabilityai", "state-spaces", "stepfun-ai", "swiss-ai", "tencent",
        "tiiuae", "tinyllama", "upstage", "utter-project", "xai-org", "xiaomimimo", "zai-org",
    }
)  # fmt: skip
"""In lower case: the Hub does not tell names apart by case.

None of them re-uploads models of others, as NousResearch does, so that no two would have the same
model. None is a name that an account gave up, as THUDM: the Hub leads from there to the new name
until somebody else takes the old one.
"""


def is_well_known(author: str) -> bool:
    """Whether the account `author` is one of them."""
    return author.lower() in _WELL_KNOWN
