"""What a library user passes is taken as meant, or refused at once, by name and in one line."""

import math
import sys

import pytest

from kvmsr import Boot, Kvm, Machine, Policy, Rule, backend
from kvmsr.errors import BackendError, GuestMemoryError, ImageError, PolicyError, UsageError
from kvmsr.machine import Feature, find_feature
from kvmsr.machine.arguments import to_size
from tests.conftest import GUESTS, kvm_missing


class AnyPath:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def refused(match, call):
    with pytest.raises(UsageError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# Paths


@pytest.mark.parametrize("kind", [str, lambda path: path, AnyPath])
def test_a_path_may_be_a_str_or_whatever_is_like_a_path(kind, tmp_path):
    (tmp_path / "exit.bin").write_bytes(b"\xb0\x00\xe6\xf4")
    (tmp_path / "policy.toml").write_text("[[rule]]\nmsr = 0x35\nread = {value = 7}\n")
    image, policy = kind(tmp_path / "exit.bin"), kind(tmp_path / "policy.toml")
    with Machine("soft", memory="4M", policy=policy) as machine:
        machine.load(Boot(image, mode=16))
        assert machine.run(timeout=20).exit_status == 1
        assert machine.plan.policy.rules[0].read.value == 7
    assert Boot(image, initrd=image).initrd == (tmp_path / "exit.bin",)
    assert Boot(image, initrd=[image, image]).initrd == (tmp_path / "exit.bin",) * 2
    assert Boot(bios=image).bios == tmp_path / "exit.bin"


def test_a_policy_may_be_a_preset():
    with Machine("soft", memory="4M", policy="preset:quiet") as machine:
        assert machine.plan.policy.source == "preset:quiet"
    with pytest.raises(PolicyError, match=r"^nowhere\.toml: cannot read"):
        Machine("soft", policy="nowhere.toml")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("image=5: give a path", {"image": 5}),
        ("image=b'x': give a path", {"image": b"x"}),
        ("image=<object.*>: give a path", {"image": object()}),
        ("bios=True: give a path", {"bios": True}),
        ("initrd=7: give a path, or several", {"image": "x", "initrd": 7}),
        (r"initrd\[1\]=None: give a path", {"image": "x", "initrd": ["y", None]}),
        (r"append=\['a'\]: give a str", {"image": "x", "append": ["a"]}),
        ("mode=8: give 16, 32 or 64", {"image": "x", "mode": 8}),
        ("mode='16': give 16, 32 or 64", {"image": "x", "mode": "16"}),
        ("nothing to boot", {}),
        ("an option ROM is for firmware", {"image": "x", "option_rom": "y"}),
        ("starts no flat binaries", {"image": "x", "bios": "y", "mode": 16}),
        ("option_rom=True: give a path", {"bios": "y", "option_rom": True}),
    ],
)
def test_what_cannot_be_booted_is_refused(message, arguments):
    refused(f"^.*{message}", lambda: Boot(**arguments))


def test_an_image_that_is_not_there_is_refused_when_it_is_loaded():
    with Machine("soft", memory="4M") as machine:
        with pytest.raises(ImageError, match="cannot read image nowhere: No such file"):
            machine.load(Boot("nowhere"))
        refused(r"boot='x.bin': give a Boot: Boot\('x.bin'\)", lambda: machine.load("x.bin"))


# Backends


def test_a_backend_may_be_a_name():
    for name in ("soft", *([] if kvm_missing() else ["kvm"])):
        with Machine(name, memory="4M") as machine, Kvm(name) as kvm:
            assert machine.kvm.backend.name == kvm.backend.name == name
    soft = backend.open("soft")
    with Machine(soft, memory="4M") as machine:
        assert machine.kvm.backend is soft


def test_auto_is_what_it_is_to_kvmsr_run(monkeypatch):
    def no_kvm(self):
        raise BackendError("there is no /dev/kvm")

    monkeypatch.setattr("kvmsr.backend.HostBackend.open", no_kvm)
    with Machine(memory="4M") as machine:
        machine.load(Boot(GUESTS / "list.elf", "35"))
        result = machine.run(timeout=20)
    assert result.backend == "soft"
    assert "on the soft backend: there is no /dev/kvm" in result.notes


