# SPDX-License-Identifier: Apache-2.0
"""
Hyper-V's hypercalls
--------------------

What kvm_hv_hypercall of arch/x86/kvm/hyperv.c takes: flushing TLBs and sending IPIs, by sets of
virtual processors; messages and events go to user space (TLFS 3).
"""

import struct
from dataclasses import dataclass
from typing import Final

from kvmsr.backend.soft.hyperv.cpuid import Bit, Features
from kvmsr.backend.soft.irqchip.message import FIXED, Message
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("is_enabled", "kvm_hv_hypercall")

_RAX, _RCX, _RDX, _RBX, _RSI, _RDI, _R8 = 0, 1, 2, 3, 6, 7, 8
_UD: Final = 6
_LOW: Final = 0xFFFF_FFFF

_FLUSH_SPACE, _FLUSH_LIST, _LONG_SPIN, _SEND_IPI = 0x2, 0x3, 0x8, 0xB
_FLUSH_SPACE_EX, _FLUSH_LIST_EX, _SEND_IPI_EX = 0x13, 0x14, 0x15
_POST_MESSAGE, _SIGNAL_EVENT = 0x5C, 0x5D
_POST_DEBUG, _RETRIEVE_DEBUG, _RESET_DEBUG = 0x69, 0x6A, 0x6B
_EXTENDED: Final = range(0x8001, 0x8004)
_BY_XMM: Final = frozenset(
    (_FLUSH_LIST, _FLUSH_SPACE, _FLUSH_LIST_EX, _FLUSH_SPACE_EX, _SEND_IPI_EX)
)

_SUCCESS, _INVALID_CODE, _INVALID_INPUT, _INVALID_ALIGNMENT, _INVALID_PARAMETER = 0, 2, 3, 4, 5
_ACCESS_DENIED, _OPERATION_DENIED = 6, 8
_RESERVED: Final = 0x1F << 27 | 0xF << 44 | 0xF << 60
_ALL_PROCESSORS: Final = 1
_SPARSE_4K, _SET_ALL = 0, 1
_IPI_VECTORS: Final = range(0x10, 0x100)
_MAX_BANKS: Final = 16  # of 64 vCPUs: KVM_MAX_VCPUS
_XMM_REGISTERS: Final = 6
_CONNECTION_IDS: Final = 0xFF_FFFF
_USE_HCALLS: Final = 1 << 2  # HV_X64_SYNDBG_OPTION_USE_HCALLS, in the debugger's options


@dataclass(slots=True)
class _Call:
    """
    A hypercall's input.

    :ivar input: where it is in the guest's memory, or, of a fast one, the first word of it.
    :ivar xmm: of a fast one, the words after the second.
    """

    control: int
    input: int
    output: int
    xmm: bytes = b""

    @property
    def code(self) -> int:
        return self.control & 0xFFFF

    @property
    def fast(self) -> bool:
        return bool(self.control >> 16 & 1)

    @property
    def var_count(self) -> int:
        return self.control >> 17 & 0x3FF

    @property
    def rep_count(self) -> int:
        return self.control >> 32 & 0xFFF

    @property
    def rep_index(self) -> int:
        return self.control >> 48 & 0xFFF

    @property
    def rep(self) -> bool:
        return bool(self.rep_count or self.rep_index)


def is_enabled(vcpu: Vcpu) -> bool:
    """Return whether a hypercall is Hyper-V's (kvm_hv_hypercall_enabled)."""
    return bool(vcpu.vm.hyperv.guest_os_id) and vcpu.hyperv.features(vcpu.cpuid).enabled


def kvm_hv_hypercall(vcpu: Vcpu, length: int) -> bool:
    """
    Do the hypercall that the registers ask for.

    :param length: of the instruction.
    :return: whether the guest goes on; False: user space has something to do.
    """
    if vcpu.cpu.cpl or not vcpu.cpu.state.cr[0] & 1:
        return vcpu.emulation.raise_exception(_UD)
    call, features = _input(vcpu), vcpu.hyperv.features(vcpu.cpuid)
    if vcpu.hyperv.enforces and not _is_allowed(features, call.code):
        return _complete(vcpu, length, _ACCESS_DENIED)
    if call.control & _RESERVED:
        return _complete(vcpu, length, _INVALID_INPUT)
    if call.fast and call.code in _BY_XMM:
        if vcpu.hyperv.enforces and not features.edx & Bit.XMM_INPUT:
            return vcpu.emulation.raise_exception(_UD)
        registers = (vcpu.cpu.register(f"XMM{number}") for number in range(_XMM_REGISTERS))
        call.xmm = b"".join(
            vcpu.cpu.read_register(number, 16).to_bytes(16, "little") for number in registers
        )
    result = _do(vcpu, call)
    if result is None:
        return _ask(vcpu, call, length)
    return _complete(vcpu, length, result)


