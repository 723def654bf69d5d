# SPDX-License-Identifier: Apache-2.0
"""
kvmsr run
---------

Runs a guest in kvmsr's own machine.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click

from kvmsr import backend as backends
from kvmsr.backend.soft import DEFAULT_PROFILE
from kvmsr.cli._console import access_log, guest_input, guest_output
from kvmsr.cli._names import speak_of_guest
from kvmsr.cli._output import echo, print_json
from kvmsr.cli._parameters import LOG, NAME, OBSERVE, POLICY, STATE, DiskFile, MemorySize
from kvmsr.cli._progress import progress
from kvmsr.cli._reload import RELOAD, expect_hangup, reloading, terminal_is_there
from kvmsr.cli._traces import SYMBOLS
from kvmsr.cli._tracing import served, traced
from kvmsr.cli._view import View, shown_live
from kvmsr.errors import KvmsrError, UsageError
from kvmsr.machine import Boot, Disk, Feature, Machine, MachineDriver, find_feature
from kvmsr.machine.arguments import CONSOLES, to_seconds
from kvmsr.machine.choice import choose_backend
from kvmsr.policy import Policy
from kvmsr.policy.file import load_policy
from kvmsr.policy.selector import Ranges
from kvmsr.session import RunResult, kept_state, save_state
from kvmsr.session.control import ControlServer
from kvmsr.session.requests import About, Requests
from kvmsr.session.supervisor import Witness, supervise
from kvmsr.symbols import Symbols
from kvmsr.trace import TraceOptions

__all__ = ("command", "run_guest")


_PATH = click.Path(path_type=Path)

_EXAMPLES = """\b
Examples:
  kvmsr run vmlinuz --append console=ttyS0 --policy quiet.toml
  kvmsr run --bios bios.bin --timeout 20
  kvmsr run code.bin --mode 16 --json --serial guest.log
  kvmsr run vmlinuz --trace boot.arrows --trace-callers 4
  kvmsr run vmlinuz --append console=ttyS0 --live
  kvmsr run vmlinuz --initrd initrd.img --disk root.img,write --append "root=/dev/vda console=ttyS0"
