# SPDX-License-Identifier: Apache-2.0
"""Short ways to say what a page consists of."""

from collections.abc import Iterable, Sequence

from docutils import nodes
from sphinx import addnodes

Inline = str | nodes.Node


def paragraph(*parts: Inline) -> nodes.paragraph:
    made = nodes.paragraph()
    made += inlines(parts)
    return made


def inlines(parts: Iterable[Inline]) -> list[nodes.Node]:
    return [nodes.Text(part) if isinstance(part, str) else part for part in parts]


def literal(text: str) -> nodes.literal:
    return nodes.literal(text, text)


def block(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="none")


def section(title: str, anchor: str, indexed: Sequence[str] = ()) -> nodes.section:
    """Return a section; *indexed* are the words by which the search finds it."""
    made = nodes.section("", ids=[anchor])
    made += [nodes.title(title, title), index((word, anchor) for word in indexed)]
    return made


def index(words: Iterable[tuple[str, str]]) -> addnodes.index:
    """Return what makes the search find words: each with the fragment that it leads to."""
    return addnodes.index(
        entries=[("single", word, anchor, "main", None) for word, anchor in words]
    )


def html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")