def _input(vcpu: Vcpu) -> _Call:
    regs = vcpu.cpu.regs
    if vcpu.cpu.long_code:
        return _Call(regs[_RCX], regs[_RDX], regs[_R8])

    def pair(high: int, low: int) -> int:
        return (int(regs[high]) & _LOW) << 32 | int(regs[low]) & _LOW

    return _Call(pair(_RDX, _RAX), pair(_RBX, _RCX), pair(_RDI, _RSI))


def _complete(vcpu: Vcpu, length: int, result: int) -> bool:
    regs = vcpu.cpu.regs
    if vcpu.cpu.long_code:
        regs[_RAX] = result
    else:
        regs[_RDX], regs[_RAX] = result >> 32, result & _LOW
    return vcpu.emulation.skip(length)


def _ask(vcpu: Vcpu, call: _Call, length: int) -> bool:
    """Have user space do it."""
    vcpu.page.exit_hypercall(call.control, (call.input, call.output))
    vcpu.complete_emulation = lambda vcpu: _complete(
        vcpu, length, vcpu.run.exit.hyperv.u.hcall.result
    )
    return False


def _is_allowed(features: Features, code: int) -> bool:
    """Return whether CPUID has the bit for it (hv_check_hypercall_access)."""
    recommended = features.recommended
    if code == _LONG_SPIN:
        return features.spins not in (0, _LOW)
    if code == _POST_MESSAGE:
        return bool(features.ebx & Bit.POST_MESSAGES)
    if code == _SIGNAL_EVENT:
        return bool(features.ebx & Bit.SIGNAL_EVENTS)
    if code in (_POST_DEBUG, _RETRIEVE_DEBUG, _RESET_DEBUG):
        # Without a debugger, the code is invalid instead.
        return not features.debugger & Bit.KERNEL_DEBUGGING or bool(features.ebx & Bit.DEBUGGING)
    by_sets = code in (_FLUSH_LIST_EX, _FLUSH_SPACE_EX, _SEND_IPI_EX)
    if by_sets and not recommended & Bit.PROCESSOR_MASKS:
        return False
    if code in (_FLUSH_LIST, _FLUSH_SPACE, _FLUSH_LIST_EX, _FLUSH_SPACE_EX):
        return bool(recommended & Bit.FLUSH)
    if code in (_SEND_IPI, _SEND_IPI_EX):
        return bool(recommended & Bit.CLUSTER_IPI)
    if code in _EXTENDED:
        return bool(features.ebx & Bit.EXTENDED)
    return True


def _do(vcpu: Vcpu, call: _Call) -> int | None:
    """Do it and return the result; None: user space is to do it."""
    code = call.code
    if code == _LONG_SPIN:
        return _INVALID_INPUT if call.rep or call.var_count else _SUCCESS
    if code in (_SIGNAL_EVENT, _POST_MESSAGE):
        return _post(vcpu, call)
    if code in (_FLUSH_LIST, _FLUSH_LIST_EX, _FLUSH_SPACE, _FLUSH_SPACE_EX):
        by_list = code in (_FLUSH_LIST, _FLUSH_LIST_EX)
        bad = not call.rep_count or call.rep_index if by_list else call.rep
        old = code in (_FLUSH_LIST, _FLUSH_SPACE)
        if bad or (old and call.var_count):
            return _INVALID_INPUT
        return _flush(vcpu, call)
    if code in (_SEND_IPI, _SEND_IPI_EX):
        if call.rep or (code == _SEND_IPI and call.var_count):
            return _INVALID_INPUT
        return _send_ipi(vcpu, call)
    if code in (_POST_DEBUG, _RETRIEVE_DEBUG, _RESET_DEBUG):
        return _debug(vcpu, call)
    if code in _EXTENDED and vcpu.vm.profile.hyperv_extended:
        return _INVALID_PARAMETER if call.fast else None
    return _INVALID_CODE


def _post(vcpu: Vcpu, call: _Call) -> int | None:
    """A message, or an event, for which there are no ports here: user space may know it."""
    if call.code == _SIGNAL_EVENT:
        if call.rep or call.var_count:
            return _INVALID_INPUT
        event = call.input
        if not call.fast:
            found = None if event & 7 else vcpu.read_guest(event, 8)
            if found is None:
                return _INVALID_ALIGNMENT
            event = int.from_bytes(found, "little")
        if not event & 0xFFFF << 32 and event & ~_CONNECTION_IDS:
            return _INVALID_INPUT
    if call.rep or call.var_count or not vcpu.hyperv.synic.active:
        return _INVALID_INPUT
    return None


