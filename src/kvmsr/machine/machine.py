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

from kvmsr.abi import PIT_SPEAKER_DUMMY, Cap
from kvmsr.backend import Backend, Memory
from kvmsr.dispatch import Outcome, Sink
from kvmsr.errors import HostError, UsageError
from kvmsr.kvm import Kvm, Vcpu, Vm
from kvmsr.machine import acpi
from kvmsr.machine.arguments import (
    StrPath,
    refuse_unless,
    short,
    to_count,
    to_function,
    to_policy,
    to_seconds,
    to_size,
)
from kvmsr.machine.board import Board, BoardEvents
from kvmsr.machine.choice import choose_backend
from kvmsr.machine.cpuid import Feature, guest_cpuid, to_features
from kvmsr.machine.cpustate import apply_start
from kvmsr.machine.diagnose import where
from kvmsr.machine.gate import Gate
from kvmsr.machine.interrupts import interrupt_routes
from kvmsr.machine.layout import ACPI_BASE, FOUR_GIB, IDENTITY_MAP, TSS_PAGES, Layout
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
_MCE_BANKS: Final = 10
_MCE_FEATURES: Final = 1 << 8 | 1 << 24  # MCG_CTL, and software error recovery
_MTRR_DEF_TYPE: Final = 0x2FF
_MTRR_ENABLED_WRITE_BACK: Final = 1 << 11 | 6
_GRACE: Final = 3.0

Output = Callable[[bytes], None]

_Opened = TypeVar("_Opened", Kvm, Vm, Vcpu, Session)


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
    :param hidden: CPUID features that the guest does not see, or their names.
    :param log: called with the accesses that the policy logs; see
        :class:`~kvmsr.dispatch.Dispatcher`.
    :param output: called with the bytes that the guest sends on its serial line.
    :param debug_output: called with the bytes that it writes to the debug console; by default
        *output*.
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
        hidden: Iterable[Feature | str] = (),
        log: Sink | None = None,
        output: Output = lambda data: None,
        debug_output: Output | None = None,
        symbols: Symbols | None = None,
        trace: TraceOptions | None = None,
        timed: bool = False,
        native: bool = True,
    ) -> None:
        if to_count(cpus, "cpus") < 1:
            raise UsageError(f"a machine with {cpus} CPUs cannot run: it needs at least 1")
        self.layout = Layout.of(to_size(memory, "memory"))
        rules, features = to_policy(policy), to_features(hidden)
        if log is not None:
            to_function(log, "log", "an access, its outcome and a line")
        to_function(output, "output", "bytes")
        if debug_output is not None:
            to_function(debug_output, "debug_output", "bytes")
        self._notes: list[str] = []
        if isinstance(backend, str):
            backend, why_soft = choose_backend(backend)
            self._notes += [f"on the soft backend: {why_soft}"] if why_soft else []
        self._last_line = LastLine(output)
        self._symbols: Symbols | Path | None = symbols
        self.over = False
        self.gate = Gate()
        self._end: End | None = None
        self._watch = Watch()
        self._ending = threading.Lock()
        self._loaded: Loaded | None = None
        self._image = ""
        self._memories: list[Memory] = []
        self._threads: list[VcpuThread] = []
        self._joined = False
        self._opened: list[Kvm | Vm | Vcpu | Session] = []
        self.kvm = self._open(Kvm(backend))
        try:
            self._build(cpus, features)
            self.session = self._open(
                Session(
                    rules, self.kvm, vcpu=self.vcpus[0], ignore_msrs=ignore_msrs, log=log,
                    vcpus=cpus, trace=trace, timed=timed, use_native=native,
                )
            )  # fmt: skip
            self._put_under_policy()
            events = BoardEvents(
                self._last_line.write,
                self._last_line.write if debug_output is None else debug_output,
                self._debug_exit,
                lambda what: self.end(End(EndKind.RESET, 0, f"the guest reset itself by {what}")),
                lambda: self.end(End(EndKind.SHUTDOWN, 0, "the guest turned itself off")),
            )
            self.board = Board(self.vm, self.layout, cpus, events)
        except BaseException:
            self.close()
            raise

    # Building

    def _open(self, opened: _Opened) -> _Opened:
        """Close *opened* with the machine, before everything that was opened earlier."""
        self._opened.append(opened)
        return opened

    def _build(self, cpus: int, hidden: list[Feature]) -> None:
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
        self.vm.create_irqchip()
        self.vm.create_pit2(PIT_SPEAKER_DUMMY)
        self.vm.set_gsi_routing(interrupt_routes())
        self.vcpus = [self._open(self.vm.create_vcpu(number)) for number in range(cpus)]
        supported = kvm.get_supported_cpuid()
        deadline = bool(kvm.check_extension(Cap.TSC_DEADLINE_TIMER))
        mcg_cap = _MCE_BANKS | kvm.get_mce_cap_supported() & _MCE_FEATURES
        for vcpu in self.vcpus:
            vcpu.set_cpuid2(guest_cpuid(supported, vcpu.id, cpus, hidden, tsc_deadline=deadline))
            vcpu.setup_mce(mcg_cap)

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
            tables = acpi.build_tables(ACPI_BASE, len(self.vcpus))
            self.vm.memory_at(ACPI_BASE, len(tables))[:] = tables
            rsdp = ACPI_BASE
        self._loaded = load(Guest(self.vm, self.layout, rsdp), boot)
        self._image = str(boot.image or boot.bios)
        if self._symbols is None and boot.image is not None:
            self._symbols = Path(boot.image)
        apply_start(self.vm, self.vcpus[0], self._loaded.start)
        if boot.bios is None:
            # As firmware leaves it: memory is write-back by default. With MTRRs disabled, Linux
            # would not use PAT either.
            for vcpu in self.vcpus:
                vcpu.set_msrs({_MTRR_DEF_TYPE: _MTRR_ENABLED_WRITE_BACK})
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
