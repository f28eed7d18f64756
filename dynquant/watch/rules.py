"""Decides which new models are converted: fixed limits first, then the operator's rules.

No rule can switch the fixed limits off. Of the rules the first that matches wins.

A list entry of the Hub has fewer fields than the model's own page. A missing field never excludes
a model: a model that its list entry does not exclude is decided again with all fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from dynquant.model.candidate import Candidate
from dynquant.model.originals import is_low_precision, is_quant_name, quantized_from_tags
from dynquant.watch.config import Rule, WatchConfig
from dynquant.watch.skips import Skip

__all__ = ["Decision", "decide", "may_cover"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The decision about a model.

    Attributes:
        rule: Name of the rule that took it, or that came closest; empty if no rule covers it.
        skip: Why it is not queued; None if it is.
        others: The rules that did not take it, each with its reason.
        targets_bpw: Bits per weight of its quants.
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
        return self.skip.sentence

    def skipped(self, skip: Skip) -> Decision:
        """The same model, skipped for a reason that was found after a rule had taken it."""
        return replace(self, skip=skip, targets_bpw=())


_OPT_OUT_TAGS = frozenset({"no-quantize", "no-quantization", "dynquant:false"})
_OWN_TAG = "dynquant"
_QUANT_TAGS = frozenset(
    {
        *("gguf", "ggml", "llama.cpp", "gptq", "awq", "exl2", "exl3", "mlx", "mlx-my-repo"),
        *("bitsandbytes", "bnb", "quantized", "aqlm", "hqq", "eetq", "quip", "quanto"),
        *("auto-round", "autoround", "onnx", "openvino", "coreml", "ctranslate2"),
    }
)
_PRECISION_TAGS = frozenset(
    {"compressed-tensors", "fp8", "mxfp4", "modelopt", *(f"{bits}-bit" for bits in range(1, 9))}
)
"""The Hub gives them to quants and to originals in low precision: the config tells which."""
_ADAPTER_TAGS = frozenset({"adapter", "lora", "qlora", "dora", "peft"})
_ADAPTER_FILE = "adapter_config.json"
_ADAPTER_OF = "base_model:adapter:"
_SAFETENSORS_TAG = "safetensors"

_NO_DERIVATIVES = re.compile(r"(?:^|-)nd(?:-|$)")
"""Every Creative Commons license with ND in its name: `cc-by-nd-4.0`, `cc-by-nc-nd-3.0`."""
_UNKNOWN_LICENSES = frozenset({"", "other", "unknown"})

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


def decide(candidate: Candidate, config: WatchConfig, *, now: datetime) -> Decision:
    """The rule that takes the model, or the reason why no rule does.

    A model that is skipped by its list entry would be skipped with all fields as well.
    """
    repo_id = candidate.repo_id
    if (skip := _fixed_limit(candidate, config)) is not None:
        return Decision(repo_id=repo_id, skip=skip)
    against: list[tuple[str, Skip]] = []
    for rule in config.rules:
        skip = next(_against_rule(candidate, rule, now), None)
        if skip is None:
            return Decision(repo_id=repo_id, rule=rule.name, others=tuple(against))
        against.append((rule.name, skip))
    # The most useful reason to show: that of the first rule which covers the model at all.
    name, skip = next((each for each in against if each[1] is not Skip.NOT_COVERED), ("", None))
    return Decision(
        repo_id=repo_id, rule=name, skip=skip or Skip.NOT_COVERED, others=tuple(against)
    )


def may_cover(repo_id: str, config: WatchConfig) -> bool:
    """Whether a rule may cover a repo of this name."""
    author = repo_id.partition("/")[0].lower()
    return not _is_opted_out(repo_id, author, config) and any(
        (not rule.authors or author in map(str.lower, rule.authors))
        and rule.search.lower() in repo_id.lower()
        for rule in config.rules
    )


def _fixed_limit(candidate: Candidate, config: WatchConfig) -> Skip | None:
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
    """The reasons for which `rule` does not take the model; those that may pass come last."""
    if not _is_covered(candidate, rule):
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


def _is_covered(candidate: Candidate, rule: Rule) -> bool:
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
        and (candidate.sources in rule.sources or not candidate.is_whole)
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
    """Whether somebody made it of another model, perhaps of their own, which is then the source."""
    tags = {*map(str.lower, candidate.tags), candidate.library.lower()}
    is_unknown = not candidate.is_whole
    return (
        not _QUANT_TAGS.isdisjoint(tags)
        or bool(quantized_from_tags(candidate.tags))
        or is_quant_name(candidate.repo_id)
        or bool(candidate.form and not is_low_precision(candidate.form))
        or not (candidate.form or is_unknown or _PRECISION_TAGS.isdisjoint(tags))
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
    """Whether the file names announce more shards than there are."""
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
