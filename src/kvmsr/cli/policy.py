# SPDX-License-Identifier: Apache-2.0
"""
kvmsr policy
------------

Looks at policies without running a guest: what is wrong with them, what they come to, why.
"""

from typing import Any

import click

from kvmsr.cli._output import echo, print_json
from kvmsr.cli._parameters import MsrIndex, Number, PolicyFile, Preset
from kvmsr.cli.policy_files import export, import_
from kvmsr.dispatch import explain
from kvmsr.errors import FilterCapacityError, PolicyError
from kvmsr.kvm.kernel_module import ignore_msrs
from kvmsr.msr import catalog
from kvmsr.policy import Op, Policy
from kvmsr.policy.file import load_policy
from kvmsr.policy.file.parse import PRESET
from kvmsr.policy.file.presets import preset_names, preset_text
from kvmsr.policy.plan import KernelFacts, Plan, compile_policy

__all__ = ("command",)


_FILE = click.argument("file", type=PolicyFile())
_JSON = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_IGNORE = click.option(
    "--ignore-msrs/--no-ignore-msrs",
    "ignoring",
    default=None,
    help="Whether the host has kvm.ignore_msrs on; by default this host is looked at.",
)


@click.group(epilog="Example: kvmsr policy explain IA32_PAT --policy windows.toml --write 0x6")
def command() -> None:
    """Check, show, explain, import and export policies."""


def _facts(ignoring: bool | None) -> KernelFacts:
    return KernelFacts(ignore_msrs=bool(ignore_msrs() if ignoring is None else ignoring))


@command.command(epilog="Example: kvmsr policy check --strict *.toml")
@click.argument("files", type=PolicyFile(), nargs=-1, required=True, metavar="FILE...")
@click.option("--strict", is_flag=True, help="Fail on lints, too.")
@_IGNORE
@_JSON
def check(files: tuple[str, ...], strict: bool, ignoring: bool | None, as_json: bool) -> int:
    """
    Tell what is wrong with policies.

    And what their owner may not mean: lints. A line each: file, line, key, what it is, and its
    identifier. The exit status is 3 where a policy cannot be used.
    """
    kernel = _facts(ignoring)
    found = [_checked(file, kernel) for file in files]
    bad = any(one["error"] or (strict and one["lints"]) for one in found)
    if as_json:
        print_json({"schema": 1, "ok": not bad, "policies": found})
        return PolicyError.exit_status if bad else 0
    for one in found:
        if one["error"]:
            echo(f"error: {one['error']['text']} [{one['error']['id']}]")
        for lint in one["lints"]:
            place = f"{lint['file'] or one['file']}:" + (f"{lint['line']}:" if lint["line"] else "")
            key = f" {lint['key']}:" if lint["key"] else ""
            echo(f"lint: {place}{key} {lint['message']} [{lint['id']}]")
        if not one["error"]:
            echo(
                f"{one['file']}: {one['rules']} rules, {one['ranges']} of KVM's 16 filter ranges,"
                f" {len(one['lints'])} lints"
            )
    return PolicyError.exit_status if bad else 0


def _checked(file: str, kernel: KernelFacts) -> dict[str, Any]:
    one: dict[str, Any] = {"file": file, "error": None, "lints": [], "rules": 0, "ranges": 0}
    try:
        plan = compile_policy(load_policy(file), kernel)
    except PolicyError as error:
        one["error"] = {
            "id": "too-many-ranges" if isinstance(error, FilterCapacityError) else "invalid",
            "file": error.file or file,
            "line": error.line,
            "key": error.key,
            "text": str(error),
        }
        return one
    one["lints"] = [lint.as_dict() for lint in plan.lints]
    one["rules"] = len(plan.policy.rules)
    one["ranges"] = len(plan.filter.ranges)
    return one


@command.command(epilog="Example: kvmsr policy show preset:linux --toml > mine.toml")
@_FILE
@click.option("--toml", "as_toml", is_flag=True, help="Print it as a policy file.")
@_JSON
def show(file: str, as_toml: bool, as_json: bool) -> None:
    """
    Show a policy, resolved.

    With all that it extends, and the rules in the order in which they are tried.
    """
    from kvmsr.policy.file.toml import as_json as json_form
    from kvmsr.policy.file.toml import to_toml

    policy = load_policy(file)
    if as_toml:
        click.echo(to_toml(policy), nl=False)
    elif as_json:
        print_json({"schema": 1, **json_form(policy)})
    else:
        from kvmsr.cli._table import print_policy

        print_policy(policy)


