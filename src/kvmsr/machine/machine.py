# SPDX-License-Identifier: Apache-2.0
"""
The machine
-----------

kvmsr's own virtual machine: memory, vCPUs, a board, and a session that decides about MSRs.
"""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final, Self, TypeVar

from kvmsr.abi import Cap
from kvmsr.backend import Backend, Memory
from kvmsr.dispatch import Outcome, Sink
from kvmsr.errors import HostError, UsageError
from kvmsr.kvm import Kvm, Vcpu, Vm
from kvmsr.machine.arguments import (
    StrPath,
    refuse_unless,
    short,
    to_console,
    to_count,
    to_disks,
    to_function,
    to_policy,
    to_seconds,
    to_size,
)
from kvmsr.machine.board import Board, BoardEvents, Disk, DiskImage
from kvmsr.machine.choice import choose_backend
from kvmsr.machine.cpuid import Features, set_up_features
from kvmsr.machine.cpustate import apply_start
from kvmsr.machine.diagnose import where
from kvmsr.machine.firmware import stand_in, tell
from kvmsr.machine.gate import Gate
from kvmsr.machine.interrupts import create_interrupt_controllers
from kvmsr.machine.layout import FOUR_GIB, IDENTITY_MAP, TSS_PAGES, Layout
from kvmsr.machine.loaders import Boot, Guest, Loaded, load
from kvmsr.machine.positions import LastLine, ended_by_the_guest, positions
from kvmsr.machine.vcpu import VcpuThread
from kvmsr.machine.watch import Watch
from kvmsr.policy import Access, Policy
from kvmsr.policy.plan import Plan
from kvmsr.session import End, EndKind, Position, RunResult, Session, VmFacts
from kvmsr.session.result import FAILED, INTERRUPTED
from kvmsr.symbols import Symbols
from kvmsr.trace import TraceOptions

__all__ = ("Machine",)

_LOW_SLOT, _HIGH_SLOT = 0, 1
_GRACE: Final = 3.0

Output = Callable[[bytes], None]

_Opened = TypeVar("_Opened", Kvm, Vm, Vcpu, Session, DiskImage)


