"""The sections of a card on the source and the making of a model."""

from __future__ import annotations

import re

from dynquant.report.facts import ModelFacts, TextFacts
from dynquant.report.front_matter import LICENSE_KEYS, REPO_ID
from dynquant.report.hub_address import pointed_at
from dynquant.texts.markdown import DASH, clean, code, escape, fenced, folded, link, table

__all__ = ["license_section", "making_section", "source_link"]

_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")

_METHODS = {
    "fisher": (
        "the cost of each format of each layer, in nats of KL divergence, from the Fisher "
        "information of its outputs and the second moments of its inputs"
    ),
    "block_output": (
        "the error of each block's output. This is the fallback for a model whose blocks cannot "
        "be differentiated; it ignores how much a block matters for the result"
    ),
    "alignment": (
        "the alignment of the gradient of the loss with the quantization error of a layer, with "
        "two bit widths"
    ),
}
_ENCODERS = {
    "gptq": "weighted least squares for scales and biases, then error feedback (GPTQ)",
    "wls": "scales and biases by least squares, weighted by the inputs of the layer",
    "minmax": "scales and biases from the smallest and largest weight of a group",
}


def source_link(facts: ModelFacts, *, hub_url: str) -> str:
    """The original, linked where it is a repo."""
    if _is_linkable(facts):
        return link(facts.source, f"{hub_url}/{facts.source}")
    return code(facts.source)


def making_section(facts: ModelFacts, repo_id: str | None, *, hub_url: str) -> str:
    """Source, method, texts and versions, and the command that makes the model again."""
    versions = ", ".join(
        f"{escape(tool)} {escape(version)}" for tool, version in sorted(facts.versions.items())
    )
    rows = (
        ("Source", source_link(facts, hub_url=hub_url)),
        ("Revision", _revision(facts, hub_url)),
        ("Family", code(facts.model_type)),
        ("Layers chosen by", _explained(facts.method, _METHODS)),
        ("Encoder", _explained(facts.encoder, _ENCODERS)),
        ("Calibration text", _text_facts(facts.calibration)),
        *_calibration_images(facts),
        ("Evaluation text", _text_facts(facts.evaluation)),
        ("Seed", str(facts.seed)),
        ("Versions", versions or DASH),
    )
    parts = (
        table(("", ""), rows, align="ll"),
        "The same model again:",
        fenced((_command(facts, hub_url),), "bash"),
        _files_note(facts),
        _check_note(facts, repo_id or "", hub_url),
    )
    content = folded("Source, method, texts and versions", "\n\n".join(filter(None, parts)))
    return f"## How it was made\n\n{content}"


def license_section(facts: ModelFacts, *, hub_url: str) -> str:
    """Section on the original's license and terms, which hold for this model too."""
    fields = {key: clean(facts.license_fields.get(key, "")) for key in LICENSE_KEYS}
    named = [escape(value) for value in (fields["license"], fields["license_name"]) if value]
    sentences = [
        f"The license of the original holds for this model too: {', '.join(named)}."
        if named
        else "The original names no license; ask its authors before you rely on it."
    ]
    if target := fields["license_link"]:
        sentences.append(f"Its text: {link(target, target) if '://' in target else code(target)}.")
    if facts.gated:
        sentences.append(
            "Access to the original is gated: on the Hub its authors let in those who agree to "
            "their terms, which hold for this model too."
        )
    if _is_linkable(facts):
        sentences.append(
            "Intended use, languages and limits are on the "
            f"{link('card of the original', f'{hub_url}/{facts.source}')}."
        )
    return f"## License\n\n{' '.join(sentences)}"


def _command(facts: ModelFacts, hub_url: str) -> str:
    return pointed_at(hub_url, facts.command) if facts.source_is_repo else facts.command


def _revision(facts: ModelFacts, hub_url: str) -> str:
    if _is_linkable(facts) and _COMMIT_SHA.fullmatch(facts.revision_sha):
        sha = facts.revision_sha
        return f"[`{sha}`]({hub_url}/{facts.source}/tree/{sha})"
    return code(facts.revision_sha)


def _explained(name: str, explanations: dict[str, str]) -> str:
    return f"{code(name)}: {explanations[name]}" if name in explanations else code(name)


def _text_facts(text: TextFacts) -> str:
    parts = (
        f"{code(text.name)}, {text.num_tokens:,} tokens in windows of {text.window_tokens:,}",
        _chat_facts(text),
        f"sha256 {code(text.sha256)}",
    )
    return ", ".join(filter(None, parts))


def _calibration_images(facts: ModelFacts) -> list[tuple[str, str]]:
    images = facts.calibration_images
    if images is None:
        return []
    said = f"{code(images.name)}, questions about {images.num_images:,} images"
    return [("Calibration images", f"{said}, sha256 {code(images.sha256)}")]


def _chat_facts(text: TextFacts) -> str:
    """The number of chats of a text that the model's chat template formatted."""
    if not text.num_chats:  # or by a version that did not count chats
        return "in the model's chat format" if text.chat_formatted else ""
    chats = f"{text.num_chats:,} chat{'' if text.num_chats == 1 else 's'}"
    if not (text.num_chats_formatted or text.chat_refusal):
        return f"{chats} as plain text, since the model has no chat template"
    said = f"{text.num_chats_formatted:,} of {chats} through the model's chat template"
    if text.template_date:
        said += f" with the date {escape(text.template_date)}"
    if text.num_chats_formatted < text.num_chats:
        said += f", the others as plain text; the template refused: {code(text.chat_refusal)}"
    return said


def _files_note(facts: ModelFacts) -> str:
    costs = ", `dynquant/cost_table.json` the cost of every format"
    return (
        "In this repo `dynquant/plan.json` holds the format of every layer"
        f"{'' if facts.method == 'alignment' else costs}, and `dynquant/report.json` all figures."
    )


def _check_note(facts: ModelFacts, repo_id: str, hub_url: str) -> str:
    if not REPO_ID.fullmatch(repo_id):
        return ""
    plan = f"[`dynquant/plan.json`]({hub_url}/{repo_id}/blob/main/dynquant/plan.json)"
    return (
        f"To check a download: its `config.json` gives every layer the format that {plan} lists, "
        f"{facts.plan.stored_bpw:.3f} bits per weight in all."
    )


def _is_linkable(facts: ModelFacts) -> bool:
    return facts.source_is_repo and REPO_ID.fullmatch(facts.source) is not None