@command.command("explain", epilog="Example: kvmsr policy explain 0x1a0 --write 0x850089")
@click.argument("msr", type=MsrIndex())
@click.option("--policy", "file", type=PolicyFile(), help="The policy; by default none.")
@click.option("--write", "value", type=Number(), help="A write of this value; else a read.")
@click.option("--vcpu", type=click.IntRange(0), default=0, show_default=True, help="On which vCPU.")
@click.option("--cpl", type=click.IntRange(0, 3), default=0, show_default=True, help="The CPL.")
@click.option("--rip", type=Number(), help="Where the guest is; by default where a rule asks.")
@click.option(
    "--count", type=click.IntRange(1), default=1, show_default=True, help="Which match it is."
)
@_IGNORE
@_JSON
def explain_(
    msr: int,
    file: str | None,
    value: int | None,
    vcpu: int,
    cpl: int,
    rip: int | None,
    count: int,
    ignoring: bool | None,
    as_json: bool,
) -> None:
    """
    Explain what becomes of an access, and why.

    MSR is a number or a name. Told are: which rule decides, and why those before it do not; which
    filter range and bit; what KVM itself does; what the guest sees. Where that depends on what KVM
    says, each case is told.
    """
    policy = load_policy(file) if file else Policy()
    plan = compile_policy(policy, _facts(ignoring))
    op = Op.READ if value is None else Op.WRITE
    explanation = explain(plan, op, msr, value=value or 0, vcpu=vcpu, cpl=cpl, rip=rip, count=count)
    if as_json:
        print_json(explanation.as_dict())
        return
    name = f" ({explanation.name})" if explanation.name else ""
    what = "read of" if op is Op.READ else f"write of {value:#x} to"
    echo(f"{what} MSR {msr:#x}{name} on vCPU {vcpu}")
    echo(f"  KVM:     {explanation.kernel}")
    echo(f"  filter:  {explanation.filter.text}")
    for case in explanation.cases:
        if case.reason is None:
            when = "" if len(explanation.cases) == 1 else "if KVM completes it: "
        else:
            when = f"given up as {case.reason}: "
        if case.reason is not None and case is explanation.cases[0]:
            when = f"it comes to user space ({case.reason}): "
        echo(f"  {when}the guest sees {case.text}")
        for step in case.steps:
            verdict = f"skipped: {step.skipped}" if step.skipped else "decides"
            echo(f"    {step.where} {op} = {step.action}: {verdict}")
        if case.rule.startswith("defaults."):
            echo(f"    {case.rule}: decides")


@command.command("filter", epilog="Example: kvmsr policy filter preset:strict --json")
@_FILE
@_IGNORE
@_JSON
def filter_(file: str, ignoring: bool | None, as_json: bool) -> None:
    """
    Show the filter as KVM gets it.

    Which reasons KVM hands over, the default, and of each range which MSRs it denies; as JSON with
    the bitmaps (KVM_X86_SET_MSR_FILTER).
    """
    plan = compile_policy(load_policy(file), _facts(ignoring))
    if as_json:
        print_json(_filter_dict(plan))
        return
    reasons = ", ".join(sorted(plan.reasons))
    echo(f"KVM hands over: {reasons}")
    echo(f"where no range decides: {'deny' if plan.filter.default_deny else 'allow'}")
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
@click.option("--json", "as_json", is_flag=True, help="It is JSON anyway.")
def schema(as_json: bool) -> None:
    """Print the JSON schema, for editors."""
    from kvmsr.policy.file.jsonschema import json_schema

    print_json(json_schema())


@command.command(epilog="Example: kvmsr policy presets quiet > mine.toml")
@click.argument("name", type=Preset(), required=False)
@_JSON
def presets(name: str | None, as_json: bool) -> None:
    """
    List the presets, or print one.

    They are policies that come with kvmsr: a file may extend preset:NAME, and preset:NAME stands
    wherever a file does. The comments of each tell why.
    """
    if name is not None:
        load_policy(f"{PRESET}{name}")  # tells the nearest name if there is none
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


command.add_command(import_)
command.add_command(export)
