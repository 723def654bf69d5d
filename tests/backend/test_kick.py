"""Kicks: a running KVM_RUN returns at once, and the application's signals stay its own."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kvmsr.backend import _kick
from kvmsr.errors import UsageError
from kvmsr.kvm import Kvm
from kvmsr.kvm.exits import Interrupted
from tests.harness import Guest

LOOP = b"\xeb\xfe"


def test_a_kick_ends_a_running_guest(guest):
    guest.load(LOOP)
    kicker = threading.Timer(0.1, guest.vcpu.kick)
    kicker.start()
    assert isinstance(guest.vcpu.run(), Interrupted)
    kicker.join()


def test_a_kick_before_the_run_is_kept(guest):
    guest.load(LOOP)
    guest.vcpu.kick()
    assert isinstance(guest.vcpu.run(), Interrupted)


def test_ten_thousand_kicks_lose_none(guest):
    """Each kick ends a run that begins later, or the one that is going on: never does one hang."""
    guest.load(LOOP)
    asked, answered = threading.Semaphore(0), threading.Semaphore(0)
    rounds = 10_000

    def kick():
        for n in range(rounds):
            asked.acquire()
            if n % 3 == 0:
                time.sleep(0)  # let the vCPU get into the guest more often than not
            guest.vcpu.kick()
            assert answered.acquire(timeout=20), f"kick {n} was lost"

    thread = threading.Thread(target=kick)
    thread.start()
    for _ in range(rounds):
        asked.release()
        assert isinstance(guest.vcpu.run(), Interrupted)
        answered.release()
    thread.join()


def test_a_vcpu_may_change_its_thread(guest):
    guest.load(LOOP)
    for _ in range(3):
        thread = threading.Thread(target=guest.vcpu.run)
        thread.start()
        time.sleep(0.02)
        guest.vcpu.kick()
        thread.join(10)
        assert not thread.is_alive()
    guest.vcpu.kick()  # whose thread is gone
    assert isinstance(guest.vcpu.run(), Interrupted)


def test_kicking_what_is_no_vcpu_is_refused(guest):
    host = guest.kvm.backend
    with pytest.raises(UsageError, match="no vCPU"):
        host.kick(12345)


def test_the_applications_signals_stay_its_own():
    # In a process of its own, because the signal is chosen once a process.
    script = """
import signal
from kvmsr.backend import _kick
seen = []
taken = range(signal.SIGRTMAX, signal.SIGRTMAX - 5, -1)
for number in taken:
    signal.signal(number, lambda *args: seen.append(args[0]))
before = {n: signal.getsignal(n) for n in signal.valid_signals()}
chosen = _kick.kick_signal()
assert chosen == signal.SIGRTMAX - 5, chosen
assert {n: signal.getsignal(n) for n in signal.valid_signals()} == before
for number in taken:
    signal.raise_signal(number)
assert seen == list(taken), seen
signal.raise_signal(chosen)      # harmless
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == "fine\n", done.stderr


def test_no_free_signal_is_told():
    script = """
import signal
from kvmsr.backend import _kick
from kvmsr.errors import BackendError
for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
    signal.signal(number, lambda *args: None)
try:
    _kick.kick_signal()
except BackendError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "no real-time signal is free" in done.stdout, done.stderr


def test_a_signal_for_the_application_interrupts_and_reaches_it(guest):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *args: seen.append(args[0]))
    try:
        guest.load(LOOP)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert isinstance(guest.vcpu.run(), Interrupted)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_interrupting_a_thread_that_has_ended_is_harmless():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    native_id = thread.native_id
    thread.join()
    _kick.interrupt_thread(native_id)


def test_a_thread_that_blocks_all_signals_can_be_kicked(guest):
    guest.load(LOOP)
    ended = threading.Event()

    def run():
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        guest.vcpu.run()
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    time.sleep(0.1)
    guest.vcpu.kick()
    assert ended.wait(10)


def test_a_signal_mask_leaves_kicks_alone(guest):
    guest.load(LOOP)
    guest.vcpu.set_signal_mask(signal.valid_signals())
    kicker = threading.Timer(0.1, guest.vcpu.kick)
    kicker.start()
    assert isinstance(guest.vcpu.run(), Interrupted)


@pytest.mark.kvm
def test_a_thread_that_has_left_the_guest_is_left_alone(host):
    guest = Guest(Kvm(host))
    guest.load(b"\xf4")
    guest.vcpu.run()
    assert not host._runner[guest.vcpu.fd]
    guest.close()
