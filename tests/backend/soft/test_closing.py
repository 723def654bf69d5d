"""Closing a vCPU whose thread is still in KVM_RUN: the engine goes when the thread is back."""

import threading
import time

from kvmsr import backend
from kvmsr.kvm import Kvm
from kvmsr.kvm.exits import Interrupted
from tests.harness import Guest


def test_the_engine_outlives_whoever_runs_it():
    with Kvm(backend.open("soft")) as kvm:
        guest = Guest(kvm)
        guest.load(b"\xeb\xfe")  # 1: jmp 1b
        seen = []
        thread = threading.Thread(target=lambda: seen.append(guest.vcpu.run()))
        thread.start()
        vcpu = kvm.backend._objects[guest.vcpu.fd]
        while not vcpu.cpu.running:
            time.sleep(0.01)
        vcpu.cpu.close()
        vcpu.kick()
        thread.join(60)
        assert isinstance(seen[0], Interrupted)
        assert not vcpu.cpu.running
        guest.close()
