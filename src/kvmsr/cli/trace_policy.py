# SPDX-License-Identifier: Apache-2.0
"""
kvmsr trace policy
------------------

Learns a policy from traces.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmsr.cli._guest_options import MOST_SHOWN, GuestOptions, guest_options
from kvmsr.cli._names import NAMES_OF_GUEST, speak_of_trace
from kvmsr.cli._output import echo
from kvmsr.cli._traces import SYMBOLS, read_symbols
from kvmsr.errors import UsageError
from kvmsr.text import counted

if TYPE_CHECKING:
    from kvmsr.trace.learn import Learned

__all__ = ("policy_",)

_PATH = click.Path(path_type=Path)

_EXAMPLES = """\b
Examples:
  kvmsr trace policy boot.arrows -o boot.toml
  kvmsr trace policy boot.arrows --symbols vmlinuz
  kvmsr trace policy boot.arrows --verify vmlinuz --append console=ttyS0
"""


@click.command("policy", epilog=_EXAMPLES)
@click.argument("files", type=_PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "output", type=_PATH, metavar="POLICY", help="Write the policy to this file.")
@SYMBOLS
@NAMES_OF_GUEST
@click.option(
    "--verify",
    "image",
    type=_PATH,
    metavar="IMAGE",
    help="Run this guest under the policy, and report outcomes that differ from the trace.",
)
@guest_options
def policy_(
    files: tuple[Path, ...],
    output: Path | None,
    symbols: Path | None,
    image: Path | None,
    **options: Any,
) -> int:
    """
    Learn a policy that reproduces what was recorded.

    FILE is a trace of `kvmsr run` or `kvmsr exec`. MSRs whose values never changed become
    constants, those that were written and read back become shadows, those that rise steadily become
    counters, and what faulted faults. Comments name each MSR and say what was seen of it, and who
    asked if the trace has that. Several
    traces add up; where they disagree, a line on standard error has both sides.

    With --verify the exit status is 1 if an outcome differs. The further options say how to run the
    guest, as for `kvmsr run`.
    """
    from kvmsr.trace.learn import learn

    if image is not None and len(files) > 1:
        raise UsageError("--verify compares a run with one trace: give one FILE")
    speak_of_trace(files[0])
    learned = learn(files, read_symbols(symbols, files[0]))
    for note in learned.notes:
        echo(f"kvmsr: note: {note}", err=True)
    if output is None:
        click.echo(learned.text, nl=False)
    else:
        _write(output, learned.text)
    if image is None:
        return 0
    return _verify(files[0], learned, image, GuestOptions(**options), err=output is None)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"-o {path}: cannot be written: {error.strerror}") from None


def _verify(
    file: Path, learned: "Learned", image: Path, options: GuestOptions, *, err: bool
) -> int:
    """Run the guest under the learned policy, and return 1 if an outcome differs."""
    from kvmsr.cli._again import run_again
    from kvmsr.policy.file import parse_policy
    from kvmsr.trace import TraceOptions
    from kvmsr.trace.replay import Recorded, differences

    recorded = Recorded(file)
    policy = parse_policy(learned.text, source="learned.toml")
    with tempfile.TemporaryDirectory(prefix="kvmsr-") as folder:
        trace = TraceOptions(Path(folder) / "trace", lossless=True)
        result = run_again(image, policy, options, recorded=recorded, to_stderr=err, trace=trace)
        here = Recorded(trace.path)
    for note in [*recorded.notes, *here.notes, *result.notes]:
        echo(f"note: {note}", err=err)
    found = list(differences(recorded, here, learned.counters))
    for one in found[:MOST_SHOWN]:
        echo(f"differs: {one}", err=err)
    if len(found) > MOST_SHOWN:
        echo(f"… and {len(found) - MOST_SHOWN:,} more", err=err)
    echo(f"the run ended: {result.end.kind}: {result.end.detail}", err=err)
    total = counted(len(recorded), "outcome")
    if found:
        echo(f"{counted(len(found), 'difference')} from the {total} in {file}", err=err)
        return 1
    echo(f"verified: {len(recorded):,} of {total} are as in {file}", err=err)
    return 0
