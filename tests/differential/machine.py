# SPDX-License-Identifier: Apache-2.0
"""
Machines of scenarios
---------------------

Plays a scenario on a backend and tells everything that guest and user space could see. Nothing
beyond the standard library is needed, because inside the nested machine there is no more.
"""

import errno
import threading
from typing import Any, Final

from kvmsr.abi import Cap, ExitReason, address_of, buffer, cpu, ioctls, run, vm
from kvmsr.backend import Backend, Memory
from tests.differential import guest
from tests.differential.cpuid import table
from tests.differential.guest import Block
from tests.differential.scenario import Call, Scenario

__all__ = ("Observation", "play")

Observation = list[tuple[str, Any]]
"""What was seen, in order: where, and what."""

PATIENCE: Final = 10.0
"""Seconds after which a guest is taken to hang; it takes milliseconds."""
MOST_RUNS: Final = 40
_LAST: Final = frozenset((ExitReason.SHUTDOWN, ExitReason.INTERNAL_ERROR, ExitReason.FAIL_ENTRY))
_DATA: Final = 0x1000
_UNION: Final = 0x20
_CONTROL_REGISTERS: Final = ("cr0", "cr3", "cr4", "cr8", "efer", "apic_base")
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_KEPT: Final = (0x10, 0x1B, 0x3B, 0xC0000080, 0xC0000102, 0x277, 0x1A0, 0x4B564D01)
"""MSRs that are looked at in the end, besides those that are named."""


def play(backend: Backend, scenario: Scenario) -> Observation:
    """Play a scenario."""
    machine = _Machine(backend, scenario)
    try:
        return machine.play()
    finally:
        machine.close()