"""


@click.command(epilog=_EXAMPLES)
@click.argument("image", type=_PATH, required=False)
@click.option(
    "--backend",
    type=click.Choice(backends.NAMES),
    default="auto",
    show_default=True,
    help="What executes the guest: the host's KVM, or soft, a model of KVM on a software CPU.",
)
@click.option(
    "--soft-profile",
    metavar="NAME",
    default=DEFAULT_PROFILE,
    show_default=True,
    help="The kernel that the soft backend models.",
)
@click.option(
    "--real-time", is_flag=True, help="On the soft backend, let the guest sleep in real time."
)
@POLICY
@OBSERVE
@click.option("--cpus", type=int, default=1, show_default=True, help="The number of vCPUs.")
@click.option(
    "--memory", type=MemorySize(), default="256M", show_default=True, help="The amount of RAM."
)
@click.option("--append", default="", help="The kernel's command line.")
@click.option(
    "--initrd",
    type=_PATH,
    multiple=True,
    help="An initial RAM disk; for a multiboot kernel, a module. Modules may be repeated.",
)
@click.option("--bios", type=_PATH, help="A firmware image. It may start IMAGE, a Linux bzImage.")
@click.option(
    "--option-rom",
    type=_PATH,
    help="An option ROM for the firmware. SeaBIOS starts IMAGE with QEMU's linuxboot_dma.bin.",
)
@click.option(
    "--mode",
    type=click.Choice(["16", "32", "64"]),
    help="Start IMAGE, a flat binary, in this mode.",
)
@click.option(
    "--cpu",
    type=click.Choice(["host"]),
    default="host",
    show_default=True,
    help="What CPUID shows: host is everything that KVM supports here.",
)
@click.option(
    "--cpu-feature",
    "cpu_features",
    multiple=True,
    metavar="+NAME|-NAME",
    help="Require or hide a CPUID feature. The guest sees those that KVM supports, and those whose"
    " MSRs the policy answers.",
)
@click.option(
    "--serial",
    default="-",
    metavar="FILE|-",
    show_default=True,
    help="Where to write the output of the guest's serial line; - is the terminal.",
)
@click.option(
    "--disk",
    "disks",
    type=DiskFile(),
    multiple=True,
    help="A raw disk image, as a virtio disk. The guest may write to it with FILE,write.",
)
@click.option(
    "--console",
    type=click.Choice(CONSOLES),
    default="serial",
    show_default=True,
    help="Where what is typed arrives: on the serial line (ttyS0) or a virtio console (hvc0).",
)
@LOG
@STATE
@traced
@RELOAD
@NAME
@SYMBOLS
@click.option("--timeout", type=float, metavar="S", help="End the run after S seconds.")
@click.option("--live", is_flag=True, help="Watch the run meanwhile, as kvmsr top does.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    image: Path | None,
    backend: str,
    soft_profile: str,
    real_time: bool,
    policy: str | None,
    observe: Ranges,
    cpus: int,
    memory: int,
    append: str,
    initrd: tuple[Path, ...],
    bios: Path | None,
    option_rom: Path | None,
    mode: str | None,
    cpu: str,
    cpu_features: tuple[str, ...],
    serial: str,
    disks: tuple[Disk, ...],
    console: str,
    log: str,
    state: Path | None,
    trace: TraceOptions | None,
    metrics: str | None,
    reload: bool,
    name: str,
    symbols: Path | None,
    timeout: float | None,
    live: bool,
    as_json: bool,
) -> int:
    """
    Run a guest and show every MSR that it accessed.

    IMAGE is a Linux bzImage, a multiboot kernel, an ELF kernel with a PVH entry, or a flat binary
    (--mode). The guest's serial line is connected to the terminal; Ctrl-C ends the run. At the end,
    a table shows the MSR accesses that reached user space, and how the run ended.
    """
    if live and as_json:
        raise UsageError("--live shows a table at the end, and --json is no table: leave one out")
    timeout = to_seconds(timeout, "--timeout")
    number = None if mode is None else int(mode)
    boot = Boot(image, append, initrd, bios, number, option_rom)
    expect_hangup(reload)
    rules = (load_policy(policy) if policy else Policy()).observing(observe)
    shown, hidden = _features(cpu_features)
    with shown_live(live) as view:
        report = partial(_print, as_json=as_json, view=view)
        witness = supervise(rules, report, reloads=reload)
        chosen, why_soft = choose_backend(backend, profile=soft_profile, real_time=real_time)
        result = run_guest(
            boot,
            rules,
            observe=observe,
            serial=serial,
            log=log,
            state=state,
            reload=reload,
            name=name,
            timeout=timeout,
            as_json=as_json,
            note=f"on the soft backend: {why_soft}" if why_soft else "",
            witness=witness,
            view=view,
            backend=chosen,
            cpus=cpus,
            memory=memory,
            shown=shown,
            hidden=hidden,
            disks=disks,
            console=console,
            symbols=None if symbols is None else Symbols.read(symbols),
            trace=trace,
            metrics=metrics,
        )
    return result.exit_status


def _features(words: Iterable[str]) -> tuple[list[Feature], list[Feature]]:
    """Return the features that *words* require, and those that they hide."""
    found: dict[str, list[Feature]] = {"+": [], "-": []}
    for word in words:
        if word[:1] not in found:
            remedy = f"write -{word} to hide it, or +{word} to require it"
            raise UsageError(f"--cpu-feature {word}: {remedy}")
        try:
            found[word[0]].append(find_feature(word[1:]))
        except UsageError as error:
            raise UsageError(f"--cpu-feature {word}: {error}") from None
    return found["+"], found["-"]


def run_guest(
    boot: Boot,
    policy: Policy,
    *,
    observe: Ranges = (),
    serial: str = "-",
    log: str = "-",
    state: Path | None = None,
    reload: bool = False,
    name: str = "",
    timeout: float | None = None,
    as_json: bool = False,
    note: str = "",
    metrics: str | None = None,
    witness: Witness | None = None,
    view: View | None = None,
    **machine: Any,
) -> RunResult:
    """
    Run a guest on the terminal, print the result and return it.

    :param observe: what to observe under policies that replace this one, too.
    :param serial: the file for the output of the serial line; ``-`` is the terminal.
    :param log: the file for accesses that the policy logs; ``-`` is standard error.
    :param state: the file that keeps the registers from one run to the next.
    :param reload: reload the policy when its files change, and at SIGHUP.
    :param name: the run's name, or "".
    :param note: a line for the notes of the result; on a terminal it is also shown at once.
    :param metrics: where to serve metrics; None if nobody wants them.
    :param witness: the connection to the supervisor.
    :param view: the connection to the live view.
    :param machine: arguments for :class:`~kvmsr.machine.Machine`.
    """
    kept = None if state is None else kept_state(state)
    view = view or View()
    with ExitStack() as stack:
        output = stack.enter_context(guest_output(serial, to_stderr=as_json or view.is_there))
        output, sink = stack.enter_context(access_log(log, output, shared=serial == "-"))
        guest = stack.enter_context(
            Machine(policy=policy, output=output, log=sink, timed=metrics is not None, **machine)
        )
        if kept is not None:
            guest.session.restore(kept, f"--state {state}")
        guest.load(boot)
        speak_of_guest(guest.vcpus[0].get_cpuid2())
        witness = witness or Witness()
        what = str(boot.image or boot.bios)
        requests = Requests(MachineDriver(guest, what), About("run", what, name), witness, observe)
        server = ControlServer(requests.handle)
        stack.callback(server.close)
        stack.enter_context(served(guest.session, metrics))
        on_hangup = stack.enter_context(reloading(requests, reload))
        stack.enter_context(_terminated_as_interrupted(on_hangup))
        stack.enter_context(guest_input(guest.board.line))
        if serial != "-":
            stack.enter_context(progress(guest))
        if note and sys.stderr.isatty() and not as_json:
            echo(f"kvmsr: {note}", err=True)
        witness.begin(guest.session, what, timeout=timeout, state=state)
        view.begin()
        stack.callback(witness.end)
        result = guest.run(timeout)
        unsaved = None if state is None else _save(guest, state)
        witness.end()
        view.leave(_end_of(result))  # while kvmsr run can still be asked
    notes = [*server.notes, *([note] if note else [])]
    if notes:
        result = replace(result, notes=(*notes, *result.notes))
    _print(result, as_json=as_json, view=view)
    if unsaved is not None:
        raise unsaved
    return result


def _save(guest: Machine, file: Path) -> KvmsrError | None:
    """Save the registers, and return the error if that fails."""
    try:
        with guest.held():  # a handler may still be running
            save_state(file, guest.session.state())
    except KvmsrError as error:
        return UsageError(f"--state {file}: the state was not saved: {error}")
    return None


def _print(result: RunResult, *, as_json: bool, view: View) -> None:
    view.leave(_end_of(result))
    if as_json:
        print_json(result.as_dict())
    else:
        from kvmsr.cli._table import print_positions, print_result

        sys.stdout.flush()
        print_positions(result)
        print_result(result)


def _end_of(result: RunResult) -> str:
    return ": ".join(filter(None, (str(result.end.kind), result.end.detail)))


@contextmanager
def _terminated_as_interrupted(on_hangup: Callable[[], None] | None) -> Iterator[None]:
    """
    Let SIGTERM and SIGHUP end a run like Ctrl-C: with a summary and the terminal restored.

    :param on_hangup: called at a SIGHUP that does not come from the terminal's end; if it is None,
        every SIGHUP ends the run.
    """
    had_terminal = on_hangup is not None and terminal_is_there()

    def hang_up(number: int, frame: FrameType | None) -> None:
        if on_hangup is None or (had_terminal and not terminal_is_there()):
            raise KeyboardInterrupt
        on_hangup()

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, hang_up),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
