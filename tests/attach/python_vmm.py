"""
A VMM in Python: runs a guest that reads MSR 0x35 five times, and prints the values.

It handles signals as Python does, forks as Python does, and its vCPU runs in a thread.
"""

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
import threading
import time

KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_RUN = 0xAE01, 0xAE41, 0xAE80
KVM_GET_VCPU_MMAP_SIZE, KVM_SET_USER_MEMORY_REGION = 0xAE04, 0x4020AE46
KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS = (
    0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84,
)  # fmt: skip
SIZE = 0x10000
READS = b"\x66\xb9\x35\0\0\0\x0f\x32\xe6\xf4\xeb\xf4"  # 1: mov; rdmsr; out %al, $0xf4; jmp 1b
LOOPS = b"\xeb\xfe"

libc = ctypes.CDLL(None, use_errno=True)


class Guest:
    def __init__(self, code):
        self.kvm = os.open("/dev/kvm", os.O_RDWR)
        self.vm = fcntl.ioctl(self.kvm, KVM_CREATE_VM, 0)
        self.memory = mmap.mmap(-1, SIZE)
        self.memory[: len(code)] = code
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        region = struct.pack("=IIQQQ", 0, 0, 0, SIZE, address)
        fcntl.ioctl(self.vm, KVM_SET_USER_MEMORY_REGION, region)
        self.vcpu = fcntl.ioctl(self.vm, KVM_CREATE_VCPU, 0)
        self.run_page = mmap.mmap(self.vcpu, fcntl.ioctl(self.kvm, KVM_GET_VCPU_MMAP_SIZE))
        sregs = bytearray(312)
        fcntl.ioctl(self.vcpu, KVM_GET_SREGS, sregs)
        sregs[:8], sregs[12:14] = bytes(8), bytes(2)  # CS: base and selector
        fcntl.ioctl(self.vcpu, KVM_SET_SREGS, bytes(sregs))
        fcntl.ioctl(self.vcpu, KVM_SET_REGS, bytes(136) + struct.pack("=Q", 2))

    def read(self):
        fcntl.ioctl(self.vcpu, KVM_RUN)
        regs = bytearray(144)
        fcntl.ioctl(self.vcpu, KVM_GET_REGS, regs)
        return struct.unpack_from("=Q", regs)[0]


guest = Guest(READS)
print(sys.argv[1:], *(hex(guest.read()) for _ in range(3)))
thread = threading.Thread(target=lambda: print("thread", hex(guest.read())))
thread.start()
thread.join()
handled = []
signal.signal(signal.SIGALRM, lambda *_: handled.append(time.monotonic()))
looping = Guest(LOOPS)
began = time.monotonic()
signal.setitimer(signal.ITIMER_REAL, 0.1)
result = libc.ioctl(looping.vcpu, KVM_RUN, 0)
when = "soon" if handled and handled[0] - began < 1 else "late"
print("KVM_RUN", result, os.strerror(ctypes.get_errno()), len(handled), when)
sys.stdout.flush()
child = os.fork()
if not child:
    try:
        guest.read()
    except OSError as error:
        print("child", error.strerror, hex(Guest(READS).read()), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", hex(guest.read()))
