# SPDX-License-Identifier: Apache-2.0
"""
kvmsr doctor
------------

What this host offers, a line each, and the remedy for what is missing.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

import click

from kvmsr import backend as backends
from kvmsr import native
from kvmsr.abi import KVM_API_VERSION, Cap
from kvmsr.backend import Backend
from kvmsr.errors import BackendError, KvmsrError
from kvmsr.kvm import Kvm
from kvmsr.kvm.kernel_module import ignore_msrs, vendor_module
from kvmsr.machine.probe import probe

__all__ = ("Finding", "command", "examine")

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

_SIGNS: Final = {OK: ("✓", "green"), WARN: ("!", "yellow"), FAIL: ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that was looked at.

    :ivar name: what.
    :ivar status: ``ok``, ``warn`` or ``fail``.
    :ivar value: what was found.
    :ivar remedy: what to do about it, or "".
    """

    name: str
    status: str
    value: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything, the cheap things first."""
    yield Finding("kernel", OK, f"{platform.system()} {platform.release()}")
    yield _soft()
    yield _native_core()
    yield _module()
    yield _ignore_msrs()
    try:
        backend = backends.open("kvm")
    except BackendError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding("/dev/kvm", FAIL, what, remedy)
        return
    yield Finding("/dev/kvm", OK, "may be opened")
    try:
        with Kvm(backend) as kvm:
            yield Finding("API version", OK, str(KVM_API_VERSION))
            yield from _capabilities(kvm)
        yield _probe(backend)
    except KvmsrError as error:
        yield Finding("KVM", FAIL, str(error), "use a KVM of Linux 5.10 or later")


def _soft() -> Finding:
    try:
        backends.open("soft")
    except BackendError as error:
        return Finding("soft backend", FAIL, str(error))
    return Finding("soft backend", OK, "its CPU passes its self-test: guests run without KVM, too")


def _native_core() -> Finding:
    if native.available():
        return Finding("native core", OK, "built: accesses are answered in C, kvmsr exec works")
    what = "not built: accesses on /dev/kvm cost more, and kvmsr exec does not work"
    return Finding("native core", WARN, what, native.REMEDY)


def _module() -> Finding:
    name = vendor_module()
    if name:
        return Finding("vendor module", OK, name)
    return Finding("vendor module", WARN, "none shows", "sudo modprobe kvm_intel (or kvm_amd)")


def _ignore_msrs() -> Finding:
    on = ignore_msrs()
    if on is None:
        return Finding("ignore_msrs", WARN, "cannot be read: taken for off")
    if not on:
        return Finding("ignore_msrs", OK, "off: MSRs that KVM does not know come to the policy")
    return Finding(
        "ignore_msrs",
        WARN,
        "on: KVM swallows MSRs that it does not know; policies then deny them by a default-deny"
        " filter, which costs filter ranges, and the odd MSR that only some KVMs handle is missed",
        "echo 0 | sudo tee /sys/module/kvm/parameters/ignore_msrs",
    )


_NEEDED: Final = (Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER, Cap.IMMEDIATE_EXIT)
_USEFUL: Final = (Cap.SYNC_REGS, Cap.BINARY_STATS_FD)


def _capabilities(kvm: Kvm) -> Iterator[Finding]:
    for cap in (*_NEEDED, *_USEFUL):
        name = f"KVM_CAP_{cap.name}"
        if kvm.check_extension(cap):
            yield Finding(name, OK, "supported")
        elif cap in _NEEDED:
            yield Finding(name, FAIL, "missing", "use Linux 5.10 or later")
        else:
            yield Finding(name, WARN, "missing", "nothing needs it; a newer kernel has it")


def _probe(backend: Backend) -> Finding:
    verdict = probe(backend)
    if verdict.ordinary:
        tried = ", ".join(verdict.tried)
        return Finding("probe guest", OK, f"this KVM runs ordinary guests (tried: {tried})")
    failed = ", ".join(f"{name} {what}" for name, what in verdict.failed.items())
    return Finding(
        "probe guest",
        WARN,
        f"this KVM does not run ordinary guests: {failed}",
        "small guests and firmware run; an operating system stops at the first of these: use the"
        " soft backend, or a host whose CPU does the virtualisation",
    )


@click.command(epilog="Example: kvmsr doctor --json | jq .ok")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def command(as_json: bool) -> int:
    """Tell what this host offers, and what is missing."""
    findings = []
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for finding in examine():
        findings.append(finding)
        if not as_json:
            _print(finding, colour)
    ok = all(finding.status != FAIL for finding in findings)
    if as_json:
        checks = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"schema": 1, "ok": ok, "checks": checks}, indent=2))
    return 0 if ok else BackendError.exit_status


def _print(finding: Finding, colour: bool) -> None:
    sign, shade = _SIGNS[finding.status]
    if colour:
        sign = click.style(sign, fg=shade)
    remedy = f" → {finding.remedy}" if finding.remedy else ""
    click.echo(f"{sign} {finding.name}: {finding.value}{remedy}")
