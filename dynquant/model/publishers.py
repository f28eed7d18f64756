"""Well-known accounts on the Hub that publish models of their own.

Quants of their models carry the model's name alone, as `Qwen3-8B-MLX-4.5bpw`. Quants of all other
models carry the author too: otherwise a quant of `somebody/Qwen3-8B` could take the name of the
quant of Qwen's model.
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
"""In lower case, since the Hub ignores case in names.

Accounts that re-upload models of others, such as NousResearch, are not listed, so that no two
accounts here have the same model. Former names of accounts, such as THUDM, are not listed either:
the Hub redirects them only until another account takes the name.
"""


def is_well_known(author: str) -> bool:
    """Whether the account `author` is on the list."""
    return author.lower() in _WELL_KNOWN
