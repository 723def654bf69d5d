# SPDX-License-Identifier: Apache-2.0
"""
Frequencies
-----------

Registers that report a CPU's frequency or request one: APERF and MPERF, ratios, P-states, HWP.

(Intel SDM volume 3, 15.2 and 15.4; volume 4, tables 2-2 and 2-20; AMD APM volume 2, 17.3.)
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access, Fault
from kvmsr.policy.registers import Field, Register
from kvmsr.policy.topology import Scope

__all__ = ("AperfMperf", "Frequency")

_BCLK: Final = 100  # MHz; a ratio is a multiple of it
_UNKNOWN_BASE: Final = 20  # where the frequency of the TSC is not known
_U64: Final = (1 << 64) - 1
_Mhz = Annotated[int, Meta(ge=_BCLK, le=25_500)]
_Ratio = Annotated[int, Meta(ge=1, le=255)]


class AperfMperf(RegisterModel):
    """
    APERF and MPERF, which count while the thread is not idle.

    MPERF counts at the base frequency, APERF at the frequency that the thread really runs at. Only
    the ratio of their differences between two reads has a meaning; but tools also compare MPERF
    with the TSC, which counts at the base frequency, too. So by default the base frequency is that
    of the guest's TSC.
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """*busy* is the share of time in which the thread is not idle, 0 to 1."""

        base_mhz: _Mhz | None = None
        mhz: _Mhz = 3000
        busy: Annotated[float, Meta(ge=0, le=1)] = 1.0

    scope = Scope.THREAD

    mperf = Register("IA32_MPERF")
    aperf = Register("IA32_APERF")
    mperf_readonly = Register("MSR_AMD_MPERF_READONLY", "ro")
    aperf_readonly = Register("MSR_AMD_APERF_READONLY", "ro")

    def setup(self) -> None:
        """Start to count."""
        self._last = self.now()
        self._counted = {"mperf": 0.0, "aperf": 0.0}
        self._offset = {"mperf": 0, "aperf": 0}

    def base_mhz(self) -> float:
        """Return the frequency at which MPERF counts, in MHz."""
        return float(self.parameters.base_mhz or self.tsc_mhz())

    def tsc_mhz(self) -> float:
        """Return the frequency of the guest's TSC, in MHz, or a likely one."""
        return self.site.cpu.tsc_khz / 1000 or _UNKNOWN_BASE * _BCLK

    def mhz(self) -> float:
        """Return the thread's present frequency, in MHz."""
        return float(self.parameters.mhz)

    def count(self) -> None:
        """Bring the counters up to date. Call it before the frequency changes."""
        now = self.now()
        micros = (now - self._last) / 1000 * self.parameters.busy
        self._last = now
        self._counted["mperf"] += micros * self.base_mhz()
        self._counted["aperf"] += micros * self.mhz()

    def read(self, register: Register, access: Access) -> int:
        """Return a counter. Writes to APERF and MPERF do not affect the read-only ones."""
        self.count()
        name = register.name.removesuffix("_readonly")
        offset = 0 if register.name.endswith("_readonly") else self._offset[name]
        return int(self._counted[name]) + offset & _U64

    def write(self, register: Register, access: Access) -> None:
        """Continue to count from the value written."""
        self.count()
        self._offset[register.name] = access.value - int(self._counted[register.name])

    def state(self) -> dict[str, Any]:
        """Return the registers and the counters."""
        self.count()
        counters = {"counted": dict(self._counted), "offset": dict(self._offset)}
        return super().state() | counters

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue to count from there."""
        super().restore(state)
        self._last = self.now()
        self._counted, self._offset = dict(state["counted"]), dict(state["offset"])


class Frequency(AperfMperf):
    """
    A thread of an Intel CPU that runs at the frequency that the guest requests.

    The ratio comes from IA32_PERF_CTL or, once HWP is enabled, from IA32_HWP_REQUEST, and is
    limited to between *minimum* and the highest turbo ratio. APERF counts accordingly.
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """
        Ratios are multiples of 100 MHz; *turbo* has one for 1 busy core, 2, 3 … up to 8.

        Without *base*, the base ratio is that of the guest's TSC, whatever the other ratios are.
        """

        base: _Ratio | None = None
        minimum: _Ratio = 8
        turbo: Annotated[tuple[_Ratio, ...], Meta(min_length=1, max_length=8)] = (30,)
        busy: Annotated[float, Meta(ge=0, le=1)] = 1.0
        energy_perf_bias: Annotated[int, Meta(ge=0, le=15)] = 6

        def __post_init__(self) -> None:
            if self.base and not self.minimum <= self.base <= max(self.turbo):
                raise ValueError("minimum <= base <= the highest turbo ratio must hold")

    info = Register(
        "MSR_PLATFORM_INFO", "ro",
        base=Field("8-15"), programmable_ratios=Field(28, reset=1), minimum=Field("40-47"),
    )  # fmt: skip
    turbo = Register("MSR_TURBO_RATIO_LIMIT", "ro")
    turbo_cores = Register("MSR_TURBO_RATIO_LIMIT1", "ro")
    nominal = Register("MSR_CONFIG_TDP_NOMINAL", "ro", ratio=Field("0-7"))
    status = Register("IA32_PERF_STATUS", "ro", ratio=Field("8-15"), voltage=Field("32-47"))
    control = Register(
        "IA32_PERF_CTL", others="ro", ratio=Field("8-15"), no_turbo=Field(32)
    )  # fmt: skip
    bias = Register("IA32_ENERGY_PERF_BIAS", others="fault", bias=Field("0-3"))
    enable = Register("IA32_PM_ENABLE", others="fault", hwp=Field(0, "w1s"))
    capabilities = Register(
        "IA32_HWP_CAPABILITIES", "ro",
        highest=Field("0-7"), guaranteed=Field("8-15"), efficient=Field("16-23"),
        lowest=Field("24-31"),
    )  # fmt: skip
    interrupt = Register("IA32_HWP_INTERRUPT", others="fault", enables=Field("0-3"))
    request = Register(
        "IA32_HWP_REQUEST", others="fault",
        minimum=Field("0-7"), maximum=Field("8-15"), desired=Field("16-23"),
        preference=Field("24-31", reset=0x80), window=Field("32-41"), package=Field(42),
        valid=Field("59-63"),
    )  # fmt: skip
    hwp_status = Register("IA32_HWP_STATUS", others="ro", changed=Field(0), excursion=Field(2))

    _needs_hwp: Final = frozenset({"capabilities", "request", "hwp_status"})

    def base_mhz(self) -> float:
        """Return the frequency at which MPERF counts, in MHz."""
        given = self.parameters.base
        return float(given * _BCLK if given else self.tsc_mhz())

    def base(self) -> int:
        """Return the base ratio."""
        return max(round(self.base_mhz() / _BCLK), 1)

    def _lowest(self) -> int:
        return min(int(self.parameters.minimum), self.base())

    def _highest(self) -> int:
        return int(max(*self.parameters.turbo, self.base()))

    def _value(self, register: Register) -> int:
        """Return the value of this thread's register."""
        vcpu = self.site.vcpus[0] if self.site.vcpus else 0
        key = Access(vcpu, "read", register.indices[0], 0, "unknown")  # type: ignore[arg-type]
        if register is self.request and not self.was_written(register, key):
            return register.pack(register.reset, minimum=self._lowest(), maximum=self._highest())
        return self.get(register, key)

    def ratio(self) -> int:
        """Return the multiple of 100 MHz that the thread runs at."""
        if self._value(self.enable):
            wish = self.request.unpack(self._value(self.request))
            asked = wish["desired"] or wish["maximum"]
            low, high = wish["minimum"], wish["maximum"]
            asked = max(min(asked, high), low)
        else:
            wish = self.control.unpack(self._value(self.control))
            asked = wish["ratio"] or self._highest()
            if wish["no_turbo"]:
                asked = min(asked, self.base())
        return max(self._lowest(), min(asked, self._highest()))

    def mhz(self) -> float:
        """Return the thread's present frequency, in MHz."""
        return float(self.ratio() * _BCLK)

    def read(self, register: Register, access: Access) -> int:
        """Return a register's value; HWP's registers fault until HWP is enabled."""
        given = self.parameters
        if register.name in self._needs_hwp and not self._value(self.enable):
            raise Fault
        if register is self.info:
            return register.pack(register.reset, base=self.base(), minimum=self._lowest())
        if register is self.nominal:
            return register.pack(ratio=self.base())
        if register is self.turbo:
            ratios = given.turbo + given.turbo[-1:] * (8 - len(given.turbo))
            return int.from_bytes(bytes(ratios), "little")
        if register is self.turbo_cores:  # ratio n is for at most n cores
            return int.from_bytes(bytes(range(1, 9)), "little")
        if register is self.status:
            return register.pack(ratio=self.ratio())
        if register is self.capabilities:
            return register.pack(
                highest=self._highest(), guaranteed=self.base(), efficient=self._lowest(),
                lowest=self._lowest(),
            )  # fmt: skip
        if register is self.request:
            return self._value(register)
        if register is self.bias and not self.was_written(register, access):
            return register.pack(bias=given.energy_perf_bias)
        if register in (self.mperf, self.aperf, self.mperf_readonly, self.aperf_readonly):
            return super().read(register, access)
        return self.get(register, access)

    def write(self, register: Register, access: Access) -> None:
        """Accept a request; HWP's registers fault until HWP is enabled."""
        if register in (self.mperf, self.aperf):
            super().write(register, access)
            return
        if register.name in self._needs_hwp and not self._value(self.enable):
            raise Fault
        self.count()
        if register is self.request:
            self.set(register, access, self._value(register))
        if register is self.hwp_status:  # its bits are cleared by writing 0
            self.set(register, access, self.get(register, access) & access.value)
            return
        RegisterModel.write(self, register, access)
