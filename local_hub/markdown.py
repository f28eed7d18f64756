"""A card as HTML."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

from markdown_it import MarkdownIt

from local_hub.cards import split_front_matter

# The card's own HTML stays as it is; what it may do is for the page's security policy to say.
_markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
_TAG = re.compile(r"<[A-Za-z][^<>]*>")
_URL_ATTRIBUTE = re.compile(r"""(?<![\w-])(src|srcset|href)=(["'])(.*?)\2""", re.DOTALL)
_ALIGNMENT = re.compile(r'style="text-align:(left|center|right)"')


def card_html(text: str, *, files_url: str) -> str:
    """The Markdown of a card, without its YAML.

    Args:
        text: The whole README.md.
        files_url: Base of relative links and pictures, with a slash at its end.
    """
    _, body = split_front_matter(text)
    rendered: str = _markdown.render(body)
    return _TAG.sub(lambda tag: _mended(tag[0], files_url), rendered)


def _mended(tag: str, files_url: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        name, quote, value = found.groups()
        if name == "srcset":
            candidates = [candidate.split() for candidate in value.split(",")]
            value = ", ".join(
                " ".join([_from(files_url, url), *rest]) for url, *rest in filter(None, candidates)
            )
        else:
            value = _from(files_url, value)
        return f"{name}={quote}{value}{quote}"

    # The columns of a Markdown table say so by a style, and the page allows none in its HTML.
    return _ALIGNMENT.sub(r'align="\1"', _URL_ATTRIBUTE.sub(replaced, tag))


def _from(files_url: str, url: str) -> str:
    if url.startswith(("#", "/")) or urlsplit(url).scheme:
        return url
    return urljoin(files_url, url)
