"""Guests that run a few bytes of code in real mode: a vCPU alone, and a whole machine."""

from contextlib import contextmanager

from kvmsr.abi import MsrExitReason, cpu
from kvmsr.backend import Memory
from kvmsr.machine import Boot, Machine

CODE = 0x1000
MSR = 0x474F4F00  # unknown to every KVM
GP_HANDLER = 0x2000  # does OUT 0xee
ALL = MsrExitReason.INVAL | MsrExitReason.UNKNOWN | MsrExitReason.FILTER


class Guest:
    """A VM with 2 MiB of memory at 0 and one vCPU in real mode."""

    def __init__(self, kvm, *, irqchip=False):
        self.kvm = kvm
        self.vm = kvm.create_vm()
        self.memory = Memory(2 << 20)
        self.vm.set_user_memory_region(0, 0, self.memory)
        if irqchip:
            self.vm.create_irqchip()
        self.vcpu = self.vm.create_vcpu(0)
        sregs = self.vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        self.vcpu.set_sregs(sregs)
        self.vm.enable_user_space_msr(ALL)
        self.put(13 * 4, bytes((GP_HANDLER & 0xFF, GP_HANDLER >> 8, 0, 0)))
        self.put(GP_HANDLER, b"\xe6\xee\xf4")  # out %al, $0xee; hlt

    def put(self, address, data):
        self.memory.view[address : address + len(data)] = data

    def load(self, code, **registers):
        """Make *code* what runs next."""
        self.put(CODE, code)
        self.vcpu.set_regs(cpu.Regs(**{"rip": CODE, "rflags": 2, "rsp": 0x8000} | registers))

    def close(self):
        self.vcpu.close()
        self.vm.close()
        self.memory.close()


@contextmanager
def machine_with(folder, code, policy, backend="soft", **options):
    """Give a machine that has loaded *code*, and keeps it in *folder*."""
    (folder / "guest.bin").write_bytes(code)
    with Machine(backend, policy=policy, **{"memory": "2M"} | options) as machine:
        machine.load(Boot(folder / "guest.bin", mode=16))
        yield machine
