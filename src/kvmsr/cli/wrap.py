# SPDX-License-Identifier: Apache-2.0
"""
kvmsr wrap
----------

Writes a script that stands in for a VMM where ``kvmsr exec`` cannot be called directly.
"""

import shlex
import sys
import tempfile
from pathlib import Path

import click

from kvmsr.attach import find_vmm
from kvmsr.cli._parameters import NAME, OBSERVE, POLICY
from kvmsr.cli._reload import RELOAD
from kvmsr.cli._tracing import trace_words, traced
from kvmsr.cli._vmm_backend import backend_words, vmm_backend
from kvmsr.errors import UsageError
from kvmsr.files import read_regular
from kvmsr.policy.file import load_policy
from kvmsr.policy.selector import Ranges
from kvmsr.session import kept_state
from kvmsr.trace import TraceOptions

__all__ = ("command",)

_MARK = b"# Written by kvmsr wrap"
_MAX_SIZE = 1 << 20

_SCRIPT = """\
#!/bin/sh
# Written by kvmsr wrap: starts a VMM with its guests under a policy.
before= restored=
for word do
    case "$before $word" in
    # Queries, such as those of libvirt for the VMM's capabilities. They run no guest.
    "-machine none" | "-machine none,"* | "-M none" | "-M none,"* | \\
    "-machine help" | "-M help" | "-cpu help" | "-device help" | "-accel help" | \\
    *" -version" | *" --version" | *" -help" | *" --help" | *" -h")
        exec {vmm} "$@"
        ;;
    "-incoming "*)
        restored=yes
        ;;
    esac
    before=$word
done
{fresh}exec {kvmsr} exec {options}-- {vmm} "$@"
"""

_FRESH = """\
# A guest that is restored has its registers as they were saved, any other as at power-on.
[ "$restored" ] || rm -f {state}
"""

_EXAMPLE = """\b
Example:
  kvmsr wrap qemu-system-x86_64 --policy quiet.toml -o /usr/local/bin/quiet-qemu
"""


@click.command("wrap", epilog=_EXAMPLE)
@click.argument("vmm", metavar="VMM")
@click.option("-o", "--output", metavar="FILE", required=True, help="The script to write.")
@vmm_backend
@POLICY
@OBSERVE
@click.option("--log", metavar="FILE", help="As for kvmsr exec.")
@click.option("--summary", metavar="FILE", help="As for kvmsr exec.")
@click.option("--state", metavar="FILE", help="As for kvmsr exec.")
@traced
@click.option("--require", is_flag=True, help="As for kvmsr exec.")
@RELOAD
@NAME
@click.option("--json", "as_json", is_flag=True, help="As for kvmsr exec.")
def command(
    vmm: str,
    output: str,
    backend: str,
    soft_profile: str,
    policy: str | None,
    observe: Ranges,
    log: str | None,
    summary: str | None,
    state: str | None,
    trace: TraceOptions | None,
    metrics: str | None,
    require: bool,
    reload: bool,
    name: str,
    as_json: bool,
) -> None:
    """
    Write a script that starts a VMM under a policy, for libvirt.

    Use the script as the <emulator> of a libvirt domain. docs/howto/libvirt.md explains
    what to allow in AppArmor's and SELinux's profiles.
    """
    program = find_vmm(vmm).absolute()
    options = backend_words(backend, soft_profile)
    if policy is not None:
        load_policy(policy)
        is_file = not policy.startswith("preset:")
        options += ["--policy", str(Path(policy).resolve()) if is_file else policy]
    if state is not None:
        kept_state(Path(state))  # reports a file that is something else: the script removes it
    for option, file in (("--log", log), ("--summary", summary), ("--state", state)):
        if file is not None:
            options += [option, _absolute(option, file)]
    if trace is not None:
        options += ["--trace", _absolute("--trace", str(trace.path)), *trace_words(trace)]
    if observe:
        options += ["--observe", ",".join(f"{first:#x}-{last:#x}" for first, last in observe)]
    options += ["--metrics", metrics] if metrics else []
    options += ["--name", name] if name else []
    options += ["--require"] * require + ["--reload"] * reload + ["--json"] * as_json
    script = _SCRIPT.format(
        vmm=shlex.quote(str(program)),
        fresh=_FRESH.format(state=shlex.quote(_absolute("--state", state))) if state else "",
        # -P: the folder in which the script happens to be started has no say.
        kvmsr=f"{shlex.quote(sys.executable)} -P -m kvmsr",
        options="".join(f"{shlex.quote(word)} " for word in options),
    )
    _write(Path(output), script, program)


def _absolute(option: str, file: str) -> str:
    """Return *file* as the script is to name it; raise UsageError if it cannot be written there."""
    if file == "-":
        return file
    path = Path(file).absolute()
    if not path.parent.is_dir():
        raise UsageError(f"{option} {file}: there is no folder {path.parent}")
    return str(path)


def _write(output: Path, script: str, program: Path) -> None:
    if output.exists():
        _refuse_unless_ours(output, program)
    try:
        number, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
        try:
            with open(number, "w") as file:
                file.write(script)
            Path(name).chmod(0o755)
            Path(name).replace(output)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise UsageError(f"-o {output}: cannot be written: {error.strerror}") from None


def _refuse_unless_ours(output: Path, program: Path) -> None:
    """Raise UsageError if *output* is anything but an older script."""
    if output.samefile(program):
        raise UsageError(f"-o {output}: this is the VMM itself; give the script another name")
    if output.is_dir():
        raise UsageError(f"-o {output}: cannot be written: it is a directory")
    try:
        is_ours = _MARK in read_regular(output, _MAX_SIZE)
    except OSError:
        is_ours = False
    if not is_ours:
        raise UsageError(
            f"-o {output}: it exists, and kvmsr wrap has not written it; remove it, or give the"
            " script another name"
        )
