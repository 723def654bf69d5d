# SPDX-License-Identifier: Apache-2.0
"""A bounded number of scenarios on the host's KVM, on each run the same; and what they found."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmsr import backend
from kvmsr.errors import KvmsrError
from tests.differential import places
from tests.differential.__main__ import DifferenceError, compare
from tests.differential.compare import differences
from tests.differential.generate import scenarios
from tests.differential.ioctl_errors import HANDLES, Arguments, numbers, outcome
from tests.differential.places import soft, through_text
from tests.differential.scenario import Scenario

X = 0x474F4F00
PROFILES = ("linux-6.18-amd", "linux-6.1-amd", "linux-6.1-intel", "pvm", "patch-v3")

# What differed once, as small as it became.
FOUND = {
    "a fault tells its vector afterwards": Scenario(mode="long", program=(("rdmsr", X, ()),)),
    "RF is over with the instruction": Scenario(
        mode="long", early=(("mask", 2, 0),),
        program=(("wrmsr", 0xC0000080, 1 << 40, ()), ("rdmsr", X, ())),
    ),
    "OUT is over before its exit": Scenario(program=(("out", 0x60), ("in", 0x60))),
    "IN is finished from what was put by": Scenario(
        mode="protected", program=(("in", 0x60),), turns=((), (("reg", "rflags", 0x8D7),))
    ),
    "user space's interrupt does not ask for IF": Scenario(
        program=(("nop",), ("out", 0x60)), turns=((("interrupt", 0x20),),)
    ),
    "an injected exception outlives KVM_SET_REGS": Scenario(
        program=(("nop",),), turns=((("exception", 6, None), ("reg", "rbx", 1)),)
    ),
    "an injected fault has no RF": Scenario(
        mode="long", program=(("nop",), ("in", 0x60)), turns=((), (("exception", 13, 0),))
    ),
    "a step over emulated code leaves DR7 of the page alone": Scenario(
        program=(("nop",),), turns=((("debug", 3),),)
    ),
    "an illegal CR8 leaves the old one": Scenario(
        program=(("nop",),), turns=((("sreg", "cr8", 15), ("sreg", "cr8", 16)),)
    ),
    "a trap waits behind HLT": Scenario(program=(("hlt",),), turns=((("reg", "rflags", 0x102),),)),
    "KVM_SET_CPUID2 after KVM_RUN": Scenario(
        program=(("out", 0x60),), turns=((), (("cpuid", "intel", ()),))
    ),
    "PERF_CAPABILITIES without a PMU": Scenario(
        cpuid=("pdcm",), early=(("mask", 7, 0),), program=(("rdmsr", 0x345, ()),)
    ),
    "the shadow stack's MSR is the host's": Scenario(
        early=(("mask", 7, 0),), program=(("rdmsr", 0x4B564DFF, ()),)
    ),
}  # fmt: skip

# What soft does not have, and what it has in another way.
MISSING = {
    "KVM_CLEAR_DIRTY_LOG", "KVM_GET_STATS_FD", "KVM_IOEVENTFD", "KVM_IRQFD",
    "KVM_SET_TSC_KHZ", "KVM_GET_XSAVE2", "KVM_KVMCLOCK_CTRL", "KVM_X86_SET_MCE",
    "number 0x44",  # KVM_SET_NR_MMU_PAGES
    "number 0x64",  # KVM_CREATE_PIT, which KVM_CREATE_PIT2 replaced
    "number 0xc7",  # KVM_RESET_DIRTY_RINGS
}  # fmt: skip
OTHERWISE = {
    "KVM_GET_XCRS": "soft's CPU has no XSAVE",
    "KVM_SET_XCRS": "soft's CPU has no XSAVE",
    "KVM_SET_BOOT_CPU_ID": "the number is checked since Linux 6.14 only",
}


@pytest.fixture(scope="module")
def place():
    try:
        with places.host() as found:
            yield found
    except KvmsrError as error:
        pytest.skip(f"needs {error}")


@pytest.mark.kvm
@pytest.mark.parametrize("name", FOUND)
def test_what_differed_once(place, name):
    compare(place, soft(place.profile), FOUND[name])


@pytest.mark.kvm
@settings(
    max_examples=250, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(st.data())
def test_soft_is_like_the_host(place, data):
    scenario = data.draw(scenarios(place.module, place.strange, unlike=place.unlike))
    compare(place, soft(place.profile), scenario)


@settings(max_examples=25, derandomize=True, database=None)
@given(scenarios())
def test_soft_is_like_itself(scenario):
    """Nothing that is compared depends on time or on what ran before."""
    for profile in PROFILES:
        first, second = (through_text(soft(profile)(scenario)) for _ in range(2))
        assert differences(scenario, first, second) == []


@given(scenarios())
def test_scenarios_travel_as_text(scenario):
    assert Scenario.from_json(scenario.to_json()) == scenario


@pytest.mark.kvm
def test_a_difference_is_told_and_can_be_played_again(place):
    scenario = FOUND["OUT is over before its exit"]
    with pytest.raises(DifferenceError, match=r"regs\.rip: 0x\w+, not 0x\w+") as caught:
        compare(place, soft("linux-6.18-amd"), scenario)
    assert repr(scenario) in str(caught.value)


@pytest.mark.kvm
@pytest.mark.parametrize("handle", HANDLES)
def test_errors_of_ioctls(place, handle):
    real, model, arguments = backend.open("kvm"), backend.open("soft", profile="pvm"), Arguments()
    for name, number in numbers():
        what = name.removesuffix(" without direction")
        if what in OTHERWISE:
            continue
        for given_, value in arguments.values.items():
            expected = outcome(real, handle, number, value)
            found = outcome(model, handle, number, value)
            if what in MISSING and found == "ENOTTY":
                continue
            assert found == expected, f"{name} on a {handle} handle with {given_}"
