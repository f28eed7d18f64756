from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest

from dynquant.report.running import lm_studio_url, run_lines, use_section
from tests.report.card_factories import make_facts, make_text

LOCAL = "http://127.0.0.1:8811"


def seeing(*runtimes: str):
    facts = make_facts(1)
    tower = facts.num_parameters // 4
    return replace(facts, runtimes=runtimes, num_tower_parameters=tower, tower_bytes=2 * tower)


def commands(facts, repo_id: str | None, **options: str) -> list[str]:
    return [line.command for line in run_lines(facts, repo_id, **options)]


def test_a_published_model_is_run_by_its_repo_and_first_in_lm_studio():
    assert commands(make_facts(1), "me/x") == [
        "lms get https://huggingface.co/me/x",
        "mlx_lm.chat --model me/x",
        'mlx_lm.generate --model me/x --prompt "Why is the sky blue?"',
        "mlx_lm.server --model me/x --port 8080",
    ]
    section = use_section(make_facts(1), "me/x")
    assert "[Open in LM Studio](lmstudio://open_from_hf?model=me/x)" in section
    assert 'load("me/x")' in section
    assert "is a folder here" not in section


def test_lines_for_another_hub_point_the_tools_at_it_and_leave_lm_studio_out():
    for line in commands(seeing("mlx-vlm", "mlx-lm"), "me/x", hub_url=f"{LOCAL}/"):
        assert line.startswith(f"HF_ENDPOINT={LOCAL} mlx_")
    section = use_section(make_facts(1), "me/x", hub_url=LOCAL)
    assert "LM Studio" not in section
    assert f'os.environ["HF_ENDPOINT"] = "{LOCAL}"' in section


def test_a_folder_is_run_by_its_name_and_no_hub_is_asked():
    for hub_url in ("https://huggingface.co", LOCAL):
        section = use_section(make_facts(1), None, hub_url=hub_url)
        assert "\nmlx_lm.chat --model Qwen3-0.6B-MLX-4.5bpw\n" in section
        assert "is a folder here" in section
        assert "HF_ENDPOINT" not in section
        assert "LM Studio" not in section


def test_a_model_that_sees_is_asked_about_an_image_before_it_is_asked_about_a_text():
    both = commands(seeing("mlx-vlm", "mlx-lm"), "you/m")
    assert both[1].startswith("mlx_vlm.generate --model you/m --image photo.jpg")
    assert both[2] == "mlx_lm.chat --model you/m"
    alone = use_section(seeing("mlx-vlm"), "you/m")
    assert "mlx_lm" not in alone
    assert 'mlx_vlm.generate --model you/m --prompt "Why' in alone


@pytest.mark.parametrize(
    ("chats", "can_chat"),
    [
        ({"num_chats": 40}, False),
        ({"num_chats": 40, "num_chats_formatted": 40}, True),
        ({"num_chats": 40, "chat_refusal": "Roles must alternate."}, True),
        ({}, True),
    ],
)
def test_a_model_without_a_chat_template_is_not_chatted_with(chats, can_chat):
    facts = make_facts(1, calibration=replace(make_text("chats", "a"), **chats))
    assert any("mlx_lm.chat" in line for line in commands(facts, "me/x")) is can_chat
    opened = use_section(facts, "me/x").split("<details>")[0]
    assert ("mlx_lm.generate" in opened) is not can_chat


def test_a_hostile_name_is_one_word_for_the_shell_and_a_text_for_python():
    name = 'a"; rm -rf ~; $(x)'
    facts = make_facts(1, name=name)
    assert all(name in shlex.split(line) for line in commands(facts, None))
    assert 'load("a\\"; rm -rf ~; $(x)")' in use_section(facts, None)
    assert lm_studio_url("me/x](http://evil)") == ""


@pytest.mark.parametrize("hub_url", ["https://huggingface.co", LOCAL])
def test_the_python_example_is_python(hub_url):
    section = use_section(make_facts(1), "me/x", hub_url=hub_url)
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    compile(example, "card", "exec")
