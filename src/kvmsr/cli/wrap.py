# SPDX-License-Identifier: Apache-2.0
"""
kvmsr wrap
----------

Writes a script that stands in for a VMM where ``kvmsr exec`` cannot be called directly.
"""

import shlex
import sys
from pathlib import Path

import click

from kvmsr.attach import find_vmm
from kvmsr.cli._parameters import POLICY
from kvmsr.errors import UsageError
from kvmsr.policy.file import load_policy

__all__ = ("command",)

_SCRIPT = """\
#!/bin/sh
# Written by kvmsr wrap: starts {vmm} with its guests under a policy.
# libvirt also starts the VMM to query its capabilities; then there is no guest.
case " $* " in
*" -daemonize "* | *" -machine none"* | *" -M none"* | *" -version "* | *" --version "*)
    exec {vmm} "$@"
    ;;
esac
exec {kvmsr} exec {options}-- {vmm} "$@"
"""


_EXAMPLE = """\b
Example:
  kvmsr wrap qemu-system-x86_64 --policy quiet.toml -o /opt/quiet-qemu
"""


@click.command("wrap", epilog=_EXAMPLE)
@click.argument("vmm", metavar="VMM")
@click.option("-o", "--output", metavar="FILE", required=True, help="The script to write.")
@POLICY
@click.option("--log", metavar="FILE", help="As for kvmsr exec.")
@click.option("--summary", metavar="FILE", help="As for kvmsr exec.")
@click.option("--state", metavar="FILE", help="As for kvmsr exec.")
@click.option("--require", is_flag=True, help="As for kvmsr exec.")
@click.option("--json", "as_json", is_flag=True, help="As for kvmsr exec.")
def command(
    vmm: str,
    output: str,
    policy: str | None,
    log: str | None,
    summary: str | None,
    state: str | None,
    require: bool,
    as_json: bool,
) -> None:
    """
    Write a script that starts a VMM under a policy, for libvirt.

    Use the script as the <emulator> of a libvirt domain. docs/exec.md explains what to change in
    libvirt's confinement.
    """
    program = find_vmm(vmm).resolve()
    options: list[str] = []
    if policy is not None:
        load_policy(policy)
        is_file = not policy.startswith("preset:")
        options += ["--policy", str(Path(policy).resolve()) if is_file else policy]
    for name, file in (("--log", log), ("--summary", summary), ("--state", state)):
        if file is not None:
            options += [name, file if file == "-" else str(Path(file).absolute())]
    options += ["--require"] * require + ["--json"] * as_json
    script = _SCRIPT.format(
        vmm=shlex.quote(str(program)),
        kvmsr=f"{shlex.quote(sys.executable)} -m kvmsr",
        options="".join(f"{shlex.quote(word)} " for word in options),
    )
    try:
        Path(output).write_text(script)
        Path(output).chmod(0o755)
    except OSError as error:
        raise UsageError(f"-o {output}: cannot be written: {error.strerror}") from None