@pytest.mark.parametrize("maker", [Machine, Kvm])
def test_what_is_no_backend_is_refused(maker):
    refused("no backend is called 'softly'; there are auto, kvm, soft", lambda: maker("softly"))
    refused("backend=5: give a Backend, or a name: auto, kvm, soft", lambda: maker(5))


# Everything else


def test_memory_may_be_a_size():
    assert [to_size(size, "m") for size in ("64k", "256M", "2G", "1 GiB", "3TB", "4096", 5)] == [
        64 << 10, 256 << 20, 2 << 30, 1 << 30, 3 << 40, 4096, 5,
    ]  # fmt: skip
    with Machine("soft", memory="4M") as machine:
        assert machine.layout.low_size == 4 << 20


@pytest.mark.parametrize("size", ["", "1.5G", "-1M", "1X", "G", "9" * 5000, "٣M"])
def test_what_is_no_size_is_refused(size):
    refused("memory=.* is not a size: write 256M or 2G", lambda: to_size(size, "memory"))


FUNCTION = "give a function"


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("memory=1.5: give bytes, or a size such as '256M'", {"memory": 1.5}),
        ("memory=True: give bytes", {"memory": True}),
        ("memory=None: give bytes", {"memory": None}),
        ("memory='lots' is not a size", {"memory": "lots"}),
        ("cpus='2': give a whole number", {"cpus": "2"}),
        ("cpus=1.0: give a whole number", {"cpus": 1.0}),
        ("cpus=True: give a whole number", {"cpus": True}),
        ("policy=5: give a Policy, or the path of a policy file", {"policy": 5}),
        (r"policy=\[.*\]: give a Policy", {"policy": [Rule(0x35, read=1)]}),
        ("hidden=5: give CPUID features", {"hidden": 5}),
        ("hidden='smep': give CPUID features", {"hidden": "smep"}),
        (r"hidden\[1\]=5: give a Feature, or a name", {"hidden": ["smep", 5]}),
        ("no CPUID feature is called 'smepp'; did you mean smep", {"hidden": ["smepp"]}),
        ("log='x.log': " + FUNCTION, {"log": "x.log"}),
        ("output=<.*: " + FUNCTION, {"output": sys.stdout}),
        ("debug_output=0: " + FUNCTION, {"debug_output": 0}),
        ("disks='x': give disks, as a list", {"disks": "x"}),
        (r"disks\[1\]=5: give a path", {"disks": ["x", 5]}),
        ("console='hvc0': give serial or virtio", {"console": "hvc0"}),
    ],
)
def test_what_a_machine_cannot_be_made_of_is_refused(message, arguments):
    refused(message, lambda: Machine("soft", **arguments))


def test_an_amount_of_memory_that_makes_no_sense_is_refused():
    with pytest.raises(GuestMemoryError, match="2 MiB to 1 TiB"):
        Machine("soft", memory="64k")


@pytest.mark.parametrize("timeout", ["5", 0, -1, math.inf, math.nan, True, []])
def test_a_timeout_is_a_time(timeout):
    with Machine("soft", memory="4M") as machine:
        machine.load(Boot(GUESTS / "list.elf", "35"))
        refused("timeout=.*: give seconds, more than 0", lambda: machine.run(timeout))
        assert machine.run(20).exit_status == 0, "it can still run"


def test_features_may_be_names():
    assert find_feature("tsc-deadline") == find_feature("tsc_deadline_timer")
    with Machine("soft", memory="4M", hidden=["smep", Feature(7, 0, "ebx", 20)]) as machine:
        leaf = machine.vcpus[0].get_cpuid2().find(7, 0)
        assert not leaf.ebx & (1 << 7 | 1 << 20)


def test_the_values_of_policies_may_still_be_given():
    with Machine("soft", memory="4M", policy=Policy([Rule(0x35, read=1)])) as machine:
        assert len(machine.plan.policy.rules) == 1