def _debug(vcpu: Vcpu, call: _Call) -> int | None:
    if call.code != _RESET_DEBUG and call.fast:
        return _INVALID_PARAMETER
    if not vcpu.hyperv.features(vcpu.cpuid).debugger & Bit.KERNEL_DEBUGGING:
        return _INVALID_CODE
    return None if vcpu.vm.hyperv.debugger.options & _USE_HCALLS else _OPERATION_DENIED


# Sets of virtual processors


def _words(vcpu: Vcpu, call: _Call, count: int) -> tuple[int, ...] | None:
    """Return the first words of the input; None: they are not there."""
    if call.fast:
        words = (call.input, call.output, *struct.unpack("<12Q", call.xmm or bytes(96)))
        return words[:count]
    found = vcpu.read_guest(call.input, 8 * count)
    return struct.unpack(f"<{count}Q", found) if found is not None else None


def _set(vcpu: Vcpu, call: _Call, before: int) -> tuple[int, int, frozenset[int] | None] | None:
    """
    Return the first word, the set's format, and the VP indices of the banks that follow.

    :param before: how many words come before the banks: the last two are format and mask.
    :return: None, if that is invalid; as indices None: there are no banks.
    """
    head = _words(vcpu, call, before)
    if head is None or call.var_count != head[-1].bit_count() or call.var_count > 64:
        return None
    first, form, mask = head[0], head[-2], head[-1]
    if form != _SPARSE_4K and (form == _SET_ALL or call.code != _SEND_IPI_EX):
        return first, _SET_ALL, None
    if not call.var_count:
        return first, form, None
    if call.fast and call.var_count > 2 + 2 * _XMM_REGISTERS - before:
        return None
    words = _words(vcpu, call, before + min(call.var_count, _MAX_BANKS))
    if words is None:
        return None
    banks = [bank for bank in range(64) if mask >> bank & 1]
    found = zip(banks, words[before:], strict=False)
    return (
        first,
        form,
        frozenset(64 * b + n for b, bits in found for n in range(64) if bits >> n & 1),
    )


def _members(vcpu: Vcpu, indices: frozenset[int] | None) -> list[Vcpu]:
    """Return the vCPUs with these VP indices; None: all."""
    return [
        other
        for other in vcpu.vm.vcpus.values()
        if isinstance(other, Vcpu) and (indices is None or other.hyperv.vp_index in indices)
    ]


def _mask(bits: int) -> frozenset[int]:
    return frozenset(number for number in range(64) if bits >> number & 1)


def _flush(vcpu: Vcpu, call: _Call) -> int:
    """Flush TLBs, all of them whatever is asked for (kvm_hv_flush_tlb)."""
    done = _SUCCESS | call.rep_count << 32
    indices: frozenset[int] | None
    if call.code in (_FLUSH_LIST, _FLUSH_SPACE):
        words = _words(vcpu, call, 3)
        if words is None:
            return _INVALID_INPUT
        _, flags, processors = words
        # An empty mask is a mistake of Windows Server 2012's, which means all.
        indices = None if flags & _ALL_PROCESSORS or not processors else _mask(processors)
    else:
        found = _set(vcpu, call, 4)
        if found is None:
            return _INVALID_INPUT
        _, form, indices = found
        if indices is None and form != _SET_ALL:
            return done
    for other in _members(vcpu, indices):
        other.cpu.flush_tlb()  # it does not execute: vCPUs take turns
    return done


def _send_ipi(vcpu: Vcpu, call: _Call) -> int:
    indices: frozenset[int] | None
    if vcpu.lapic is None:
        return _INVALID_INPUT
    if call.code == _SEND_IPI:
        words = _words(vcpu, call, 2)
        if words is None or (call.fast and call.input >> 32):
            return _INVALID_INPUT
        vector, indices = words[0] & _LOW, _mask(words[1])
    else:
        found = _set(vcpu, call, 3)
        if found is None:
            return _INVALID_INPUT
        vector, form, indices = found[0] & _LOW, found[1], found[2]
        if indices is None and form != _SET_ALL:
            return _SUCCESS
    if vector not in _IPI_VECTORS:
        return _INVALID_INPUT
    message = Message(vector, FIXED, 0, False, False, False)
    with vcpu.vm.lock:
        for other in _members(vcpu, indices):
            if other.lapic is not None:
                other.lapic.accept(message)
    return _SUCCESS
