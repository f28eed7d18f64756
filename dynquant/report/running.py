"""How to run a finished model: lines for a terminal, and the address that opens LM Studio."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynquant.report.facts import ModelFacts
from dynquant.report.front_matter import REPO_ID
from dynquant.report.hub_address import HUB_URL, is_hugging_face, pointed_at
from dynquant.texts.markdown import clean, code, fenced, folded

__all__ = ["RunLine", "lm_studio_url", "run_lines", "use_section"]

_PROMPT = '--prompt "Why is the sky blue?"'


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A line for a terminal.

    Attributes:
        purpose: Its result, such as `Chat in a terminal`.
        package: The Python package that has the command; empty for LM Studio's own.
        command: The line.
        is_first_choice: Whether a card shows it unfolded.
    """

    purpose: str
    package: str
    command: str
    is_first_choice: bool = True


def lm_studio_url(repo_id: str, *, hub_url: str = HUB_URL) -> str:
    """The address that opens a published model in LM Studio; empty for a model of another Hub."""
    if not (is_hugging_face(hub_url) and REPO_ID.fullmatch(repo_id)):
        return ""
    return f"lmstudio://open_from_hf?model={repo_id}"


def run_lines(
    facts: ModelFacts, repo_id: str | None, *, hub_url: str = HUB_URL
) -> tuple[RunLine, ...]:
    """The lines that run a model, the most comfortable first.

    Args:
        facts: The model.
        repo_id: Repo that it is published as; None for a folder named as the model.
        hub_url: The Hub that the repo is on; the tools are pointed at any but huggingface.co.
    """
    model = shlex.quote(clean(repo_id or facts.name))
    lines = []
    if repo_id and lm_studio_url(repo_id, hub_url=hub_url):
        download = f"lms get {HUB_URL}/{repo_id}"
        lines.append(RunLine(purpose="Download it for LM Studio", package="", command=download))
    if facts.sees:
        question = '--image photo.jpg --max-tokens 256 --prompt "What is in this image?"'
        lines.append(_vlm("Ask about an image", f"{model} {question}"))
    if "mlx-lm" not in facts.runtimes:
        lines.append(_vlm("Ask about a text", f"{model} {_PROMPT}"))
    else:
        lines += _text_lines(model, has_chat=_has_chat_template(facts))
    if repo_id is None:
        return tuple(lines)
    return tuple(replace(each, command=pointed_at(hub_url, each.command)) for each in lines)


def use_section(facts: ModelFacts, repo_id: str | None, *, hub_url: str = HUB_URL) -> str:
    """The section of a card on how to run the model."""
    lines = run_lines(facts, repo_id, hub_url=hub_url)
    first = [each for each in lines if each.is_first_choice]
    more = [_block(each) for each in lines if not each.is_first_choice]
    if "mlx-lm" in facts.runtimes:
        name = clean(repo_id or facts.name)
        python = fenced(_python(name, hub_url if repo_id else HUB_URL), "python")
        more.append(f"In Python:\n\n{python}")
    parts = [
        "## Use",
        _where(facts, repo_id, hub_url),
        *map(_block, first),
        folded("More ways to run it", "\n\n".join(more)) if more else "",
    ]
    return "\n\n".join(filter(None, parts))


def _where(facts: ModelFacts, repo_id: str | None, hub_url: str) -> str:
    if repo_id is None:
        return (
            f"{code(facts.name)} is a folder here; for the published model, put its repo id in its "
            "place."
        )
    url = lm_studio_url(repo_id, hub_url=hub_url)
    return f"**[Open in LM Studio]({url})**" if url else ""


def _block(line: RunLine) -> str:
    install = f" (`pip install {line.package}`)" if line.package else ""
    return f"{line.purpose}{install}:\n\n{fenced((line.command,), 'bash')}"


def _vlm(purpose: str, arguments: str) -> RunLine:
    command = f"mlx_vlm.generate --model {arguments}"
    return RunLine(purpose=purpose, package="mlx-vlm", command=command)


def _text_lines(model: str, *, has_chat: bool) -> list[RunLine]:
    chat, answer, server = (
        RunLine(purpose=purpose, package="mlx-lm", command=command, is_first_choice=is_first)
        for purpose, command, is_first in (
            ("Chat in a terminal", f"mlx_lm.chat --model {model}", True),
            ("One answer", f"mlx_lm.generate --model {model} {_PROMPT}", not has_chat),
            (
                "A server with an OpenAI-compatible API at http://localhost:8080/v1",
                f"mlx_lm.server --model {model} --port 8080",
                False,
            ),
        )
    )
    return [chat, answer, server] if has_chat else [answer, server]


def _has_chat_template(facts: ModelFacts) -> bool:
    """Whether the model has a chat template, which a chat needs; True where it is unknown."""
    text = facts.calibration
    return not text.num_chats or bool(text.num_chats_formatted or text.chat_refusal)


def _python(name: str, hub_url: str) -> Sequence[str]:
    there = (
        ()
        if is_hugging_face(hub_url)
        else ("import os", "", f'os.environ["HF_ENDPOINT"] = {json.dumps(hub_url.rstrip("/"))}', "")
    )
    return (
        *there,
        "from mlx_lm import generate, load",
        "",
        f"model, tokenizer = load({json.dumps(name, ensure_ascii=False)})",
        'prompt = "Why is the sky blue?"',
        "if tokenizer.chat_template is not None:",
        '    messages = [{"role": "user", "content": prompt}]',
        "    prompt = tokenizer.apply_chat_template(",
        "        messages,",
        "        add_generation_prompt=True,",
        "        return_dict=False,",
        "    )",
        "print(generate(model, tokenizer, prompt=prompt, max_tokens=256))",
    )
