"""Which new models are converted, and why the others are not: rules of an operator, and manners.

Manners always apply; no rule can switch them off. Of the rules the first that matches wins.

A list of the Hub tells less of a model than its own page. What is not known yet never speaks
against a model: whoever is not ruled out by the list is looked at once more with everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from dynquant.model.candidate import Candidate
from dynquant.watch.skips import EXPLANATIONS, Skip

__all__ = [
    "Decision",
    "Rule",
    "WatchConfig",
    "decide",
    "may_cover",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which models to take, and what to make of them. Empty criteria take everything.

    Attributes:
        authors: Users or organizations.
        search: Part of the repo id, in any case.
        tags: All of them must be there.
        without_tags: None of them may be there.
        pipeline_tags: One of them.
        architectures: One of them: a class of the config, or a `model_type`.
        licenses: The licenses that are taken; any known one if empty.
        unknown_license: Whether a model without a known license is taken.
        min_age_hours: Since it was created.
        gated: Whether gated models are taken.
        bpw: Targets in stored bits per weight, unless sizes are given.
        memory_bytes: Memory sizes to serve, each with the bits per weight that fit.
        destination: Namespace or name template to publish to.
        priority: Within a sweep the lower is queued first.
        gb_per_day: What may be published within 24 hours.
        hours_per_day: Work that may be queued within 24 hours, estimated.
        mention: Whether one discussion is opened at a model once its quants are published.
    """

    name: str
    destination: str
    authors: tuple[str, ...] = ()
    search: str = ""
    tags: tuple[str, ...] = ()
    without_tags: tuple[str, ...] = ()
    pipeline_tags: tuple[str, ...] = ("text-generation",)
    architectures: tuple[str, ...] = ()
    min_parameters: int = 0
    max_parameters: int | None = None
    licenses: tuple[str, ...] = ()
    licenses_refused: tuple[str, ...] = ()
    unknown_license: bool = False
    min_likes: int = 0
    min_downloads: int = 0
    min_trending: float = 0
    min_age_hours: float = 0
    max_age_hours: float | None = None
    gated: bool = False
    bpw: tuple[float, ...] = ()
    memory_bytes: tuple[int, ...] = ()
    private: bool = False
    priority: int = 10
    max_per_sweep: int = 5
    gb_per_day: float | None = None
    hours_per_day: float | None = None
    mention: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """What an operator asks for.

    Attributes:
        rules: The first that matches wins.
        look_back_hours: How far back the first sweep goes.
        min_parameters: Models below are toys, whatever the rules say.
        opt_out: Users, organizations and repos that do not want to be converted.
        hours_per_billion: Work that a model takes per 10⁹ parameters, to estimate hours by.
    """

    rules: tuple[Rule, ...]
    look_back_hours: float = 24
    min_parameters: int = 100_000_000
    opt_out: tuple[str, ...] = ()
    hours_per_billion: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a model.

    Attributes:
        rule: Name of the rule that took it, or of the one that came closest; empty if none covers
            it.
        skip: Why it is not queued; None if it is.
        others: The rules that did not take it, with what each had against it.
        targets_bpw: What is made of it.
    """

    repo_id: str
    rule: str = ""
    skip: Skip | None = None
    others: tuple[tuple[str, Skip], ...] = ()
    targets_bpw: tuple[float, ...] = ()

    @property
    def sentence(self) -> str:
        """Why, in words."""
        if self.skip is None:
            return f"Rule '{self.rule}' takes it."
        return EXPLANATIONS[self.skip]

    def skipped(self, skip: Skip) -> Decision:
        """The same model, for which a reason was found after its rule had taken it."""
        return replace(self, skip=skip, targets_bpw=())


_OPT_OUT_TAGS = frozenset({"no-quantize", "no-quantization", "dynquant:false"})
_OWN_TAG = "dynquant"
_QUANT_TAGS = frozenset(
    {
        *("gguf", "ggml", "llama.cpp", "gptq", "awq", "exl2", "exl3", "mlx", "mlx-my-repo"),
        *("bitsandbytes", "bnb", "compressed-tensors", "quantized", "aqlm", "hqq", "eetq", "quip"),
        *("quanto", "auto-round", "autoround", "onnx", "openvino", "coreml", "ctranslate2"),
        *(f"{bits}-bit" for bits in range(1, 9)),
    }
)
_QUANT_NAME = re.compile(
    r"(?:^|[-_.])(?:gguf|ggml|gptq|awq|exl[23]|mlx|bnb|onnx|w[48]a(?:8|16)|(?:int|fp|nvfp|mxfp|nf)[48]"
    r"|[1-8]-?bits?|[\d.]+bpw|i?q[1-8]_[\dk]\w*)(?:$|[-_.])",
    re.IGNORECASE,
)
_ADAPTER_TAGS = frozenset({"adapter", "lora", "qlora", "dora", "peft"})
_ADAPTER_FILE = "adapter_config.json"
_QUANT_OF = "base_model:quantized:"
_ADAPTER_OF = "base_model:adapter:"
_SAFETENSORS_TAG = "safetensors"

_NO_DERIVATIVES = re.compile(r"(?:^|-)nd(?:-|$)")
"""Every Creative Commons license with ND in its name: `cc-by-nd-4.0`, `cc-by-nc-nd-3.0`."""
_UNKNOWN_LICENSES = frozenset({"", "other", "unknown"})

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


def decide(candidate: Candidate, config: WatchConfig, *, now: datetime) -> Decision:
    """Which rule takes the model, or why none does.

    A model that was only listed and that is skipped for what the list says would be skipped with
    everything known as well.
    """
    repo_id = candidate.repo_id
    if (skip := _against_manners(candidate, config)) is not None:
        return Decision(repo_id=repo_id, skip=skip)
    against: list[tuple[str, Skip]] = []
    for rule in config.rules:
        skip = next(_against_rule(candidate, rule, now), None)
        if skip is None:
            return Decision(repo_id=repo_id, rule=rule.name, others=tuple(against))
        against.append((rule.name, skip))
    # The most telling of them: what is against it in a rule that speaks of such models at all.
    name, skip = next((each for each in against if each[1] is not Skip.NOT_COVERED), ("", None))
    return Decision(
        repo_id=repo_id, rule=name, skip=skip or Skip.NOT_COVERED, others=tuple(against)
    )


def may_cover(repo_id: str, config: WatchConfig) -> bool:
    """Whether some rule may speak of a repo of this name."""
    author = repo_id.partition("/")[0].lower()
    return not _is_opted_out(repo_id, author, config) and any(
        (not rule.authors or author in map(str.lower, rule.authors))
        and rule.search.lower() in repo_id.lower()
        for rule in config.rules
    )


def _against_manners(candidate: Candidate, config: WatchConfig) -> Skip | None:
    checks = (
        (Skip.PRIVATE, candidate.private),
        (Skip.DISABLED, candidate.disabled),
        (Skip.OPTED_OUT, _opts_out(candidate, config)),
        (Skip.OWN_RESULT, _OWN_TAG in candidate.tags),
        (Skip.QUANT, _is_quant(candidate)),
        (Skip.ADAPTER, _is_adapter(candidate)),
        (Skip.NO_SAFETENSORS, _has_no_weights(candidate)),
        (Skip.INCOMPLETE, _lacks_shards(candidate.weights)),
        (Skip.UNKNOWN_SIZE, candidate.is_whole and candidate.num_parameters is None),
        (Skip.TOY, _is_below(candidate.num_parameters, config.min_parameters)),
        (Skip.NO_DERIVATIVES, any(map(_NO_DERIVATIVES.search, _licenses(candidate)))),
    )
    return next((skip for skip, applies in checks if applies), None)


def _against_rule(candidate: Candidate, rule: Rule, now: datetime) -> Iterator[Skip]:
    """What `rule` has against the model: first whether it speaks of it, last what passes."""
    if not _speaks_of(candidate, rule):
        yield Skip.NOT_COVERED
    if candidate.gated and not rule.gated:
        yield Skip.GATED
    if _is_below(candidate.num_parameters, rule.min_parameters):
        yield Skip.TOO_SMALL
    if rule.max_parameters is not None and _is_below(
        rule.max_parameters, candidate.num_parameters or 0
    ):
        yield Skip.TOO_LARGE
    yield from _against_license(candidate, rule)
    # The Hub's clock may be ahead of ours.
    age_hours = max(0.0, (now - candidate.created_at).total_seconds() / 3600)
    if rule.max_age_hours is not None and age_hours > rule.max_age_hours:
        yield Skip.TOO_OLD
    if age_hours < rule.min_age_hours:
        yield Skip.TOO_YOUNG
    if (
        candidate.likes < rule.min_likes
        or candidate.downloads < rule.min_downloads
        or candidate.trending_score < rule.min_trending
    ):
        yield Skip.TOO_UNKNOWN


def _speaks_of(candidate: Candidate, rule: Rule) -> bool:
    tags = set(candidate.tags)
    kinds = {candidate.model_type, *candidate.architectures} - {""}
    return (
        (not rule.authors or _is_among(candidate.author, rule.authors))
        and rule.search.lower() in candidate.repo_id.lower()
        and tags.issuperset(rule.tags)
        and tags.isdisjoint(rule.without_tags)
        and (not rule.pipeline_tags or candidate.pipeline_tag in rule.pipeline_tags)
        and (
            not rule.architectures
            or not kinds.isdisjoint(rule.architectures)
            or not candidate.is_whole
        )
    )


def _against_license(candidate: Candidate, rule: Rule) -> Iterator[Skip]:
    licenses = _licenses(candidate)
    if any(_is_among(each, rule.licenses_refused) for each in licenses):
        yield Skip.LICENSE_REFUSED
    known = [each for each in licenses if each not in _UNKNOWN_LICENSES]
    if not known and not rule.unknown_license:
        yield Skip.LICENSE_UNKNOWN
    if known and rule.licenses and not all(_is_among(each, rule.licenses) for each in known):
        yield Skip.LICENSE_REFUSED


def _opts_out(candidate: Candidate, config: WatchConfig) -> bool:
    return (
        candidate.opted_out
        or not _OPT_OUT_TAGS.isdisjoint(map(str.lower, candidate.tags))
        or _is_opted_out(candidate.repo_id, candidate.author, config)
    )


def _is_opted_out(repo_id: str, author: str, config: WatchConfig) -> bool:
    return _is_among(repo_id, config.opt_out) or _is_among(author, config.opt_out)


def _is_quant(candidate: Candidate) -> bool:
    return (
        candidate.is_quantized
        or not _QUANT_TAGS.isdisjoint(map(str.lower, candidate.tags))
        or any(_after(_QUANT_OF, candidate.tags))
        or candidate.library.lower() in _QUANT_TAGS
        or _QUANT_NAME.search(candidate.repo_id.partition("/")[2]) is not None
    )


def _is_adapter(candidate: Candidate) -> bool:
    return (
        not _ADAPTER_TAGS.isdisjoint(map(str.lower, candidate.tags))
        or any(_after(_ADAPTER_OF, candidate.tags))
        or candidate.library.lower() in _ADAPTER_TAGS
        or (_ADAPTER_FILE in (candidate.files or ()) and not candidate.weights)
    )


def _has_no_weights(candidate: Candidate) -> bool:
    # The Hub gives this tag to every repo that holds such a file.
    return _SAFETENSORS_TAG not in candidate.tags or (candidate.is_whole and not candidate.weights)


def _lacks_shards(weights: Iterable[str]) -> bool:
    """Whether the names say that there are more files than these."""
    shards = [found for found in map(_SHARD.search, weights) if found]
    return bool(shards) and len(shards) < max(int(found[2]) for found in shards)


def _licenses(candidate: Candidate) -> list[str]:
    return [each.lower() for each in _after("license:", candidate.tags)] or [""]


def _after(prefix: str, tags: Iterable[str]) -> Iterator[str]:
    return (tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix))


def _is_among(text: str, others: Iterable[str]) -> bool:
    return text.lower() in {each.lower() for each in others}


def _is_below(number: int | None, bound: int) -> bool:
    return number is not None and number < bound
