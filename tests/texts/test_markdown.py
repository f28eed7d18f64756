from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dynquant.texts.markdown import DASH, clean, code, escape, fenced, folded, link, table

RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = st.text(alphabet=st.sampled_from("`*_[]()<>|#!&\\~$@:/.-+=1a \n\t'\"{}\u202e\ud800é"))
ANY_TEXT = st.text() | HOSTILE


@given(ANY_TEXT)
def test_escaped_text_renders_as_the_words_themselves(text):
    words = clean(text)
    rendered = RENDERER.render(escape(text)).strip()
    assert rendered == (f"<p>{html.escape(words).replace('&#x27;', chr(39))}</p>" if words else "")


@given(ANY_TEXT)
def test_a_code_span_renders_as_one_code_span(text):
    rendered = RENDERER.render(code(text))
    expected = html.escape(clean(text))
    assert html.unescape(rendered) == html.unescape(
        f"<p><code>{expected}</code></p>\n" if expected else f"<p>{DASH}</p>\n"
    )


@given(ANY_TEXT, ANY_TEXT)
def test_text_stays_within_its_table_cell(first, second):
    rendered = RENDERER.render(
        table(("A", "B"), [(escape(first) or DASH, code(second))], align="lr")
    )
    assert rendered.count("<tr>") == 2
    assert len(re.findall("<td", rendered)) == 2


@given(st.lists(ANY_TEXT, min_size=1))
def test_a_fence_holds_every_line(lines):
    rendered = RENDERER.render(fenced(lines, "bash"))
    assert rendered.count("<pre>") == rendered.count("</pre>") == 1
    assert rendered.startswith("<pre><code")
    assert rendered.rstrip().endswith("</code></pre>")


def test_spaces_within_a_line_of_code_are_kept():
    assert fenced(["say  'a  b'"], "bash") == "```bash\nsay  'a  b'\n```"


@given(ANY_TEXT, ANY_TEXT)
def test_only_a_plain_web_address_becomes_a_link(text, url):
    for target in (url, f"https://{url}", f"javascript:{url}"):
        rendered = RENDERER.render(f"x {link(text, target)}")
        for href in re.findall(r'href="([^"]*)"', rendered):
            assert href.startswith("https://")
    assert link("a", "https://example.org/x?y=1#z") == "[a](https://example.org/x?y=1#z)"
    assert link("a", "https://example.org/x) [b](javascript:c") == "a"


@pytest.mark.parametrize("text", ["https://evil.example", "www.evil.example", "a@b.example"])
def test_nothing_is_left_for_automatic_links(text):
    assert not re.search(r"://|www\.|@", escape(text))


@pytest.mark.parametrize("text", ["- a", "+ a", "* a", "1. a", "12) a", "# a", "> a", "---", "==="])
def test_a_line_start_is_only_text(text):
    assert RENDERER.render(f"- {escape(text)}").count("<li>") == 1
    assert RENDERER.render(escape(text)) == f"<p>{html.escape(text)}</p>\n"


def test_ordinary_words_are_left_alone():
    words = "4.50 bits per weight, 27 % of the original (bfloat16): Qwen3-8B; it's fine"
    assert escape(words) == words


def test_clean_drops_what_cannot_be_seen():
    assert clean(" a\u202eb\x00c\n\nd\ud800 \u2028e ") == "a b c d e"


def test_folded_content_is_still_markdown():
    rendered = RENDERER.render(folded("All <3> layers", table(("A",), [("`b`",)], align="l")))
    assert "<details>" in rendered
    assert "<summary>All &#60;3&#62; layers</summary>" in rendered
    assert "<td><code>b</code></td>" in rendered