class Machine:
    """
    A virtual machine under a policy::

        with Machine(memory="64M", policy="quiet.toml") as machine:
            machine.load(Boot("guest.bin", mode=16))
            print(machine.run(timeout=10).end)

    :param backend: who executes the guest, or a name: ``kvm``, ``soft``, or ``auto`` for KVM where
        it runs ordinary guests and soft elsewhere. If auto takes soft, a note in the result says
        why.
    :param memory: RAM, 2 MiB to 1 TiB in whole 4 KiB pages: bytes, or a size such as ``"1G"``.
    :param cpus: the number of vCPUs, at least 1.
    :param policy: what happens at MSR accesses: a policy, a policy file, or ``preset:NAME``. By
        default each access faults, and is logged once.
    :param ignore_msrs: whether the host swallows accesses to MSRs that KVM does not know; None to
        find out.
    :param shown: CPUID features that the guest has to see, or their names.
    :param hidden: those that it does not see; it sees all others that KVM or the policy has.
    :param log: called with the accesses that the policy logs; see
        :class:`~kvmsr.dispatch.Dispatcher`.
    :param output: called with the bytes that the guest sends on its serial line.
    :param debug_output: called with the bytes that it writes to the debug console; by default
        *output*.
    :param disks: its disks: raw images, read-only unless a :class:`Disk` says otherwise.
    :param console: where the guest takes input: on the ``serial`` line, or on a ``virtio`` console
        beside it, whose output goes to *output*, too.
    :param symbols: the functions of the guest, to say where it was; by default, those of a Linux
        kernel that is loaded.
    :param trace: how to record the run in a trace file; by default it is not recorded.
    :param timed: whether to count latencies; see :meth:`Session.latencies`.
    :param native: whether C may answer accesses that need no Python, on the host's KVM.
    :raises HostError: if the host lacks what is needed.
    :raises PolicyError: if the policy has an error or does not fit this KVM.
    :raises UsageError: if an argument is not of its kind.
    """

    def __init__(
        self,
        backend: Backend | str = "auto",
        *,
        memory: int | str = "256M",
        cpus: int = 1,
        policy: Policy | StrPath | None = None,
        ignore_msrs: bool | None = None,
        shown: Features = (),
        hidden: Features = (),
        log: Sink | None = None,
        output: Output = lambda data: None,
        debug_output: Output | None = None,
        disks: Iterable[Disk | StrPath] = (),
        console: str = "serial",
        symbols: Symbols | None = None,
        trace: TraceOptions | None = None,
        timed: bool = False,
        native: bool = True,
    ) -> None:
        if to_count(cpus, "cpus") < 1:
            raise UsageError(f"a machine with {cpus} CPUs cannot run: it needs at least 1")
        self.layout = Layout.of(to_size(memory, "memory"))
        rules = to_policy(policy)
        if log is not None:
            to_function(log, "log", "an access, its outcome and a line")
        to_function(output, "output", "bytes")
        self._last_line = LastLine(output)
        debug_output = self._last_line.write if debug_output is None else debug_output
        to_function(debug_output, "debug_output", "bytes")
        self._notes: list[str] = []
        if isinstance(backend, str):
            backend, why_soft = choose_backend(backend)
            self._notes += [f"on the soft backend: {why_soft}"] if why_soft else []
        self._symbols: Symbols | Path | None = symbols
        self.over = False
        self.gate = Gate()
        self._end: End | None = None
        self._watch = Watch()
        self._ending = threading.Lock()
        self._loaded: Loaded | None = None
        self._memories: list[Memory] = []
        self._threads: list[VcpuThread] = []
        self._joined = False
        self._opened: list[Kvm | Vm | Vcpu | Session | DiskImage] = []
        self.kvm = self._open(Kvm(backend))
        try:
            self._build(cpus, rules, shown, hidden)
            self.session = self._open(
                Session(
                    rules, self.kvm, vcpu=self.vcpus[0], ignore_msrs=ignore_msrs, log=log,
                    vcpus=cpus, trace=trace, timed=timed, use_native=native,
                )
            )  # fmt: skip
            self._put_under_policy()
            events = BoardEvents(
                self._last_line.write,
                debug_output,
                self._debug_exit,
                lambda what: self.end(End(EndKind.RESET, 0, f"the guest reset itself by {what}")),
                lambda: self.end(End(EndKind.POWEROFF, 0, "the guest turned itself off")),
                self._notes.append,
                lambda: self.over,
            )
            self.board = Board(self.vm, self.layout, cpus, events)
            for disk in to_disks(disks):
                self.board.add_disk(self._open(DiskImage(disk)))
            if to_console(console) == "virtio":
                self.board.add_console()
        except BaseException:
            self.close()
            raise

    # Building

    def _open(self, opened: _Opened) -> _Opened:
        """Close *opened* with the machine, before everything that was opened earlier."""
        self._opened.append(opened)
        return opened

    def _build(self, cpus: int, policy: Policy, shown: Features, hidden: Features) -> None:
        kvm = self.kvm
        kvm.require(
            Cap.USER_MEMORY, Cap.IRQCHIP, Cap.PIT2, Cap.IMMEDIATE_EXIT, Cap.X86_USER_SPACE_MSR,
            Cap.X86_MSR_FILTER,
        )  # fmt: skip
        most = kvm.check_extension(Cap.MAX_VCPUS)
        if cpus > most:
            raise UsageError(f"a machine with {cpus} CPUs: this KVM runs {most} at most")
        self.vm = self._open(kvm.create_vm())
        self.vm.set_identity_map_addr(IDENTITY_MAP)
        self.vm.set_tss_addr(TSS_PAGES)
        self._add_memory(_LOW_SLOT, 0, self.layout.low_size)
        if self.layout.high_size:
            self._add_memory(_HIGH_SLOT, FOUR_GIB, self.layout.high_size)
        create_interrupt_controllers(self.vm)
        self.vcpus = [self._open(self.vm.create_vcpu(number)) for number in range(cpus)]
        self._notes += set_up_features(kvm, self.vcpus, policy, shown, hidden)

    def _put_under_policy(self) -> None:
        facts = VmFacts(
            vcpus=len(self.vcpus),
            clock=lambda: self.vm.get_clock().clock,
            rip=lambda number: self.vcpus[number].get_regs().rip,
            memory=self._read_memory,
        )
        guests = self.session.add_vm(self.vm, self.vcpus, facts, self._stop_at)
        self._threads = [
            VcpuThread(self, vcpu, guest) for vcpu, guest in zip(self.vcpus, guests, strict=True)
        ]

    @property
    def plan(self) -> Plan:
        """Return the policy's plan on this KVM."""
        return self.session.plan

    def _stop_at(self, vcpu: Vcpu) -> Callable[[Access, Outcome], None]:
        """Return a function that ends the run at an access of *vcpu*."""

        def stop(access: Access, outcome: Outcome) -> None:
            # What becomes of the instruction afterwards moves RIP.
            place = self._threads[vcpu.id].stopped_at = where(vcpu)
            detail = f"{outcome.rule} stops the run at a {access}, RIP {place.rip:#x}"
            self.end(End(EndKind.STOP, FAILED, detail))

        return stop

    def _read_memory(self, address: int, size: int) -> bytes | None:
        try:
            return bytes(self.vm.memory_at(address, size))
        except UsageError:
            return None

    def _add_memory(self, slot: int, address: int, size: int) -> None:
        memory = Memory(size)
        self._memories.append(memory)
        self.vm.set_user_memory_region(slot, address, memory)

    def load(self, boot: Boot) -> Loaded:
        """
        Load a guest.

        :raises ImageError: if it cannot be loaded.
        """
        remedy = f"give a Boot: Boot({short(boot)})"
        refuse_unless(isinstance(boot, Boot), "boot", boot, remedy)
        rsdp = 0
        if boot.bios is None:
            rsdp = stand_in(self.vm, self.vcpus, self.layout, self.board, self.plan.policy)
        else:
            tell(self.vcpus, self.layout, self.board, boot, self.plan.policy)
        self._loaded = load(Guest(self.vm, self.layout, rsdp), boot)
        self._image = str(boot.image or boot.bios)
        if self._symbols is None and boot.image is not None:
            self._symbols = Path(boot.image)
        apply_start(self.vm, self.vcpus[0], self._loaded.start)
        return self._loaded

    # Running

    @property
    def exits(self) -> int:
        """Return the number of exits so far, as a sign of life."""
        return sum(thread.exits for thread in self._threads)

    def run(self, timeout: float | None = None) -> RunResult:
        """
        Run the guest until it ends. A machine runs once.

        :param timeout: seconds after which the run ends, whatever the guest does, or None.
        :raises UsageError: if nothing is loaded, or the machine has run already.
        """
        timeout = to_seconds(timeout, "timeout")
        if self._loaded is None:
            raise UsageError("nothing is loaded: call load() first")
        if self.over:
            raise UsageError("this machine has run already: build another one")
        self.session.begin_recording("run", self._image, cpuid=self.vcpus[0].get_cpuid2())
        begun = time.monotonic()
        try:
            self._start()
            self._watch.wait(self, self._threads, timeout)
        except KeyboardInterrupt:
            self.end(End(EndKind.STOP, INTERRUPTED, "interrupted"))
        self._join()
        self.session.end_recording()
        wall = time.monotonic() - begun
        assert self._end is not None
        notes = [*self._notes, *self._loaded.notes]
        notes += [
            f"vCPU {thread.vcpu.id} did not stop within {_GRACE:g} seconds: a handler may still be"
            " running"
            for thread in self._threads
            if thread.is_alive()
        ]
        result = self.session.result(self._image, self._end, wall, notes=notes)
        found = () if ended_by_the_guest(self._end) else self._positions()
        return replace(result, positions=found, last_line=self._last_line.text)

    def _positions(self) -> tuple[Position, ...]:
        return positions(self._threads, self.board.name, self._symbols)

    def _start(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            raise HostError(f"cannot start a thread per vCPU: {error}; use fewer CPUs") from None

    def end(self, end: End) -> None:
        """End the run; the first call decides how. May be called from any thread."""
        with self._ending:
            if self._end is None:
                self._end = end
        self.over = True
        self._watch.news.set()
        self._kick()

    def fell_asleep(self) -> None:
        """Look soon whether the guest has halted for good: a vCPU's thread may have noticed."""
        if all(thread.asleep for thread in self._threads):
            self._watch.news.set()

    def _debug_exit(self, value: int) -> None:
        detail = f"the guest wrote {value:#x} to the debug exit"
        self.end(End(EndKind.DEBUG_EXIT, (value << 1 | 1) & 0xFF, detail))

    def held(self) -> AbstractContextManager[None]:
        """Return a context in which no vCPU runs; :class:`UsageError` if one does not stop."""
        return self.gate.shut(self._threads, self._kick)

    def _kick(self) -> None:
        for vcpu in self.vcpus:
            vcpu.kick()

    def _join(self) -> None:
        """Wait for the threads, once. They have been kicked; those that go on are kicked again."""
        if self._joined:
            return
        self._joined = True
        deadline = time.monotonic() + _GRACE
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < deadline:
                thread.join(0.1)
                if thread.is_alive():
                    thread.vcpu.kick()

    # The end

    def close(self) -> None:
        """
        Release all resources. May be called again.

        While a handler is still running, its vCPU keeps the machine open: call this again later.
        """
        if self._alive():
            if self._end is None:
                self.end(End(EndKind.STOP, INTERRUPTED, "closed"))
            self._join()
            if self._alive():
                return
        for thread in self._threads:
            thread.let_go()
        while self._opened:
            self._opened.pop().close()
        for memory in self._memories:
            memory.close()
        self._memories = []

    def _alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