class _Machine:
    def __init__(self, backend: Backend, scenario: Scenario) -> None:
        self._backend, self._scenario = backend, scenario
        self._seen: Observation = []
        self._memory = Memory(guest.MEMORY)
        self._keep: list[Any] = []
        self._vcpu = -1
        self._refused = False
        code, self._blocks = guest.assemble(scenario.mode, scenario.program)
        guest.fill(self._memory, scenario.mode, code)
        self._system = backend.open()
        self._vm = backend.ioctl(self._system, ioctls.KVM_CREATE_VM)
        region = vm.UserspaceMemoryRegion(
            memory_size=guest.MEMORY, userspace_addr=self._memory.address
        )
        backend.ioctl(self._vm, ioctls.KVM_SET_USER_MEMORY_REGION, region)

    def close(self) -> None:
        for fd in (self._vcpu, self._vm, self._system):
            if fd >= 0:
                self._backend.close(fd)
        self._memory.close()

    def play(self) -> Observation:
        scenario = self._scenario
        if scenario.irqchip:
            self._backend.ioctl(self._vm, ioctls.KVM_CREATE_IRQCHIP)
        self._do(scenario.early)
        self._create_vcpu()
        hung = threading.Event()

        def kick() -> None:
            hung.set()
            self._backend.kick(self._vcpu)

        watchdog = threading.Timer(PATIENCE, kick)
        watchdog.start()
        try:
            for number in range(MOST_RUNS):
                self._do(scenario.turns[number] if number < len(scenario.turns) else ())
                ended = self._run("run")
                if hung.is_set():
                    self._seen.append(("hang", None))
                    return self._seen
                if ended or (self._refused and number >= len(scenario.turns)):
                    break  # a state that KVM does not run stays so
        finally:
            watchdog.cancel()
            watchdog.join()
        self._look_at_the_end()
        return self._seen

    def _create_vcpu(self) -> None:
        scenario = self._scenario
        self._vcpu = self._backend.ioctl(self._vm, ioctls.KVM_CREATE_VCPU, 0)
        size = self._backend.ioctl(self._system, ioctls.KVM_GET_VCPU_MMAP_SIZE)
        self._mapping = self._backend.mmap(self._vcpu, size)
        self._page: Any = run.Run.from_buffer(self._mapping)
        if scenario.cpuid is not None:
            self._do((("cpuid", scenario.vendor, scenario.cpuid),))
        sregs = self._get(ioctls.KVM_GET_SREGS, cpu.Sregs)
        guest.set_mode(sregs, scenario.mode)
        self._backend.ioctl(self._vcpu, ioctls.KVM_SET_SREGS, sregs)
        self._backend.ioctl(self._vcpu, ioctls.KVM_SET_REGS, guest.start(scenario.mode))

    # Ioctls

    def _get(self, request: int, kind: Any) -> Any:
        found = kind()
        self._backend.ioctl(self._vcpu, request, found)
        return found

    def _try(self, fd: int, request: int, argument: Any = 0) -> Any:
        """Do an ioctl and return its result, or the errno's name."""
        try:
            return self._backend.ioctl(fd, request, argument)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    # Moves

    def _do(self, moves: tuple[Call, ...]) -> None:
        for name, *arguments in moves:
            result = getattr(self, f"_move_{name}")(*arguments)
            if result is not None:
                self._seen.append((f"move {name}", result))

    def _move_mask(self, value: int, flags: int = 0) -> Any:
        return self._enable(self._vm, Cap.X86_USER_SPACE_MSR, value, flags)

    def _move_platform_info(self, value: int) -> Any:
        return self._enable(self._vm, Cap.MSR_PLATFORM_INFO, value)

    def _move_enforce_pv(self, value: int) -> Any:
        return self._enable(self._vcpu, Cap.ENFORCE_PV_FEATURE_CPUID, value)

    def _enable(self, fd: int, cap: int, value: int, flags: int = 0) -> Any:
        given = vm.EnableCap(cap=cap, flags=flags)
        given.args[0] = value
        return self._try(fd, ioctls.KVM_ENABLE_CAP, given)

    def _move_filter(self, flags: int, ranges: tuple[tuple[int, int, int, int], ...]) -> Any:
        given = vm.MsrFilter(flags=flags)
        bitmaps = []
        for slot, (slot.flags, slot.nmsrs, slot.base, bits) in zip(
            given.ranges, ranges, strict=False
        ):
            size = (min(slot.nmsrs, 0x3001) + 63) // 64 * 8
            bitmaps.append(buffer(max(size, 8), bits.to_bytes(max(size, 8), "little")))
            slot.bitmap = address_of(bitmaps[-1])
        return self._try(self._vm, ioctls.KVM_X86_SET_MSR_FILTER, given)

    def _move_cpuid(self, vendor: str, features: tuple[str, ...]) -> Any:
        return self._try(self._vcpu, ioctls.KVM_SET_CPUID2, table(vendor, features))

    def _move_error(self, value: int) -> None:
        self._page.exit.msr.error = value

    def _move_data(self, value: int) -> None:
        self._page.exit.msr.data = value

    def _move_scribble(self, byte: int) -> None:
        """Write what user space has no business to write at an MSR exit."""
        msr = self._page.exit.msr
        msr.pad[:] = [byte] * 7
        msr.reason = msr.index = byte * 0x0101_0101
        self._page.exit_reason = 0x1000 | byte  # no exit that there is: what belongs to it is seen
        self._page.flags = byte

    def _move_cr8(self, value: int) -> None:
        self._page.cr8 = value

    def _move_window(self, value: int) -> None:
        self._page.request_interrupt_window = value

    def _move_valid_regs(self, value: int) -> None:
        self._page.kvm_valid_regs = value

    def _move_dirty_regs(self, value: int, name: str, to: int) -> None:
        regs = self._get(ioctls.KVM_GET_REGS, cpu.Regs)
        setattr(regs, name, to)
        self._page.s.regs.regs = regs
        self._page.s.regs.sregs = self._get(ioctls.KVM_GET_SREGS, cpu.Sregs)
        self._page.s.regs.events = self._get(ioctls.KVM_GET_VCPU_EVENTS, cpu.VcpuEvents)
        self._page.kvm_dirty_regs = value

    def _move_reg(self, name: str, value: int) -> Any:
        regs = self._get(ioctls.KVM_GET_REGS, cpu.Regs)
        setattr(regs, name, value)
        return self._try(self._vcpu, ioctls.KVM_SET_REGS, regs)

    def _move_skip(self, instructions: int) -> Any:
        """Set RIP to the start of an instruction: a number of them after the current one."""
        regs = self._get(ioctls.KVM_GET_REGS, cpu.Regs)
        at = self._block_at(regs.rip)
        if at is None:
            return None
        number = self._blocks.index(at) + instructions
        regs.rip = self._blocks[max(0, min(number, len(self._blocks) - 1))].start
        return self._try(self._vcpu, ioctls.KVM_SET_REGS, regs)

    def _move_sreg(self, name: str, value: int) -> Any:
        sregs = self._get(ioctls.KVM_GET_SREGS, cpu.Sregs)
        setattr(sregs, name, value)
        return self._try(self._vcpu, ioctls.KVM_SET_SREGS, sregs)

    def _move_sregs(self) -> Any:
        """Set the special registers to what they are."""
        sregs = self._get(ioctls.KVM_GET_SREGS, cpu.Sregs)
        return self._try(self._vcpu, ioctls.KVM_SET_SREGS, sregs)

    def _move_events(self) -> Any:
        """Set the events to what they are."""
        events = self._get(ioctls.KVM_GET_VCPU_EVENTS, cpu.VcpuEvents)
        return self._try(self._vcpu, ioctls.KVM_SET_VCPU_EVENTS, events)

    def _move_exception(self, vector: int, code: int | None) -> Any:
        events = self._get(ioctls.KVM_GET_VCPU_EVENTS, cpu.VcpuEvents)
        exception = events.exception
        exception.injected, exception.pending, exception.nr = 1, 0, vector
        exception.has_error_code, exception.error_code = int(code is not None), code or 0
        return self._try(self._vcpu, ioctls.KVM_SET_VCPU_EVENTS, events)

    def _move_nmi(self) -> Any:
        return self._try(self._vcpu, ioctls.KVM_NMI)

    def _move_interrupt(self, vector: int) -> Any:
        return self._try(self._vcpu, ioctls.KVM_INTERRUPT, cpu.Interrupt(irq=vector))

    def _move_debug(self, control: int) -> Any:
        given = cpu.GuestDebug(control=control)
        given.arch.debugreg[7] = 0x400
        return self._try(self._vcpu, ioctls.KVM_SET_GUEST_DEBUG, given)

    def _move_mce(self, mcg_cap: int) -> Any:
        data = buffer(8, mcg_cap.to_bytes(8, "little"))
        return self._try(self._vcpu, ioctls.KVM_X86_SETUP_MCE, data)

    def _move_mp_state(self, value: int) -> Any:
        return self._try(self._vcpu, ioctls.KVM_SET_MP_STATE, cpu.MpState(mp_state=value))

    def _move_set_msrs(self, pairs: tuple[tuple[int, int], ...]) -> Any:
        return self._try(self._vcpu, ioctls.KVM_SET_MSRS, _msrs(pairs))

    def _move_get_msrs(self, indices: tuple[int, ...]) -> Any:
        return self._get_msrs(indices)

    def _get_msrs(self, indices: tuple[int, ...]) -> Any:
        given = _msrs(tuple((index, 0x5A5A_5A5A) for index in indices))
        count = self._try(self._vcpu, ioctls.KVM_GET_MSRS, given)
        return count, [(entry.index, entry.data) for entry in given.entries]

    def _move_flush(self) -> None:
        """Complete what is pending without running the guest."""
        self._page.immediate_exit = 1
        self._run("flush")
        self._page.immediate_exit = 0

    # What is seen

    def _run(self, name: str) -> bool:
        """Do KVM_RUN, and look; return whether that was the last."""
        result = self._try(self._vcpu, ioctls.KVM_RUN)
        self._refused = result == "EINVAL"
        page = self._page
        self._seen.append((f"{name}", result))
        exit_reason = page.exit_reason
        self._seen.append(("exit_reason", exit_reason))
        for field in ("ready_for_interrupt_injection", "if_flag", "flags", "cr8", "apic_base",
                      "immediate_exit", "kvm_dirty_regs"):  # fmt: skip
            self._seen.append((field, getattr(page, field)))
        self._look_at_exit(exit_reason)
        self._look_at_registers()
        if result != 0:
            return False
        at_end = exit_reason == ExitReason.IO and page.exit.io.port == guest.END_PORT
        return at_end or exit_reason in _LAST

    def _look_at_exit(self, reason: int) -> None:
        page = self._page
        if reason == ExitReason.IO:
            io = page.exit.io
            told = [io.direction, io.size, io.port, io.count, io.data_offset]
            if io.direction:
                told.append(bytes(memoryview(self._mapping)[_DATA : _DATA + io.size]).hex())
            self._seen.append(("io", told))
        elif reason == ExitReason.DEBUG:
            arch = page.exit.debug.arch
            self._seen.append(("debug", [arch.exception, arch.pc, arch.dr6, arch.dr7]))
        elif reason == ExitReason.INTERNAL_ERROR:
            self._seen.append(("suberror", page.exit.internal.suberror))
        elif reason in (ExitReason.X86_RDMSR, ExitReason.X86_WRMSR):
            union = bytes(memoryview(self._mapping)[_UNION : _UNION + 0x18])
            self._seen.append(("msr", union.hex(" ", 8)))

    def _look_at_registers(self) -> None:
        regs = self._get(ioctls.KVM_GET_REGS, cpu.Regs)
        values = {name: getattr(regs, name) for name, *_ in cpu.Regs._fields_}
        block = self._block_at(regs.rip)
        volatile = block is not None and block.call[0] == "rdmsr" and regs.rip >= block.after
        self._seen.append(("regs" if not volatile else f"regs after {block.call[1]:#x}", values))
        if self._page.kvm_valid_regs & 1:
            self._seen.append(("sync regs", bytes(self._page.s.regs.regs) == bytes(regs)))
        sregs = self._get(ioctls.KVM_GET_SREGS, cpu.Sregs)
        told = {name: getattr(sregs, name) for name in _CONTROL_REGISTERS}
        for name in _SEGMENTS:
            segment = getattr(sregs, name)
            told[name] = [getattr(segment, field) for field, *_ in cpu.Segment._fields_]
        told["tables"] = [sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit]
        told["interrupt_bitmap"] = list(sregs.interrupt_bitmap)
        self._seen.append(("sregs", told))
        events = self._get(ioctls.KVM_GET_VCPU_EVENTS, cpu.VcpuEvents)
        self._seen.append(("events", bytes(events).hex(" ", 4)))

    def _look_at_the_end(self) -> None:
        for part in guest.OBSERVED:
            words = memoryview(bytes(self._memory.view[part])).cast("Q")
            found = {part.start + 8 * at: word for at, word in enumerate(words) if word}
            self._seen.append((f"memory {part.start:#x}", found))
        scenario = self._scenario
        named = {one[1] for one in scenario.instructions("rdmsr", "wrmsr")}
        named |= {pair[0] for one in scenario.moves("set_msrs") for pair in one[1]}
        for index in sorted(named | set(_KEPT)):
            self._seen.append((f"msr {index:#x}", self._get_msrs((index,))))

    def _block_at(self, rip: int) -> Block | None:
        return next((one for one in self._blocks if one.start <= rip < one.end), None)


def _msrs(pairs: tuple[tuple[int, int], ...]) -> Any:
    made = cpu.msrs(len(pairs))
    made.nmsrs = len(pairs)
    for entry, (index, data) in zip(made.entries, pairs, strict=True):
        entry.index, entry.data = index, data
    return made
