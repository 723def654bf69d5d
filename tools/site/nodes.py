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


def link(text: str, uri: str) -> nodes.reference:
    return nodes.reference("", "", literal(text), internal=True, refuri=uri)


def block(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="none")


def section(title: str, ids: Sequence[str], indexed: Sequence[str] = ()) -> nodes.section:
    """Return a section; *indexed* are the words by which index and search find it."""
    made = nodes.section("", ids=list(ids))
    made += nodes.title(title, title)
    entries = [("single", word, ids[0], "", None) for word in indexed]
    if entries:
        made += addnodes.index(entries=entries)
    return made


def table(header: Sequence[str], rows: Iterable[Sequence[Inline | Sequence[Inline]]],
          name: str) -> nodes.table:
    """Return a table; a cell is text, or a sequence of texts and nodes. *name* is its class."""
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    head = nodes.thead()
    head += row(header)
    body = nodes.tbody()
    body += [row(cells) for cells in rows]
    group += [head, body]
    made = nodes.table(classes=[name, "colwidths-auto"])
    made += group
    return made


def row(cells: Sequence[Inline | Sequence[Inline]]) -> nodes.row:
    made = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        parts = [cell] if isinstance(cell, str | nodes.Node) else cell
        entry += paragraph(*parts)
        made += entry
    return made
