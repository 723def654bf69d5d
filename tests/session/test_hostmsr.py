"""The host's registers, through files that look like the msr device."""

import os

import pytest

from kvmsr.errors import HostError
from kvmsr.policy import Host, Policy, Rule
from kvmsr.session import hostmsr
from kvmsr.session.hostmsr import DeviceMsrs, running_on
from tests.harness import machine_with


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """A device for each CPU: sparse files with 8 bytes at the MSR's index."""
    for cpu in range(os.cpu_count()):
        (tmp_path / str(cpu)).mkdir()
        with (tmp_path / str(cpu) / "msr").open("wb") as file:
            for index in (0x17, 0x1AD):
                file.seek(index)
                file.write((0x1000 + index).to_bytes(8, "little"))
    monkeypatch.setattr(hostmsr, "_DEVICES", tmp_path)
    return tmp_path


def test_the_device_is_read_and_written(devices):
    msrs = DeviceMsrs(devices, writable=True)
    assert msrs.read(0, 0x17) == 0x1017
    assert msrs.read(None, 0x17) == 0x1017
    msrs.write(0, 0x17, 5)
    assert msrs.read(0, 0x17) == 5
    msrs.close()


def test_the_cpu_that_runs_the_thread_is_found():
    mask = os.sched_getaffinity(0)
    try:
        for cpu in mask:
            os.sched_setaffinity(0, {cpu})
            assert running_on() == cpu
    finally:
        os.sched_setaffinity(0, mask)


def test_what_is_missing_is_reported_before_the_guest_runs(tmp_path):
    with pytest.raises(HostError, match=r"/0/msr cannot be opened: No such file.*modprobe msr"):
        DeviceMsrs(tmp_path).check(0)


def test_a_guest_reads_the_hosts_value(devices, any_backend, tmp_path, monkeypatch):
    monkeypatch.setattr(hostmsr.DeviceMsrs.__init__, "__defaults__", (devices,))
    # mov $0x1ad, %ecx; rdmsr; out %al, $0xf4
    code = b"\x66\xb9\xad\x01\0\0\x0f\x32\xe6\xf4"
    policy = Policy([Rule(0x1AD, read=Host())])
    with machine_with(tmp_path, code, policy, any_backend) as machine:
        result = machine.run(timeout=30)
    (row,) = result.summary
    assert (row.index, row.last_value) == (0x1AD, 0x11AD)
    assert any("[host-value]" in note for note in result.notes)
