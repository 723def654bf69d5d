# SPDX-License-Identifier: Apache-2.0
"""
Looking at policies
-------------------

What the commands share that look at a policy and run no guest: the policy's Python is not run
either, unless that is asked for.
"""

from typing import Final

import click

from kvmsr.cli._output import echo
from kvmsr.cli._parameters import PolicyFile
from kvmsr.kvm.kernel_module import ignore_msrs
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
    help="Import the Python modules that the policy names, and so run them; by default they are"
    " looked up, and not run.",
)
IGNORE_MSRS: Final = click.option(
    "--ignore-msrs/--no-ignore-msrs",
    "ignoring",
    default=None,
    help="Whether the host has kvm.ignore_msrs on; by default this host is looked at.",
)


def facts(ignoring: bool | None) -> KernelFacts:
    """Return what is known of a KVM, and of this host unless *ignoring* says it."""
    return KernelFacts(ignore_msrs=bool(ignore_msrs() if ignoring is None else ignoring))


def finder_for(importing: bool) -> Finder:
    """Return what finds Python."""
    return Importer() if importing else NameLookup()


def notes_of(finder: Finder) -> list[str]:
    """Return a line for each name that was looked up, and not run."""
    if not isinstance(finder, NameLookup):
        return []
    return [f"{one} (--import runs it)" for one in finder.found.values()]


def load_unrun(file: str, *, importing: bool = False) -> Policy:
    """Load a policy without running its Python, and note on standard error what was not run."""
    finder = finder_for(importing)
    policy = load_policy(file, finder=finder)
    for note in notes_of(finder):
        echo(f"kvmsr: note: {note}", err=True)
    return policy
