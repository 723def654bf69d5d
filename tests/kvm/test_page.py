"""What is read off a kvm_run page."""

import mmap

from kvmsr.kvm.exits import Other
from kvmsr.kvm.page import READERS, RunPage


def run_page():
    return RunPage(mmap.mmap(-1, 0x3000), 0)


def test_every_exit_that_has_a_class_is_read_by_it_and_others_by_number():
    page = run_page()
    page.pending.msr.reason = 2
    for reason in range(64):
        page.run.exit_reason = reason
        exit_ = page.read()
        assert isinstance(exit_, Other) == (reason not in READERS)
        if isinstance(exit_, Other):
            assert exit_.reason == reason
            assert len(exit_.data) == 256
            assert str(reason) in exit_.name or exit_.name.startswith("KVM_EXIT_")


def test_a_page_full_of_anything_is_read():
    page = run_page()
    for byte in (0x00, 0xFF, 0x01):
        for reason in READERS:
            page.bytes[0x20:0x120] = bytes((byte,)) * 256
            page.pending.msr.reason = 2
            page.run.exit_reason = reason
            assert not isinstance(page.read(), Other)
