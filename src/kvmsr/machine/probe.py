# SPDX-License-Identifier: Apache-2.0
"""
The probe guest
---------------

Finds out whether a KVM runs ordinary guests. A KVM that has to emulate what guests execute may lack
instructions. A tiny guest tries some that operating systems use early.
"""

import threading
from dataclasses import dataclass
from importlib import resources
from typing import Final

from kvmsr.backend import Backend, Memory
from kvmsr.errors import KvmsrError
from kvmsr.kvm import CpuidTable, Kvm, Vcpu, Vm
from kvmsr.kvm.exits import EmulationFailure, IoOut
from kvmsr.machine.cpuid import has
from kvmsr.machine.cpustate import Mode, Start, apply_start
from kvmsr.machine.layout import FLAT_32, STACK
from kvmsr.msr import features

__all__ = ("Verdict", "probe")

# What guests/probe.S tries, in its order, and the CPUID feature that this requires.
CASES: Final = (
    ("long mode", ""),
    ("int3", ""),
    ("cmpxchg16b", "cx16"),
    ("sse", "sse2"),
    ("crc32", "sse4_2"),
    ("movbe", "movbe"),
    ("clac", "smap"),
    ("xsaveopt", "xsaveopt"),
)

_MEMORY: Final = 2 << 20
_PORT: Final = 0xF4
_DONE: Final = 1
_PATIENCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    The result of the probe guest.

    :ivar tried: the names of the cases.
    :ivar failed: the cases that did not work, with what happened.
    """

    tried: tuple[str, ...]
    failed: dict[str, str]

    @property
    def ordinary(self) -> bool:
        """Return whether ordinary guests can be expected to run."""
        return not self.failed


def probe(backend: Backend) -> Verdict:
    """Run the probe guest on *backend*, once per case."""
    image = resources.files("kvmsr.machine").joinpath("guests", "probe.bin").read_bytes()
    tried: list[str] = []
    failed: dict[str, str] = {}
    with Kvm(backend) as kvm:
        supported = kvm.get_supported_cpuid()
        for number, (name, feature) in enumerate(CASES):
            if feature and not has(supported, features()[feature]):
                continue
            tried.append(name)
            what = _try(kvm, supported, image, number)
            if what:
                failed[name] = what
    return Verdict(tuple(tried), failed)


def _try(kvm: Kvm, supported: CpuidTable, image: bytes, number: int) -> str:
    """Return what went wrong with case *number*, or ""."""
    memory = Memory(_MEMORY)
    try:
        with kvm.create_vm() as vm:
            vm.set_user_memory_region(0, 0, memory)
            memory.view[FLAT_32 : FLAT_32 + len(image)] = image
            with vm.create_vcpu(0) as vcpu:
                vcpu.set_cpuid2(supported)
                registers = {"rsp": STACK, "rdi": number}
                apply_start(vm, vcpu, Start(Mode.LONG, FLAT_32, registers))
                return _run(vm, vcpu)
    except KvmsrError as error:
        return str(error)
    finally:
        memory.close()


def _run(vm: Vm, vcpu: Vcpu) -> str:
    kick = threading.Timer(_PATIENCE, vcpu.kick)
    kick.daemon = True
    kick.start()
    try:
        exit_ = vcpu.run()
    finally:
        kick.cancel()
        kick.join()
    if isinstance(exit_, IoOut) and exit_.port == _PORT:
        code = exit_.data[0]
        return {_DONE: "", 2: "wrong result"}.get(code, "raises an exception")
    if isinstance(exit_, EmulationFailure):
        return "cannot be emulated"
    return f"ends in {type(exit_).__name__}"
