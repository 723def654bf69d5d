"""
Observing changes nothing: every MSR of every modelled KVM, watched and unwatched.

Two guests make the same accesses on the same KVM under the same policy, and one of them is watched.
What each sees, and what its KVM then holds, must be equal. Where they differ, the table of
accesses as the host (msr/data/as_host.toml) has a row missing, and the test names it.
"""

from dataclasses import replace

import pytest

from kvmsr.backend.soft.msr.handlers import handlers
from kvmsr.backend.soft.msr.lists import kvm_get_msrs, kvm_set_msrs
from kvmsr.backend.soft.msr.mce import setup_mce
from kvmsr.backend.soft.msr.vcpu import RAX, RDX
from kvmsr.dispatch import Dispatcher
from kvmsr.errors import MsrListError
from kvmsr.kvm.msr_exits import PendingMsr
from kvmsr.msr import catalog, handled
from kvmsr.policy import Defaults, Op, Policy, Rule
from kvmsr.policy.plan import KernelFacts, compile_policy
from kvmsr.policy.plan import observe as observing
from kvmsr.session.vcpu import InUse, PythonVcpu
from tests.backend.soft.msr.handler_vcpu import AMD_61, INTEL_61, KVMS, NEWEST, HandlerVcpu, cpuid
from tests.backend.soft.msr.scripted import Lapic, make_filter

ALL = (1 << 64) - 1
HWCR = 0xC0010015
VALUES = (
    0, 1, 0x1001, 1 << 11, 1 << 18, 0x1801, 0x0606060606060606, 1 << 63, ALL, 0,
)  # fmt: skip
FEATURES = (
    "x2apic", "pdcm", "tsc_adjust", "flush_l1d", "arch_capabilities", "spec_ctrl", "xsaves", "xfd",
    "osvw", "nx", "fxsr_opt", "lm", "pred_cmd", "virt_ssbd",
)  # fmt: skip


class Vcpu:
    """A modelled vCPU as the session sees it; its guest makes one access for each run."""

    id = 0

    def __init__(self, model):
        self.model, self.access = model, None
        self._pending = PendingMsr(0, model.msr)

    def get_msrs(self, indices):
        done, entries = kvm_get_msrs(self.model, [(index, 0) for index in indices])
        if done < len(indices):
            raise MsrListError("KVM_GET_MSRS", indices[done], done, len(indices), None)
        return dict(entries)

    def set_msrs(self, values):
        if kvm_set_msrs(self.model, list(values.items())) < len(values):
            raise MsrListError("KVM_SET_MSRS", next(iter(values)), 0, 1, 0)

    def get_regs(self):
        return self.model

    def run(self, serve):
        op, index, value = self.access
        model, is_read = self.model, op is Op.READ
        if not (model.rdmsr(index) if is_read else model.wrmsr(index, value)):
            assert serve(self._pending.rdmsr() if is_read else self._pending.wrmsr())
            complete, model.complete_emulation = model.complete_emulation, None
            complete(model)


class Guest:
    """A guest under a policy, on a modelled KVM."""

    def __init__(self, model, policy, kernel):
        self.plan = compile_policy(policy, kernel)
        self.log = []
        dispatcher = Dispatcher(self.plan, log=lambda *entry: self.log.append(entry))
        ranges = self.plan.filter.ranges
        model.vm.msr_filter = make_filter(
            *((one.reads | one.writes << 1, one.base, one.bitmap, one.count) for one in ranges),
            flags=int(self.plan.filter.default_deny),
        )
        self.model, self.vcpu = model, Vcpu(model)
        self.runner = PythonVcpu(self.vcpu, InUse(dispatcher), lambda *_: pytest.fail("stopped"))

    def denies(self, op, index):
        return self.plan.filter.decide(op, index)[0]

    def access(self, op, index, value=0):
        """Make an access, and return what the guest sees."""
        model, self.vcpu.access = self.model, (op, index, value)
        before = len(model.exceptions)
        self.runner.run(lambda exit_: False)
        if len(model.exceptions) > before:
            return "#GP"
        return model.cpu.regs[RDX] << 32 | model.cpu.regs[RAX] if op is Op.READ else "done"

    def state(self):
        """Return what its KVM holds for it."""
        model = self.model
        lapic = model.lapic
        return (
            {index: value for index, value in model.msrs.values.items() if value},
            {index: value for index, value in model.cpu.held.items() if value},
            model.clock.offset,
            model.apic_base,
            lapic and (lapic.tsc_deadline, lapic.written),
            bytes(model.vm.memory),
        )


def bare(profile, **switches):
    return HandlerVcpu(profile, **switches)


