"""The tree of errors is what its module draws, and each has an exit status of the contract."""

import errno
import re

import pytest

from kvmsr import errors


def drawn():
    """Yield each name in the drawing with the name above it."""
    above = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line)
        if match:
            depth = len(match[1]) // 4
            above = above[:depth]
            yield match[2], above[-1] if above else "Exception"
            above.append(match[2])


def test_the_drawing_is_the_tree():
    classes = {name: getattr(errors, name) for name in errors.__all__}
    assert dict(drawn()) == {name: cls.__bases__[0].__name__ for name, cls in classes.items()}
    assert set(errors.__all__) == {
        name
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, Exception)
    }


@pytest.mark.parametrize(
    ("name", "status"),
    [("UsageError", 2), ("PolicyError", 3), ("ImageError", 3), ("HostError", 4), ("IoctlError", 4)],
)
def test_exit_statuses_are_those_of_the_contract(name, status):
    tree = [
        cls
        for cls in map(vars(errors).get, errors.__all__)
        if issubclass(cls, getattr(errors, name))
    ]
    assert {cls.exit_status for cls in tree} == {status}


def test_an_ioctl_error_names_itself():
    error = errors.IoctlError("KVM_CREATE_VCPU", errno.EEXIST, "vCPU 3")
    assert str(error) == (
        "KVM_CREATE_VCPU (vCPU 3) failed: File exists [EEXIST]: there is already a vCPU with this"
        " number"
    )
    assert "[9999]" in str(errors.IoctlError("KVM_RUN", 9999))
