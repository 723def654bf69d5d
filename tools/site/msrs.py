# SPDX-License-Identifier: Apache-2.0
"""
The catalog as HTML: what is known about the MSRs of a range, and a table of all of them.

Sphinx takes a minute for thousands of table cells that it knows as such; text is copied.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from kvmsr.cli._kvm import about_kvm
from kvmsr.msr import Msr, MsrField, catalog

VENDORS = {"intel": "Intel", "amd": "AMD", "kvm": "KVM", "hyperv": "Hyper-V"}
ACCESS = {"rw": "read and write", "ro": "read only", "wo": "write only"}


def anchors(entries: Iterable[Msr]) -> Iterator[tuple[Msr, str]]:
    """Return the MSRs with the fragments that lead to them: ``0x1a0``, then ``0x1a0-2``."""
    seen: Counter[int] = Counter()
    for msr in entries:
        seen[msr.index] += 1
        more = f"-{seen[msr.index]}" if seen[msr.index] > 1 else ""
        yield msr, f"{msr.index:#x}{more}"


def indexed(first: int, last: int) -> list[tuple[str, str]]:
    """Return the words by which the search finds MSRs from *first* to *last*, with fragments."""
    found: dict[str, str] = {}
    for msr, anchor in anchors(msr for msr in catalog() if first <= msr.index <= last):
        for word in (f"{msr.index:#x}", msr.name, *msr.aliases):
            found.setdefault(word, anchor)
    return list(found.items())


def page(first: int, last: int) -> str:
    """Return what is known about each MSR from *first* to *last*, behind links to all of them."""
    found = list(anchors(msr for msr in catalog() if first <= msr.index <= last))
    jumps = " ".join(link(anchor, f"#{anchor}") for _, anchor in found if "-" not in anchor)
    return f'<p class="msr-jumps">{jumps}</p>' + "".join(described(*each) for each in found)


def described(msr: Msr, anchor: str) -> str:
    """Return a heading, the description, the facts and the fields of one meaning of an MSR."""
    title = f"{code(f'{msr.index:#x}')} {escape(msr.name)}"
    mark = f'<a class="headerlink" href="#{anchor}" title="Link to this MSR">¶</a>'
    about = f"<p>{escape(msr.about)}</p>" if msr.about else ""
    lines = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for label, text in facts(msr) if text)
    header = ("bits", "field", "kind", "meaning")
    fields = table(header, map(cells, reversed(msr.fields)), "msr") if msr.fields else ""
    return f'<h2 id="{anchor}">{title}{mark}</h2>{about}<dl class="msr">{lines}</dl>{fields}\n'


def facts(msr: Msr) -> list[tuple[str, str]]:
    """Return what is known about an MSR beside its fields, by label."""
    return [
        ("Of", ", ".join(VENDORS[name] for name in msr.vendors)),
        ("CPUs", ", ".join(map(code, msr.cpus))),
        ("Also", ", ".join(map(code, msr.aliases))),
        ("Scope", escape(msr.scope)),
        ("Access", ACCESS.get(msr.access, "")),
        ("Reset", "" if msr.reset is None else code(f"{msr.reset:#x}")),
        ("KVM", "<br>".join(map(escape, about_kvm(msr.index, msr)))),
        ("Sources", escape("; ".join(msr.sources))),
    ]


def cells(field: MsrField) -> Sequence[str]:
    values = ", ".join(f"{number}: {text}" for number, text in field.values.items())
    meaning = "; ".join(part for part in (field.about, values, field.steps) if part)
    return field.span, code(field.name), field.kind, escape(meaning)


def index_table(page_of: Iterable[tuple[int, int, str]]) -> str:
    """
    Return a table of all MSRs, which lead to their descriptions.

    :param page_of: first MSR, last MSR and name of each page.
    """
    pages = list(page_of)

    def cells(msr: Msr, anchor: str) -> Sequence[str]:
        name = next(name for first, last, name in pages if first <= msr.index <= last)
        vendors = ", ".join(VENDORS[vendor] for vendor in msr.vendors)
        return code(f"{msr.index:#x}"), link(msr.name, f"{name}.html#{anchor}"), vendors

    rows = (cells(*found) for found in anchors(catalog()))
    return table(("index", "name", "of"), rows, "msr-index")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], name: str) -> str:
    """Return a table of cells that are HTML; *name* is its class."""
    head = "".join(f"<th>{text}</th>" for text in header)
    body = "\n".join("<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in rows)
    return (
        f'<div class="table-wrapper"><table class="docutils {name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def code(text: str) -> str:
    return f'<code class="docutils literal">{escape(text)}</code>'


def link(text: str, target: str) -> str:
    return f'<a class="reference internal" href="{target}">{code(text)}</a>'
