# SPDX-License-Identifier: Apache-2.0
"""
Inspecting policies
-------------------

Shared by the commands that inspect a policy without running a guest. They do not run the policy's
Python modules either, unless asked to.
"""

from typing import Final

import click

from kvmsr.cli._output import echo
from kvmsr.cli._parameters import PolicyFile
from kvmsr.policy import Policy
from kvmsr.policy.file import load_policy
from kvmsr.policy.file.finder import Finder
from kvmsr.policy.file.importer import Importer
from kvmsr.policy.file.lookup import NameLookup
from kvmsr.policy.plan import KernelFacts

__all__ = (
    "FILE", "IGNORE_MSRS", "IMPORT", "JSON", "facts", "finder_for", "load_unrun", "notes_of",
)  # fmt: skip

FILE: Final = click.argument("file", type=PolicyFile())
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
IMPORT: Final = click.option(
    "--import",
    "importing",
    is_flag=True,
    help="Import the policy's Python modules, which runs them; by default, names are only looked"
    " up.",
)
IGNORE_MSRS: Final = click.option(
    "--ignore-msrs/--no-ignore-msrs",
    "ignoring",
    default=None,
    help="Whether the host has kvm.ignore_msrs=1; by default, as on this host.",
)


def facts(ignoring: bool | None) -> KernelFacts:
    """Return the facts about any KVM; ignore_msrs is that of this host if *ignoring* is None."""
    if ignoring is None:
        from kvmsr.kvm.kernel_module import ignore_msrs

        ignoring = bool(ignore_msrs())
    return KernelFacts(ignore_msrs=ignoring)


def finder_for(importing: bool) -> Finder:
    """Return a finder that imports modules, or one that only looks up names."""
    return Importer() if importing else NameLookup()


def notes_of(finder: Finder) -> list[str]:
    """Return a line for each name that was looked up without importing its module."""
    if not isinstance(finder, NameLookup):
        return []
    return [f"{one} (--import runs it)" for one in finder.found.values()]


def load_unrun(file: str, *, importing: bool = False) -> Policy:
    """Load a policy; unless *importing*, print a note for each name that was only looked up."""
    finder = finder_for(importing)
    policy = load_policy(file, finder=finder)
    for note in notes_of(finder):
        echo(f"kvmsr: note: {note}", err=True)
    return policy
