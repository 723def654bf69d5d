"""The way of one access: the rooms that it passes, from KVM_RUN to the answer. The way is short."""

import sys

import pytest

from kvmsr import Boot, Machine, Policy, Rule, backend, native
from tests.conftest import GUESTS, kvm_missing
from tests.test_architecture import room_of

MOST = 6


class Watch:
    """
    Which rooms' functions a thread calls on behalf of the accesses that it serves.

    Those on the stack when the handler is asked, and those called until it is asked again.
    """

    def __init__(self):
        self.rooms = set()
        self.asked = 0

    def handler(self, access):
        self.asked += 1
        frame = sys._getframe()
        while frame is not None:
            self.note(frame)
            frame = frame.f_back
        sys.setprofile(self.profile if self.asked == 1 else None)
        return 7

    def profile(self, frame, event, argument):
        if event == "call":
            self.note(frame)

    def note(self, frame):
        name = frame.f_globals.get("__name__", "")
        if name.startswith("kvmsr.") and frame.f_code.co_name != "handler":
            self.rooms.add(room_of(name.split(".")[1:]))


@pytest.mark.parametrize(
    ("kind", "in_c"),
    [("soft", False), ("kvm", False), ("kvm", True)],
    ids=["soft", "kvm-python", "kvm-c"],
)
def test_an_access_passes_at_most_six_rooms(kind, in_c):
    if kind == "kvm" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    if in_c and not native.available():
        pytest.skip(f"needs {native.why_not()}")
    watch = Watch()
    policy = Policy([Rule(0x36, read=watch.handler)])
    with Machine(backend.open(kind), memory=16 << 20, policy=policy, native=in_c) as machine:
        machine.load(Boot(GUESTS / "list.elf", "36 36 36"))
        machine.run(60)
    assert watch.asked == 3
    # Between two accesses the guest prints what it saw, which the board takes: machine and kvm.
    expected = {"machine", "session", "kvm", "backend", "dispatch"}
    expected |= {"native"} if in_c else {"trace"}
    assert watch.rooms == expected
    assert len(watch.rooms) <= MOST
