# SPDX-License-Identifier: Apache-2.0
"""
Places
------

Where scenarios are played for comparison: a real KVM, and the soft backend that models it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvmsr import backend as backends
from kvmsr.backend.soft.profile import find_profile
from kvmsr.errors import KvmsrError
from kvmsr.kvm import Kvm
from tests.differential.cpuid import FEATURES, has
from tests.differential.machine import Observation, play
from tests.differential.scenario import Scenario
from tests.nested.session import open_session

__all__ = ("PLACES", "Place", "host", "nested", "soft")

_ARCH_CAPABILITIES: Final = 0x10A
_OF_THE_CPU: Final = frozenset((_ARCH_CAPABILITIES, 0x174, 0x1D9))
"""ARCH_CAPABILITIES; SYSENTER_CS, of which QEMU keeps 16 bits; DEBUGCTL, without virtual LBRs."""
_NOT_OF_THE_CPU: Final = frozenset(("fxsr_opt",))
"""What QEMU's CPU lacks: without it, KVM takes no EFER with FFXSR, whatever the guest's CPUID."""
_EMULATED: Final = frozenset(("mwait", "tsc_deadline"))
"""Features that KVM gives a guest though it does not offer them (cpuid_func_emulated, lapic.c)."""
_SYS_MODULE: Final = Path("/sys/module")


@dataclass(frozen=True)
class Place:
    """
    A real KVM.

    :ivar play: plays a scenario on it.
    :ivar profile: of the soft backend that models it.
    :ivar module: the vendor module, by which its own ways are known.
    :ivar strange: MSRs that either the real KVM lists or the profile: the host's CPU decides about
        them, and user space may read 0 from what is listed whether KVM knows it or not.
    :ivar unlike: CPUID features that a guest may have on the real KVM or on its model, not on both:
        the host's CPU decides about them, too.
    """

    play: Callable[[Scenario], Observation]
    profile: str
    module: str
    strange: frozenset[int] = frozenset()
    unlike: frozenset[str] = frozenset()


def soft(profile: str) -> Callable[[Scenario], Observation]:
    """Return what plays scenarios on the soft backend."""
    backend = backends.open("soft", profile=profile)
    return lambda scenario: play(backend, scenario)


@contextmanager
def host() -> Iterator[Place]:
    """
    Give this machine's KVM.

    :raises KvmsrError: if there is none, or none that a profile models.
    """
    backend = backends.open("kvm")
    backend.close(backend.open())
    if not (_SYS_MODULE / "kvm_pvm").exists():
        raise KvmsrError("a KVM that a profile models exactly, which is kvm_pvm")
    with Kvm(backend) as kvm:
        profile = "pvm,la57" if _has_la57(kvm) else "pvm"
        strange = _listed_by_one(kvm.get_msr_index_list(), profile)
        unlike = _had_by_one(kvm, profile)
    if "arch_capabilities" in unlike:
        strange |= {_ARCH_CAPABILITIES}
    yield Place(lambda scenario: play(backend, scenario), profile, "kvm_pvm", strange, unlike)


def _has_la57(kvm: Kvm) -> bool:
    """Tell whether the host's CPU has linear addresses of 57 bits: CPUID leaf 7, ECX bit 16."""
    leaf = kvm.get_supported_cpuid().find(7)
    return leaf is not None and bool(leaf.ecx >> 16 & 1)


def _listed_by_one(listed: Iterable[int], profile: str) -> frozenset[int]:
    """Return the MSRs of KVM_GET_MSR_INDEX_LIST that either KVM lists or the profile."""
    with Kvm(backends.open("soft", profile=profile)) as model:
        return frozenset(listed) ^ frozenset(model.get_msr_index_list())


def _had_by_one(kvm: Kvm, profile: str) -> frozenset[str]:
    """Return the CPUID features that a guest may have on *kvm* or by *profile*, not by both."""
    supported, withheld = kvm.get_supported_cpuid(), find_profile(profile).withheld
    return frozenset(
        name
        for name in FEATURES
        if not name.startswith("pv_")  # KVM's own, of which the guest has what its CPUID says
        and (name in _EMULATED or has(supported, name)) == (name in withheld)
    )


@contextmanager
def nested() -> Iterator[Place]:
    """
    Give the upstream KVM of the nested machine. Nested guests are off, as they are in the model.

    :raises MissingError: if a part of that machine is not here.
    :raises NestedError: if it does not come up.
    """
    with open_session(["-m", "tests.differential.inside"], {"kvm-amd": "nested=0"}) as session:

        def ask(scenario: Scenario) -> Observation:
            return [(name, value) for name, value in session.ask(scenario.to_json())]

        profile = "linux-6.1-amd"
        strange = _listed_by_one(session.ask("list"), profile)
        yield Place(ask, profile, "kvm_amd", strange | _OF_THE_CPU, _NOT_OF_THE_CPU)


def through_text(observation: Observation) -> Observation:
    """Return an observation as it comes out of the nested machine."""
    return [(name, value) for name, value in json.loads(json.dumps(observation))]


PLACES: Final = {"kvm": host, "nested": nested}
"""By name."""
