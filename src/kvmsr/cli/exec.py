# SPDX-License-Identifier: Apache-2.0
"""
kvmsr exec
----------

Runs another VMM, with its guests under a policy.
"""

import json
import sys
from contextlib import closing
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TextIO

import click

from kvmsr.attach import Controller
from kvmsr.cli._console import access_log
from kvmsr.cli._names import NAMES, speak_of_guest
from kvmsr.cli._output import print_json
from kvmsr.cli._parameters import LOG, NAME, OBSERVE, POLICY, STATE
from kvmsr.cli._reload import RELOAD, expect_hangup, reloading
from kvmsr.cli._tracing import served, traced
from kvmsr.cli._vmm_backend import backend_of, vmm_backend
from kvmsr.errors import UsageError
from kvmsr.policy import Policy
from kvmsr.policy.file import load_policy
from kvmsr.policy.selector import Ranges
from kvmsr.session import RunResult
from kvmsr.session.supervisor import supervise
from kvmsr.trace import TraceOptions

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr exec --policy quiet.toml -- qemu-system-x86_64 -accel kvm -hda disk.img
  kvmsr exec --policy preset:linux --json --summary msrs.json -- qemu-system-x86_64 ...
"""


@click.command(
    "exec",
    epilog=_EXAMPLES,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("vmm", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- VMM [ARGS]...")
@vmm_backend
@POLICY
@OBSERVE
@LOG
@click.option(
    "--summary",
    metavar="FILE",
    help="Where to write the summary; by default the table goes to standard error and JSON to"
    " standard output.",
)
@STATE
@NAMES
@traced
@click.option(
    "--require",
    is_flag=True,
    help="Do not let a VM run that would not be under the whole policy.",
)
@RELOAD
@NAME
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    vmm: tuple[str, ...],
    backend: str,
    soft_profile: str,
    policy: str | None,
    observe: Ranges,
    log: str,
    summary: str | None,
    state: Path | None,
    trace: TraceOptions | None,
    metrics: str | None,
    require: bool,
    reload: bool,
    name: str,
    as_json: bool,
) -> int:
    """
    Run QEMU, or another VMM, with its guests under a policy.

    The VMM can be any dynamically linked program that uses KVM. It runs unmodified, on this
    terminal. When it has ended, a table shows the MSR accesses that reached user space. The exit
    status is that of the VMM, or 6 if that is 0 but a handler failed or a VM was not under the
    policy.
    """
    _refuse_option(vmm[0])
    _check_summary(summary)
    expect_hangup(reload)
    rules = load_policy(policy) if policy else Policy()
    to_stdout = as_json and summary is None
    witness = supervise(rules, partial(_print, summary=summary, as_json=as_json), reloads=reload)
    chosen, soft = backend_of(backend, soft_profile)
    with access_log(log, lambda data: None, shared=False) as (_, sink):
        controller = Controller(
            vmm,
            rules,
            chosen,
            soft=soft,
            log=sink,
            state=state,
            require=require,
            observe=observe,
            name=name,
            trace=trace,
            timed=metrics is not None,
            output_to_stderr=to_stdout,
            witness=witness,
        )
        with closing(controller):
            speak_of_guest(controller.supported)
            with (
                served(controller.session, metrics),
                reloading(controller.requests, reload) as controller.on_hangup,
            ):
                result = controller.run()
            _print(result, summary, as_json)
            if controller.unsaved is not None:
                raise controller.unsaved
    return result.exit_status


def _refuse_option(word: str) -> None:
    """Raise UsageError if *word*, which should be the VMM, is an unknown option."""
    if not word.startswith("-"):
        return
    known = [option for parameter in command.params for option in parameter.opts]
    near = get_close_matches(f"--{word.strip('-')}", known, 1)
    hint = f"did you mean {near[0]}?" if near else "the VMM's own options come after --"
    raise UsageError(f"exec has no option {word}; {hint}")


def _check_summary(summary: str | None) -> None:
    """Raise UsageError if the summary cannot be written, while the VM has not run yet."""
    if summary is not None and not Path(summary).is_fifo():
        path = Path(summary)
        is_new = not path.exists()
        try:
            path.open("a").close()
            if is_new:  # its appearance is to mean that the run is over
                path.unlink()
        except OSError as error:
            raise UsageError(f"--summary {summary}: cannot be written: {error.strerror}") from None


def _print(result: RunResult, summary: str | None, as_json: bool) -> None:
    if summary is not None:
        try:
            with Path(summary).open("w") as file:
                if as_json:
                    file.write(json.dumps(result.as_dict(), indent=2) + "\n")
                else:
                    _print_table(result, file)
        except OSError as error:
            raise UsageError(f"--summary {summary}: cannot be written: {error.strerror}") from None
    elif as_json:
        print_json(result.as_dict())
    else:
        _print_table(result, sys.stderr)


def _print_table(result: RunResult, file: TextIO) -> None:
    from kvmsr.cli._table import print_result  # takes long to import; the VMM must not wait for it

    print_result(result, file)
