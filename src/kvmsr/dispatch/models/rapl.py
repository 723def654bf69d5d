# SPDX-License-Identifier: Apache-2.0
"""
RAPL
----

Intel's and AMD's energy counters: 32 bits, in the unit that another register defines.

(Intel SDM volume 3, 15.10 "Platform specific power management support"; AMD PPR, Core::X86::Msr::
RAPL_PWR_UNIT and its neighbours. A unit is the power of two by which a watt, a joule or a second is
divided.)
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.dispatch.models.energy import ConstantWatts, CpuTime, Powercap, Source
from kvmsr.policy import Access
from kvmsr.policy.registers import Field, Register
from kvmsr.policy.topology import Scope

__all__ = ("AmdRapl", "IntelRapl")

_MEMORY_UNIT: Final = 16
_FIXED_MEMORY_UNIT: Final = {
    (6, model) for model in (0x3F, 0x4F, 0x55, 0x56, 0x57, 0x6A, 0x6C, 0x85)
}
"""Servers whose memory is counted in 1/2**16 joules, whatever the unit register says: Haswell,
Broadwell, Skylake, Ice Lake, Xeon Phi (Linux: arch/x86/events/rapl.c, RAPL_UNIT_QUIRK_INTEL_HSW)"""

_Unit = Annotated[int, Meta(ge=1, le=31)]
_Watts = Annotated[float, Meta(ge=0, le=10_000)]


class _Rapl(RegisterModel):
    """
    What both vendors have in common: a source of energy, and counters of it.

    *source* selects where the energy comes from: ``constant`` (the watts of the other parameters),
    ``cpu-time`` (*watts* while this process uses CPU time, and the others as idle power at all
    times) or ``powercap`` (the host's own counters, if they may be read).
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """Watts are for the whole package; an energy unit is 1/2**energy_unit joules."""

        source: Literal["constant", "cpu-time", "powercap"] = "constant"
        watts: _Watts = 15.0
        idle_watts: _Watts = 0.0
        cores_watts: _Watts | None = None
        graphics_watts: _Watts = 0.0
        memory_watts: _Watts = 0.0
        energy_unit: _Unit = 14

    def setup(self) -> None:
        """Make the energy source."""
        self._source = self._make_source()
        self._before = dict.fromkeys(("package", "cores", "graphics", "memory"), 0.0)

    def _make_source(self) -> Source:
        given = self.parameters
        if given.source == "powercap":
            return Powercap()
        others = {"graphics": given.graphics_watts, "memory": given.memory_watts}
        if given.source == "cpu-time":
            idle = {"package": given.idle_watts, "cores": given.cores_watts or 0.0}
            return CpuTime(given.watts, idle | others, self.now)
        cores = given.watts if given.cores_watts is None else given.cores_watts
        return ConstantWatts({"package": given.watts, "cores": cores} | others, self.now)

    def joules(self, domain: str) -> float:
        """Return the joules that *domain* has used since the guest began."""
        return self._before[domain] + self._source.joules(domain)

    def counter(self, joules: float, unit: int | None = None) -> int:
        """Return *joules* as the value of a 32-bit counter, in 1/2**unit joules."""
        return int(joules * 2 ** (unit or self.parameters.energy_unit)) & 0xFFFF_FFFF

    def state(self) -> dict[str, Any]:
        """Return the registers, and the energy used so far."""
        return super().state() | {
            "joules": {domain: self.joules(domain) for domain in self._before}
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue to count from there."""
        super().restore(state)
        self._source = self._make_source()
        self._before = dict(state["joules"])


class IntelRapl(_Rapl):
    """
    RAPL of an Intel package: the energy of package, cores, graphics, memory; power limits.

    Limits are stored and have no effect: the throttled time is always 0.
    """

    class Parameters(_Rapl.Parameters, frozen=True, kw_only=True):
        """
        *tdp* and the limits are in watts.

        Memory is counted in a unit of its own on some servers. Without *memory_energy_unit*, the
        model of the guest's CPU decides.
        """

        memory_energy_unit: _Unit | None = None
        tdp: Annotated[float, Meta(ge=1, le=4000)] = 65.0
        locked: bool = False

    scope = Scope.PACKAGE

    unit = Register(
        "MSR_RAPL_POWER_UNIT", "ro",
        power=Field("0-3", reset=3), energy=Field("8-12"), time=Field("16-19", reset=10),
    )  # fmt: skip
    limit = Register(
        "MSR_PKG_POWER_LIMIT", others="fault",
        power1=Field("0-14"), enable1=Field(15), clamp1=Field(16), window1=Field("17-23"),
        power2=Field("32-46"), enable2=Field(47), clamp2=Field(48), window2=Field("49-55"),
        lock=Field(63, "lock"),
    )  # fmt: skip
    other_limits = Register(
        ["MSR_DRAM_POWER_LIMIT", "MSR_PP0_POWER_LIMIT", "MSR_PP1_POWER_LIMIT"], others="fault",
        power=Field("0-14"), enable=Field(15), clamp=Field(16), window=Field("17-23"),
        lock=Field(31, "lock"),
    )  # fmt: skip
    priorities = Register(["MSR_PP0_POLICY", "MSR_PP1_POLICY"], others="fault", of=Field("0-4"))
    throttled = Register(["MSR_PKG_PERF_STATUS", "MSR_DRAM_PERF_STATUS"], "ro")
    memory_info = Register("MSR_DRAM_POWER_INFO", "ro")
    info = Register(
        "MSR_PKG_POWER_INFO", "ro",
        tdp=Field("0-14"), minimum=Field("16-30"), maximum=Field("32-46"), window=Field("48-53"),
    )  # fmt: skip
    package = Register("MSR_PKG_ENERGY_STATUS", "ro")
    cores = Register("MSR_PP0_ENERGY_STATUS", "ro")
    graphics = Register("MSR_PP1_ENERGY_STATUS", "ro")
    memory = Register("MSR_DRAM_ENERGY_STATUS", "ro")

    def read(self, register: Register, access: Access) -> int:
        """Return an energy counter, the units, the limits, or the package's power."""
        given = self.parameters
        if register is self.unit:
            return register.pack(register.reset, energy=given.energy_unit)
        eighths = int(given.tdp * 8)
        if register is self.info:
            return register.pack(tdp=eighths, maximum=min(2 * eighths, 0x7FFF))
        if register is self.limit:
            return self._limit(register, access, eighths)
        if register is self.memory:
            return self.counter(self.joules("memory"), self._memory_unit())
        if register in (self.package, self.cores, self.graphics):
            return self.counter(self.joules(register.name))
        return self.get(register, access)

    def _memory_unit(self) -> int:
        given = self.parameters
        fixed = self.site.cpu.model in _FIXED_MEMORY_UNIT
        return int(given.memory_energy_unit or (_MEMORY_UNIT if fixed else given.energy_unit))

    def _limit(self, register: Register, access: Access, eighths: int) -> int:
        if register.bits.lock & self.get(register, access) or self.was_written(register, access):
            return self.get(register, access)
        lock = int(self.parameters.locked)
        return register.pack(power1=eighths, enable1=1, window1=0x6E, lock=lock)

    def write(self, register: Register, access: Access) -> None:
        """Keep a power limit unless it is locked. It has no effect."""
        if register is self.limit and not self.was_written(register, access):
            self.set(register, access, self.read(register, access))
        super().write(register, access)


class AmdRapl(_Rapl):
    """RAPL of an AMD package: the energy of the package and of each core."""

    class Parameters(_Rapl.Parameters, frozen=True, kw_only=True):
        """The common parameters, with AMD's usual unit."""

        energy_unit: _Unit = 16

    scope = Scope.PACKAGE

    unit = Register(
        "MSR_AMD_RAPL_POWER_UNIT", "ro",
        power=Field("0-3", reset=3), energy=Field("8-12"), time=Field("16-19", reset=10),
    )  # fmt: skip
    package = Register("MSR_AMD_PKG_ENERGY_STATUS", "ro")
    core = Register("MSR_AMD_CORE_ENERGY_STATUS", "ro", scope="core")

    def read(self, register: Register, access: Access) -> int:
        """Return the units or an energy counter. All cores get equal shares of their energy."""
        if register is self.unit:
            return register.pack(register.reset, energy=self.parameters.energy_unit)
        if register is self.package:
            return self.counter(self.joules("package"))
        topology = self.site.topology
        cores = {topology.unit(Scope.CORE, vcpu) for vcpu in self.site.vcpus}
        return self.counter(self.joules("cores") / max(len(cores), 1))
