# SPDX-License-Identifier: Apache-2.0
"""
kvmsr doctor
------------

Checks what this host supports, and shows the remedy for what is missing.
"""

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
from kvmsr.attach.soft import find_python
from kvmsr.backend import Backend
from kvmsr.cli._output import print_json
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
    The result of one check.

    :ivar name: what was checked.
    :ivar status: ``ok``, ``warn`` or ``fail``.
    :ivar value: what was found.
    :ivar remedy: what to do about it, or "".
    """

    name: str
    status: str
    value: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Run all checks, the cheap ones first."""
    yield Finding("kernel", OK, f"{platform.system()} {platform.release()}")
    yield _soft()
    yield _native_core()
    yield _soft_in_a_vmm()
    yield _module()
    yield _ignore_msrs()
    try:
        backend = backends.open("kvm")
    except BackendError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding("/dev/kvm", FAIL, what, remedy)
        return
    yield Finding("/dev/kvm", OK, "can be opened")
    try:
        with Kvm(backend) as kvm:
            yield Finding("API version", OK, str(KVM_API_VERSION))
            yield from _capabilities(kvm)
        yield _probe(backend)
    except KvmsrError as error:
        yield Finding("KVM", FAIL, str(error), "use Linux 5.10 or later")


def _soft() -> Finding:
    try:
        backends.open("soft")
    except BackendError as error:
        return Finding("soft backend", FAIL, str(error))
    return Finding("soft backend", OK, "its CPU passes the self-test: guests also run without KVM")


def _native_core() -> Finding:
    if native.available():
        return Finding("native core", OK, "built: accesses are answered in C, and kvmsr exec works")
    what = "not built: accesses on /dev/kvm are slower, and kvmsr exec does not work"
    return Finding("native core", WARN, what, native.REMEDY)


def _soft_in_a_vmm() -> Finding:
    name = "soft backend in a VMM"
    try:
        library = find_python()
    except BackendError as error:
        what, _, remedy = str(error).partition(": ")
        return Finding(name, WARN, what, remedy)
    return Finding(name, OK, f"{library} is there: kvmsr exec --backend soft works")


def _module() -> Finding:
    name = vendor_module()
    if name:
        return Finding("vendor module", OK, name)
    return Finding("vendor module", WARN, "not loaded", "sudo modprobe kvm_intel (or kvm_amd)")


def _ignore_msrs() -> Finding:
    on = ignore_msrs()
    if on is None:
        return Finding("ignore_msrs", WARN, "cannot be read: assumed to be off")
    if not on:
        return Finding(
            "ignore_msrs", OK, "off: accesses to MSRs that KVM does not know reach the policy"
        )
    return Finding(
        "ignore_msrs",
        WARN,
        "on: KVM swallows accesses to MSRs that it does not know. Policies then use a default-deny"
        " filter, which needs more filter ranges and may miss MSRs that only some KVMs handle",
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
            yield Finding(name, WARN, "missing", "optional; newer kernels have it")


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
        "small guests and firmware run, but an operating system stops at the first of these: use"
        " the soft backend, or a host with hardware virtualization",
    )


@click.command(epilog="Example: kvmsr doctor --json | jq .ok")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(as_json: bool) -> int:
    """
    Check what this host supports, and how to fix what is missing.

    Prints one line per check. The exit status is 4 if a check failed.
    """
    findings = []
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for finding in examine():
        findings.append(finding)
        if not as_json:
            _print(finding, colour)
    ok = all(finding.status != FAIL for finding in findings)
    if as_json:
        checks = [asdict(finding) for finding in findings]
        print_json({"schema": 1, "ok": ok, "checks": checks})
    return 0 if ok else BackendError.exit_status


def _print(finding: Finding, colour: bool) -> None:
    sign, shade = _SIGNS[finding.status]
    if colour:
        sign = click.style(sign, fg=shade)
    remedy = f" → {finding.remedy}" if finding.remedy else ""
    click.echo(f"{sign} {finding.name}: {finding.value}{remedy}")
