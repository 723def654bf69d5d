# SPDX-License-Identifier: Apache-2.0
"""The catalog, as sections of a page and as a table."""

from collections.abc import Sequence

from docutils import nodes

from kvmsr.cli.msr import about_kvm
from kvmsr.msr import Msr, MsrField, catalog
from tools.site.nodes import link, literal, paragraph, section, table
from tools.site.pages import Range

VENDORS = {"intel": "Intel", "amd": "AMD", "kvm": "KVM", "hyperv": "Hyper-V"}
ACCESS = {"rw": "read and write", "ro": "read only", "wo": "write only"}


def anchor(msr: Msr) -> str:
    """Return the fragment that leads to an MSR."""
    return f"{msr.index:#x}"


def sections(first: int, last: int) -> list[nodes.Node]:
    """Return a section for each MSR from *first* to *last*."""
    return [described(msr) for msr in catalog() if first <= msr.index <= last]


def described(msr: Msr) -> nodes.section:
    names = [f"{msr.index:#x}", msr.name, *msr.aliases]
    made = section(f"{msr.index:#x} {msr.name}", [anchor(msr), msr.name.lower()], names)
    if msr.about:
        made += paragraph(msr.about)
    made += facts(msr)
    if msr.fields:
        made += table(("bits", "field", "kind", "meaning"), map(cells, reversed(msr.fields)), "msr")
    return made


def facts(msr: Msr) -> nodes.field_list:
    """Return what is known about an MSR beside its fields, by label."""
    lines: list[tuple[str, Sequence[str | nodes.Node]]] = [
        ("Of", [", ".join([*(VENDORS[name] for name in msr.vendors), *filter(None, [msr.models])])]),
        ("Also", separated(msr.aliases)),
        ("Scope", [msr.scope]),
        ("Access", [ACCESS.get(msr.access, "")]),
        ("Reset", [] if msr.reset is None else [literal(f"{msr.reset:#x}")]),
        ("KVM", [about_kvm(msr.index, msr)]),
        ("Sources", ["; ".join(msr.sources)]),
    ]
    made = nodes.field_list(classes=["msr"])
    for label, parts in lines:
        if any(parts):
            field = nodes.field()
            field += [nodes.field_name(label, label), nodes.field_body("", paragraph(*parts))]
            made += field
    return made


def separated(names: Sequence[str]) -> list[str | nodes.Node]:
    parts: list[str | nodes.Node] = []
    for name in names:
        parts += [", ", literal(name)] if parts else [literal(name)]
    return parts


def cells(field: MsrField) -> Sequence[str | Sequence[str | nodes.Node]]:
    values = ", ".join(f"{number}: {text}" for number, text in field.values.items())
    unit = f"in {field.scale:g} {field.unit}" if field.unit else ""
    meaning = "; ".join(part for part in (field.about, values, unit) if part)
    return (field.span, [literal(field.name)], field.kind, meaning)


def index_table(ranges: Sequence[Range]) -> nodes.table:
    """Return a table of all MSRs, which lead to their sections."""

    def cells(msr: Msr) -> Sequence[str | Sequence[str | nodes.Node]]:
        page = next(page.page for page in ranges if page.first <= msr.index <= page.last)
        name = link(msr.name, f"{page}.html#{anchor(msr)}")
        vendors = ", ".join(VENDORS[vendor] for vendor in msr.vendors)
        return ([literal(f"{msr.index:#x}")], [name], vendors)

    return table(("index", "name", "of"), map(cells, catalog()), "msr-index")
