# SPDX-License-Identifier: Apache-2.0
"""
kvmsr policy check
------------------

Reports errors in policies, and what their owners may not mean.
"""

from typing import Any

import click

from kvmsr.cli._output import echo, print_json
from kvmsr.cli._parameters import PolicyFile
from kvmsr.cli._policies import IGNORE_MSRS, IMPORT, JSON, facts, finder_for, notes_of
from kvmsr.errors import FilterCapacityError, PolicyError
from kvmsr.policy.enumeration import enumeration_lines
from kvmsr.policy.file import read_policy
from kvmsr.policy.plan import (
    KernelFacts,
    Lint,
    Plan,
    compile_policy,
    not_observed_lines,
    x2apic_errors,
)
from kvmsr.text import counted

__all__ = ("check",)


@click.command(epilog="Example: kvmsr policy check --strict *.toml")
@click.argument("files", type=PolicyFile(), nargs=-1, required=True, metavar="FILE...")
@click.option("--strict", is_flag=True, help="Fail on lints, too.")
@IMPORT
@IGNORE_MSRS
@JSON
def check(
    files: tuple[str, ...], strict: bool, importing: bool, ignoring: bool | None, as_json: bool
) -> int:
    """
    Report all errors and lints in policies.

    A lint is something valid that the owner may not mean. Each line has file, line, key and an
    identifier. Functions and models in Python modules are looked up without running the modules,
    unless --import is given; notes say so. The exit status is 3 if a policy cannot be used.
    """
    kernel = facts(ignoring)
    found = [_checked(file, kernel, importing) for file in files]
    bad = any(one["errors"] or (strict and one["lints"]) for one in found)
    if as_json:
        print_json({"schema": 1, "ok": not bad, "policies": found})
    else:
        for one in found:
            _print(one)
    return PolicyError.exit_status if bad else 0


def _print(one: dict[str, Any]) -> None:
    for error in one["errors"]:
        echo(f"error: {error['text']} [{error['id']}]")
    for lint in one["lints"]:
        echo(f"lint: {lint['text']}")
    for note in one["notes"]:
        echo(f"note: {one['file']}: {note}")
    if not one["errors"]:
        echo(
            f"{one['file']}: {counted(one['rules'], 'rule')}, {one['ranges']} of KVM's 16 filter"
            f" ranges, {counted(len(one['lints']), 'lint')}"
        )


def _checked(file: str, kernel: KernelFacts, importing: bool) -> dict[str, Any]:
    finder = finder_for(importing)
    reading = read_policy(file, finder=finder)
    errors = [*reading.errors, *x2apic_errors(reading.policy)]
    files = list(dict.fromkeys(error.file for error in errors))
    errors.sort(key=lambda error: (files.index(error.file), error.line))
    plan: Plan | None = None
    if not errors:
        try:
            plan = compile_policy(reading.policy, kernel)
        except PolicyError as error:
            errors.append(error)
    described = [_error(error, file) for error in errors]
    return {
        "file": file,
        "error": described[0] if described else None,
        "errors": described,
        "lints": [_lint(lint, file) for lint in plan.lints] if plan else [],
        "notes": [
            *notes_of(finder),
            *(not_observed_lines(plan.not_observed) if plan else []),
            *(enumeration_lines(plan.policy) if plan else []),
        ],
        "rules": len(plan.policy.rules) if plan else 0,
        "ranges": len(plan.filter.ranges) if plan else 0,
    }


def _error(error: PolicyError, file: str) -> dict[str, Any]:
    return {
        "id": "too-many-ranges" if isinstance(error, FilterCapacityError) else "invalid",
        "file": error.file or file,
        "line": error.line,
        "key": error.key,
        "text": str(error),
    }


def _lint(lint: Lint, file: str) -> dict[str, Any]:
    return {**lint.as_dict(), "text": str(lint) if lint.place.file else f"{file}: {lint}"}