def full(profile, **switches):
    """A guest with every feature and device, which has paging on."""
    vendor = "GenuineIntel" if "intel" in profile else "AuthenticAMD"
    entries = cpuid(*FEATURES, vendor=vendor, pv=ALL & 0xFFFFFFFF)
    model = HandlerVcpu(profile, cpuid_entries=entries, lapic=Lapic(), **switches)
    setup_mce(model, 32 | 1 << 8 | (1 << 10 if vendor == "GenuineIntel" else 0))
    model.cpu.paging = True
    model.msrs[HWCR] = 1 << 18
    return model


def odd(profile, **switches):
    """A guest whose VMM uses what takes MSRs away: no features, few banks, no platform info."""
    model = HandlerVcpu(profile, cpuid_entries=cpuid("lm", pv=0), **switches)
    setup_mce(model, 3)
    model.enforce_pv_cpuid, model.vm.guest_can_read_platform_info = True, False
    return model


@pytest.fixture(autouse=True)
def same_time(monkeypatch):
    monkeypatch.setattr("kvmsr.backend.soft.msr.pv.time.time_ns", lambda: 1_700_000_000 * 10**9)


POLICIES = {
    "default": Policy(),
    "quiet": Policy(defaults=Defaults("ignore", "fault")),
    "lenient": Policy(defaults=Defaults("fault", "ignore")),
    "rules": Policy(
        [
            Rule(0xC0000082, write="ignore", when={"reason": "invalid"}),
            Rule("0x410-0x41f", read=5, when={"reason": "unknown"}),
            Rule(0x2FF, write="ignore", when={"reason": ["invalid", "unknown"]}),
            Rule("0x200-0x20f", "shadow", "shadow"),
            Rule("IA32_EFER", "kernel", "kernel"),
        ],
        Defaults("shadow", "fault"),
    ),
}


def msrs(profile):
    vendor = HandlerVcpu(profile).vm.profile.vendor
    found = {i for one in handled() for i in range(one.first, one.last + 1)}
    found |= {*handlers(vendor).read, *handlers(vendor).write, 0x35, 0x474F4F00}
    return sorted(i for i in found if not 0x840 <= i <= 0x8FF)


def differences(make, profile, policy, **switches):
    """Return the accesses, in words, at which a guest that is watched sees or does otherwise."""
    kernel = KernelFacts(ignore_msrs=switches.get("ignore_msrs", False))

    def guests():
        for one in (policy, replace(policy, observe="all")):
            model = make(profile, **switches)
            model.has_run = True
            yield Guest(model, one, kernel)

    unwatched, watched = guests()
    found = {}
    for index in msrs(profile):
        if all(unwatched.denies(op, index) == watched.denies(op, index) for op in Op):
            continue  # the same happens
        accesses = [(Op.READ, 0)]
        accesses += [one for value in VALUES for one in ((Op.WRITE, value), (Op.READ, 0))]
        for op, value in accesses:
            sees = unwatched.access(op, index, value), watched.access(op, index, value)
            if sees[0] != sees[1] or (op is Op.WRITE and unwatched.state() != watched.state()):
                found[f"{op} of {index:#x} {catalog().name(index)}"] = (hex(value), *sees)
                unwatched, watched = guests()
                break
    return found


@pytest.mark.parametrize(
    ("make", "policy"),
    [
        (bare, "default"),
        (full, "default"),
        (full, "rules"),
        (full, "lenient"),
        (odd, "default"),
        (odd, "quiet"),
    ],
)
@pytest.mark.parametrize("profile", KVMS)
def test_a_watched_guest_sees_and_does_the_same(profile, make, policy):
    assert differences(make, profile, POLICIES[policy]) == {}


@pytest.mark.parametrize("switch", ["ignore_msrs", "la57"])
@pytest.mark.parametrize("profile", [NEWEST, INTEL_61])
def test_so_it_does_on_hosts_with_switches(profile, switch):
    assert differences(full, profile, POLICIES["default"], **{switch: True}) == {}


@pytest.mark.parametrize(
    ("make", "profile", "what"),
    [
        (full, NEWEST, "write of 0xc0011029 MSR_AMD64_DE_CFG"),
        (full, NEWEST, "write of 0x8b IA32_BIOS_SIGN_ID"),
        (full, INTEL_61, "write of 0x3a IA32_FEATURE_CONTROL"),
        (odd, AMD_61, "read of 0xce MSR_PLATFORM_INFO"),
    ],
)
def test_without_its_row_in_the_table_an_msr_is_named(make, profile, what, monkeypatch):
    index = int(what.split()[2], 16)
    rows = [
        one._replace(reads="", writes="") if one.first <= index <= one.last else one
        for one in observing.as_host()
    ]
    monkeypatch.setattr(observing, "as_host", lambda: rows)
    assert list(differences(make, profile, POLICIES["default"])) == [what]
