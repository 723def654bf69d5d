# SPDX-License-Identifier: Apache-2.0
"""
kvmsr policy explain
--------------------

Explains what happens to an access under a policy.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from kvmsr.cli._names import NAMES
from kvmsr.cli._output import echo, print_json
from kvmsr.cli._parameters import OBSERVE, MsrIndex, Number, PolicyFile
from kvmsr.cli._policies import IGNORE_MSRS, IMPORT, JSON, facts, load_unrun
from kvmsr.errors import UsageError
from kvmsr.msr import X2APIC
from kvmsr.policy import Op, Policy
from kvmsr.policy.enumeration import enumeration_of
from kvmsr.policy.plan import Plan, compile_policy
from kvmsr.policy.selector import Ranges

if TYPE_CHECKING:
    from kvmsr.dispatch import Explanation

__all__ = ("explain_",)


@click.command("explain", epilog="Example: kvmsr policy explain 0x1a0 --write 0x850089")
@click.argument("msr", type=MsrIndex())
@click.option("--policy", "file", type=PolicyFile(), help="The policy; by default, an empty one.")
@OBSERVE
@NAMES
@click.option("--write", "value", type=Number(), help="Write this value; by default, read.")
@click.option("--vcpu", type=click.IntRange(0), default=0, show_default=True, help="The vCPU.")
@click.option("--cpl", type=click.IntRange(0, 3), default=0, show_default=True, help="The CPL.")
@click.option("--rip", type=Number(), help="The RIP; by default, conditions on RIP hold.")
@click.option(
    "--caller", type=Number(), help="A caller's address; by default, conditions on callers hold."
)
@click.option(
    "--count",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The number of the match, for rules that count.",
)
@IMPORT
@IGNORE_MSRS
@click.option(
    "--soft-profile",
    "profile",
    metavar="NAME",
    help="Explain the access on the soft backend with this profile; by default, on any KVM, with"
    " ignore_msrs as on this host.",
)
@JSON
def explain_(
    msr: int,
    file: str | None,
    observe: Ranges,
    value: int | None,
    vcpu: int,
    cpl: int,
    rip: int | None,
    caller: int | None,
    count: int,
    importing: bool,
    ignoring: bool | None,
    profile: str | None,
    as_json: bool,
) -> None:
    """
    Explain what happens to an access, and why.

    MSR is a number or a name. The explanation shows what KVM itself does, the range and bit of the
    filter, the rule that decides and why those before it do not, and what the guest sees. If that
    depends on how KVM reacts, all cases are listed. Handlers and models are not run.
    """
    policy = load_unrun(file, importing=importing) if file else Policy()
    policy = policy.observing(observe)
    op = Op.READ if value is None else Op.WRITE
    if profile is None:
        plan, handled = compile_policy(policy, facts(ignoring)), None
    elif ignoring is not None:
        raise UsageError(
            "a profile has its own ignore_msrs: write --soft-profile NAME,ignore_msrs=1"
        )
    else:
        plan, handled = _on_soft(profile, policy, op, msr)
    from kvmsr.dispatch import explain

    explanation = explain(
        plan,
        op,
        msr,
        value=value or 0,
        vcpu=vcpu,
        cpl=cpl,
        rip=rip,
        caller=caller,
        count=count,
        handled=handled,
    )
    if profile is not None:
        explanation = replace(explanation, kernel=f"{profile} (soft): {explanation.kernel}")
    if as_json:
        print_json(explanation.as_dict() | {"cpuid": enumeration_of(policy, msr)})
        return
    what = "read of" if value is None else f"write of {value:#x} to"
    name = f" ({explanation.name})" if explanation.name else ""
    echo(f"{what} MSR {msr:#x}{name} on vCPU {vcpu}")
    _print(explanation)
    for line in enumeration_of(policy, msr):
        echo(f"  CPUID:   {line}")


def _on_soft(profile: str, policy: Policy, op: Op, msr: int) -> tuple[Plan, bool | None]:
    """Return the plan on a soft KVM, and whether that KVM handles the MSR, if it is known."""
    from kvmsr import backend as backends
    from kvmsr.kvm import Kvm
    from kvmsr.session.fitting import host_reads, plan_for

    with Kvm(backends.open("soft", profile=profile)) as kvm:
        plan = plan_for(policy, kvm)
    # With ignore_msrs, the host can read every MSR.
    soft = backends.open("soft", profile=f"{profile},ignore_msrs=0")
    with Kvm(soft) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        reads = host_reads(vcpu, msr)
    unknown = X2APIC[0] <= msr <= X2APIC[1] or (
        op is Op.WRITE and not reads and plan.segment(op, msr).known  # it may be write-only
    )
    return plan, None if unknown else reads


def _print(explanation: "Explanation") -> None:
    echo(f"  KVM:     {explanation.kernel}")
    echo(f"  filter:  {explanation.filter.text}")
    for case in explanation.cases:
        if case.reason is None:
            when = "" if len(explanation.cases) == 1 else "if KVM completes it: "
        else:
            when = f"handed over as {case.reason}: "
        if case.reason is not None and case is explanation.cases[0]:
            when = f"comes to user space ({case.reason}): "
        echo(f"  {when}the guest sees {case.text}")
        for step in case.steps:
            verdict = f"skipped: {step.skipped}" if step.skipped else "decides"
            echo(f"    {step.where} {explanation.op} = {step.action}: {verdict}")
        if case.rule.startswith("defaults."):
            echo(f"    {case.rule}: decides")
