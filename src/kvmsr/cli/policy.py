# SPDX-License-Identifier: Apache-2.0
"""
kvmsr policy
------------

Inspects policies without running a guest: their errors, rules and filters, and what they do.
"""

from typing import Any

import click

from kvmsr.cli._names import NAMES
from kvmsr.cli._output import echo, print_json
from kvmsr.cli._parameters import Preset
from kvmsr.cli._policies import FILE, IGNORE_MSRS, IMPORT, JSON, facts, load_unrun
from kvmsr.cli.policy_check import check
from kvmsr.cli.policy_explain import explain_
from kvmsr.cli.policy_formats import export, import_
from kvmsr.msr import catalog
from kvmsr.policy.file import load_policy
from kvmsr.policy.file.parse import PRESET
from kvmsr.policy.file.presets import preset_names, preset_text
from kvmsr.policy.plan import Plan, compile_policy

__all__ = ("command",)


@click.group(epilog="Example: kvmsr policy explain IA32_PAT --policy windows.toml --write 0x6")
def command() -> None:
    """Check, show, explain, import and export policies."""


@command.command(epilog="Example: kvmsr policy show preset:linux --toml > mine.toml")
@FILE
@click.option("--toml", "as_toml", is_flag=True, help="Print it as a policy file.")
@NAMES
@IMPORT
@JSON
def show(file: str, as_toml: bool, importing: bool, as_json: bool) -> None:
    """
    Show a policy with everything resolved.

    This includes all that it extends. Rules are listed in the order in which they are tried.
    """
    from kvmsr.policy.file.toml import as_json as json_form
    from kvmsr.policy.file.toml import to_toml

    policy = load_unrun(file, importing=importing)
    if as_toml:
        click.echo(to_toml(policy), nl=False)
    elif as_json:
        print_json({"schema": 1, **json_form(policy)})
    else:
        from kvmsr.cli._table import print_policy

        print_policy(policy)


@command.command("filter", epilog="Example: kvmsr policy filter preset:strict --json")
@FILE
@NAMES
@IMPORT
@IGNORE_MSRS
@JSON
def filter_(file: str, importing: bool, ignoring: bool | None, as_json: bool) -> None:
    """
    Show the MSR filter of a policy.

    This shows for which reasons KVM hands accesses over, the filter's default, and the MSRs that
    each range denies. The JSON form has the bitmaps, as KVM_X86_SET_MSR_FILTER takes them.
    """
    plan = compile_policy(load_unrun(file, importing=importing), facts(ignoring))
    if as_json:
        print_json(_filter_dict(plan))
        return
    reasons = ", ".join(sorted(plan.reasons))
    echo(f"KVM hands over: {reasons}")
    echo(f"default: {'deny' if plan.filter.default_deny else 'allow'}")
    for number, one in enumerate(plan.filter.ranges):
        directions = " and ".join(
            word for word, has in (("reads", one.reads), ("writes", one.writes)) if has
        )
        denied = one.count - int.from_bytes(one.bitmap, "little").bit_count()
        echo(
            f"range {number}: {one.base:#x}-{one.base + one.count - 1:#x}, {directions}: denies"
            f" {denied:,} of {one.count:,} MSRs"
        )
        for first, last in _runs_denied(one.base, one.count, one.bitmap):
            name = catalog().name(first) if first == last else ""
            span = f"{first:#x}" if first == last else f"{first:#x}-{last:#x}"
            echo(f"  {span}{f' {name}' if name else ''}")


def _filter_dict(plan: Plan) -> dict[str, Any]:
    return {
        "schema": 1,
        "reasons": sorted(map(str, plan.reasons)),
        "default": "deny" if plan.filter.default_deny else "allow",
        "ranges": [
            {
                "base": f"{one.base:#x}",
                "nmsrs": one.count,
                "flags": int(one.reads) | int(one.writes) << 1,
                "bitmap": one.bitmap.hex(),
            }
            for one in plan.filter.ranges
        ],
    }


def _runs_denied(base: int, count: int, bitmap: bytes) -> list[tuple[int, int]]:
    bits = int.from_bytes(bitmap, "little")
    runs: list[tuple[int, int]] = []
    for k in range(count):
        if not bits >> k & 1:
            if runs and runs[-1][1] == base + k - 1:
                runs[-1] = (runs[-1][0], base + k)
            else:
                runs.append((base + k, base + k))
    return runs


@command.command(epilog="Example: kvmsr policy schema > policy.schema.json")
@click.option("--json", "as_json", is_flag=True, help="No effect: the schema is JSON.")
def schema(as_json: bool) -> None:
    """Print the JSON schema of policy files, for editors."""
    from kvmsr.policy.file.jsonschema import json_schema

    print_json(json_schema())


@command.command(epilog="Example: kvmsr policy presets quiet > mine.toml")
@click.argument("name", type=Preset(), required=False)
@JSON
def presets(name: str | None, as_json: bool) -> None:
    """
    List the presets, or print one.

    Presets are policies that come with kvmsr. Use preset:NAME in place of a policy file, also in
    extends. Their comments give the reasons for each rule.
    """
    if name is not None:
        load_policy(f"{PRESET}{name}")  # if there is none, the error suggests the closest name
        text = preset_text(name) or ""
        if as_json:
            print_json({"schema": 1, "name": name, "text": text})
        else:
            click.echo(text, nl=False)
        return
    found = {one: load_policy(f"{PRESET}{one}").description for one in preset_names()}
    if as_json:
        rows = [{"name": one, "description": says} for one, says in found.items()]
        print_json({"schema": 1, "presets": rows})
        return
    for one, says in found.items():
        echo(f"{PRESET}{one}: {says}")


for one in (check, explain_, import_, export):
    command.add_command(one)
