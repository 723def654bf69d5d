"""The backend over the host's KVM, and what it says where it cannot be had."""

import errno
import gc
import os
from pathlib import Path

import pytest

from kvmsr import backend
from kvmsr.abi import cpu, ioctls, vm
from kvmsr.backend import HostBackend
from kvmsr.backend.host import _why_not
from kvmsr.errors import BackendError, UsageError
from tests.harness import Guest


def test_a_missing_device_comes_with_the_remedy(tmp_path):
    with pytest.raises(BackendError, match=r"cannot open .*/kvm: No such file.*load kvm_intel"):
        HostBackend(tmp_path / "kvm").open()


def as_nobody(call):
    """Return what *call* returns, a text, in a child process without a user's rights."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setuid(65534)
            os.write(write, call().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_forbidden_device_comes_with_the_remedy(tmp_path):
    device = tmp_path / "kvm"
    device.touch(0o000)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)

    def attempt():
        try:
            HostBackend(device).open()
        except BackendError as error:
            return str(error)
        return "opened"

    said = as_nobody(attempt)
    assert said.startswith(f"cannot open {device}: Permission denied; let your user into")
    assert "sudo usermod -aG kvm $USER" in said


@pytest.mark.parametrize(
    ("number", "piece"),
    [(errno.EACCES, "usermod -aG kvm"), (errno.ENODEV, "firmware"), (errno.EBUSY, "stop it")],
)
def test_each_reason_has_its_remedy(number, piece):
    text = _why_not(Path("/dev/kvm"), OSError(number, os.strerror(number)))
    assert os.strerror(number) in text
    assert piece in text


def test_an_unknown_backend_is_refused():
    with pytest.raises(UsageError, match="there are auto, kvm"):
        backend.open("qemu")


@pytest.mark.kvm
def test_what_is_no_kvm_fails_with_its_errno(host):
    fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(OSError) as caught:
        host.ioctl(fd, ioctls.KVM_GET_API_VERSION)
    assert caught.value.errno == errno.ENOTTY
    host.close(fd)
    host.close(fd)  # again is harmless


@pytest.mark.kvm
def test_a_buffer_is_passed_by_address(host):
    system = host.open()
    buffer = bytearray(vm.msr_list(4))
    with pytest.raises(OSError):
        host.ioctl(system, ioctls.KVM_GET_MSR_INDEX_LIST, buffer)
    assert int.from_bytes(buffer[:4], "little") > 4  # KVM has written how many there are
    host.close(system)


@pytest.mark.kvm
def test_an_argument_that_nobody_else_holds_lives_through_the_call(host):
    """Freed too early, the allocator's own data would take the place of its first bytes."""
    system = host.open()
    machine = host.ioctl(system, ioctls.KVM_CREATE_VM)
    vcpu = host.ioctl(machine, ioctls.KVM_CREATE_VCPU, 0)
    for value in range(100):
        host.ioctl(vcpu, ioctls.KVM_SET_REGS, cpu.Regs(rax=value, rflags=2))
        found = cpu.Regs()
        host.ioctl(vcpu, ioctls.KVM_GET_REGS, found)
        assert found.rax == value
    for fd in (vcpu, machine, system):
        host.close(fd)


def test_a_thousand_guests_leave_nothing_behind(kvm):
    def mappings():
        return sum("kvm-vcpu" in line for line in Path("/proc/self/maps").read_text().splitlines())

    def files():
        return len(list(Path("/proc/self/fd").iterdir()))

    def threads():
        return len(list(Path("/proc/self/task").iterdir()))

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    gc.collect()
    fds, maps = files(), mappings()
    for number in range(1000):
        if number == 300:  # by then allocators have what they keep
            before, running = resident(), threads()
        guest = Guest(kvm)
        guest.load(b"\xf4")
        guest.vcpu.run()
        guest.close()
    gc.collect()
    assert files() == fds
    assert mappings() == maps
    assert threads() <= running
    assert resident() - before < 32 << 20
    if kvm.backend.name == "kvm":
        assert kvm.backend._pages == {}
        assert kvm.backend._runner == {}
