# SPDX-License-Identifier: Apache-2.0
"""
Other programs' formats
-----------------------

Converts files of other programs that are about MSRs to policies, and policies to such files.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from kvmsr.errors import PolicyError, UsageError
from kvmsr.msr import X2APIC
from kvmsr.policy.file.formats import bochs, crosvm, firecracker, kernel_log, msr_safe
from kvmsr.policy.file.formats.statement import Imported, Statement
from kvmsr.policy.file.toml import to_toml
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import Rule
from kvmsr.text import one_line

__all__ = ("FORMATS", "Imported", "Statement", "as_policy", "export_policy", "import_text")


_GUESSED: Final = "# Reads of these return 0 at first, which is a guess. For better values use:"


class Format(NamedTuple):
    """
    A file format.

    :ivar about: a short description.
    :ivar looks_like: returns whether a text seems to be in this format.
    :ivar read: yields the statements of a text; the second argument is its name for messages.
    :ivar write: returns a policy in this format, and the rules that the format cannot express; None
        if the format can only be read.
    """

    about: str
    looks_like: Callable[[str], bool]
    read: Callable[[str, str], Iterator[Statement]]
    write: Callable[[Policy], tuple[str, list[Rule]]] | None


FORMATS: Final = {
    "firecracker": Format(
        "a CPU template's msr_modifiers", firecracker.looks_like, firecracker.read,
        firecracker.write,
    ),
    "crosvm": Format("--userspace-msr options", crosvm.looks_like, crosvm.read, crosvm.write),
    "bochs": Format("msrs.def", bochs.looks_like, bochs.read, bochs.write),
    "msr-safe": Format("an allow list", msr_safe.looks_like, msr_safe.read, msr_safe.write),
    "kernel-log": Format(
        "lines of dmesg, a journal or a trace", kernel_log.looks_like, kernel_log.read, None
    ),
}  # fmt: skip
"""The formats by name; detection takes the first that a text looks like."""


def import_text(text: str, source: str, form: str | None = None) -> Imported:
    """
    Return the statements of *text*.

    :param source: its name for messages.
    :param form: its format; None detects it.
    :raises PolicyError: if *text* is in none of the formats, or malformed.
    :raises UsageError: if there is no such format.
    """
    if form is None:
        form = next((name for name, f in FORMATS.items() if f.looks_like(text)), None)
        if form is None:
            known = ", ".join(f"{name} ({f.about})" for name, f in FORMATS.items())
            raise PolicyError(f"unknown format; there are {known}", file=source)
    if form not in FORMATS:
        raise UsageError(f"there is no format {form!r}; there are {', '.join(FORMATS)}")
    return Imported(form, tuple(_possible(FORMATS[form].read(text, source))))


def _possible(statements: Iterator[Statement]) -> Iterator[Statement]:
    """Remove rules that no policy can have, and those for MSRs that already have a rule."""
    first: dict[int, int] = {}
    for each in statements:
        if each.rule is None or each.index is None:
            yield each
        elif X2APIC[0] <= each.index <= X2APIC[1]:
            yield replace(each, rule=None, lost="x2APIC's MSRs cannot be taken from KVM")
        elif each.index in first:
            yield replace(each, rule=None, lost=f"line {first[each.index]} already has a rule")
        else:
            first[each.index] = each.line
            yield each


def as_policy(imported: Imported, name: str) -> str:
    """Return *imported* as a policy file; comments list what the rules cannot express."""
    rules = [
        Rule(
            rule.msrs, rule.read, rule.write, reset=rule.reset or None, bits=rule.bits,
            log=rule.log, where=f"line {each.line}: {each.said}",
        )
        for each in imported.statements
        if (rule := each.rule) is not None
    ]  # fmt: skip
    text = to_toml(Policy(rules, name=name, description=f"imported from {imported.format}"))
    lost = [
        one_line(f"# line {each.line}: {each.said}: {each.lost}")
        for each in imported.statements
        if each.lost and (each.rule is not None or each.index is None)
    ]
    hints = [
        one_line(f"# {each.index:#x}{f' {each.name}' if each.name else ''}: {each.hint}")
        for each in imported.statements
        if each.hint
    ]
    parts = [
        "\n".join([head, *dict.fromkeys(lines)])
        for head, lines in (("# Not expressed by the rules:", lost), (_GUESSED, hints))
        if lines
    ]
    return "\n\n".join([*parts, text])


def export_policy(policy: Policy, form: str) -> tuple[str, list[Rule]]:
    """
    Return *policy* in a format, and the rules that the format cannot express.

    :raises UsageError: if there is no such format, or it can only be read.
    """
    writers = {name: f.write for name, f in FORMATS.items() if f.write is not None}
    if form not in writers:
        raise UsageError(f"cannot write policies as {form!r}; there are {', '.join(writers)}")
    return writers[form](policy)
