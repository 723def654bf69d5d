# SPDX-License-Identifier: Apache-2.0
"""
Temperatures
------------

The digital thermal sensors of core and package: degrees below the maximum, thresholds, and log bits
that stay set until they are cleared.

(Intel SDM volume 3, 15.8.2 and 15.8.5; volume 4, MSR_TEMPERATURE_TARGET.)
"""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Final

from msgspec import Meta

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access
from kvmsr.policy.registers import Field, Register
from kvmsr.policy.topology import Scope

__all__ = ("Thermal",)

_Celsius = Annotated[float, Meta(ge=-40, le=150)]
_Point = tuple[Annotated[float, Meta(ge=0)], _Celsius]
_Curve = Annotated[tuple[_Point, ...], Meta(min_length=1, max_length=1000)]
_EVENTS: Final = (0, 2, 4, 6, 8)
"""The status bits, each one below its log bit: hot, PROCHOT, critical, two thresholds."""
_CRITICAL_ABOVE: Final = 5
_READOUT: Final = 16


class Thermal(RegisterModel):
    """
    The sensors of a package whose temperature is constant or follows a curve.

    A curve is a list of points, each of seconds since the start and degrees Celsius. The
    temperature is interpolated between them, and stays at the last one. If it crosses a threshold
    between two reads, the log bits show that.
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """*maximum* is TjMax, at which the CPU throttles; all are in degrees Celsius."""

        celsius: _Celsius | _Curve = 45.0
        maximum: Annotated[int, Meta(ge=50, le=127)] = 100
        offset: Annotated[int, Meta(ge=0, le=15)] = 0

        def __post_init__(self) -> None:
            if isinstance(self.celsius, tuple):
                times = [point[0] for point in self.celsius]
                if sorted(set(times)) != times:
                    raise ValueError("the seconds of a curve must rise from point to point")

    scope = Scope.PACKAGE

    target = Register(
        "MSR_TEMPERATURE_TARGET", others="ro", target=Field("16-23", "ro"), offset=Field("24-29")
    )
    interrupt = Register(
        ["IA32_THERM_INTERRUPT", "IA32_PACKAGE_THERM_INTERRUPT"], others="fault",
        enables=Field("0-4"), threshold1=Field("8-14"), enable1=Field(15),
        threshold2=Field("16-22"), enable2=Field(23), power_limit=Field(24),
    )  # fmt: skip
    status = Register(["IA32_THERM_STATUS", "IA32_PACKAGE_THERM_STATUS"], others="ro")

    def setup(self) -> None:
        """Start the curve when the guest begins."""
        self._begin = self._last = self.now()
        self._logs: dict[int, int] = {}

    def celsius(self, at: int) -> float:
        """Return the temperature at *at*, nanoseconds of the guest's clock."""
        given = self.parameters.celsius
        if not isinstance(given, tuple):
            return float(given)
        seconds = (at - self._begin) / 1e9
        after = bisect_right(given, seconds, key=lambda point: point[0])
        if after == 0 or after == len(given):
            return float(given[max(after - 1, 0)][1])
        (t0, c0), (t1, c1) = given[after - 1], given[after]
        return float(c0 + (c1 - c0) * (seconds - t0) / (t1 - t0))

    def _states(self, access: Access, celsius: float) -> int:
        """Return the status bits at the temperature *celsius*."""
        thresholds = self.interrupt.unpack(self._interrupt(access))
        limit = self.parameters.maximum - self._offset(access)
        bits = 0
        for bit, above in zip(
            _EVENTS,
            (
                limit,
                limit,
                self.parameters.maximum + _CRITICAL_ABOVE,
                self.parameters.maximum - thresholds["threshold1"],
                self.parameters.maximum - thresholds["threshold2"],
            ),
            strict=True,
        ):
            bits |= (celsius >= above) << bit
        return bits

    def _interrupt(self, access: Access) -> int:
        at = self.status.number(access.index) if access.index in self.status.indices else 0
        index = self.interrupt.indices[at]
        return self.get(self.interrupt, access._replace(index=index))

    def _offset(self, access: Access) -> int:
        index = self.target.indices[0]
        register = self.target
        if not self.was_written(register, access._replace(index=index)):
            return int(self.parameters.offset)
        value = self.get(register, access._replace(index=index))
        return register.unpack(value)["offset"]

    def _update_logs(self, access: Access) -> None:
        """Set the log bits of both sensors for what has happened since the last update."""
        now = self.now()
        moments = {self._last, now}
        if isinstance(self.parameters.celsius, tuple):
            corners = (self._begin + int(t * 1e9) for t, _ in self.parameters.celsius)
            moments |= {corner for corner in corners if self._last < corner < now}
        for index in self.status.indices:
            asked = access._replace(index=index)
            seen = [self._states(asked, self.celsius(moment)) for moment in sorted(moments)]
            logs = self._logs.get(index, seen[0] << 1)
            for before, after in pairwise(seen):
                logs |= (after & ~before) << 1
                # A threshold is logged when it is crossed in either direction.
                logs |= ((after ^ before) & 0x140) << 1
            self._logs[index] = logs
        self._last = now

    def read(self, register: Register, access: Access) -> int:
        """Return the target, the thresholds, or a sensor's status."""
        given = self.parameters
        if register is self.target:
            return register.pack(target=int(given.maximum), offset=self._offset(access))
        if register is self.interrupt:
            return self.get(register, access)
        self._update_logs(access)
        celsius = self.celsius(self._last)
        below = min(max(round(given.maximum - celsius), 0), 0x7F)
        value: int = self._states(access, celsius) | self._logs[access.index] | below << _READOUT
        if access.index == self.status.indices[0]:
            value |= 1 << 27 | 1 << 31  # resolution: one degree; the reading is valid
        return value

    def write(self, register: Register, access: Access) -> None:
        """Keep thresholds; clear the log bits to which 0 is written."""
        self._update_logs(access)
        if register is self.status:
            self._logs[access.index] &= access.value
            return
        if register is self.target and not self.was_written(register, access):
            self.set(register, access, self.read(register, access))
        super().write(register, access)
        if register is self.interrupt:
            # A temperature beyond a threshold that has just been set has not crossed it.
            self._last = self.now()

    def state(self) -> dict[str, Any]:
        """Return the registers, the logs, and the position on the curve."""
        logs = [[index, bits] for index, bits in sorted(self._logs.items())]
        elapsed = {"elapsed": self.now() - self._begin, "unseen": self.now() - self._last}
        return super().state() | {"logs": logs} | elapsed

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from there."""
        super().restore(state)
        self._begin = self.now() - state["elapsed"]
        self._last = self.now() - state["unseen"]
        self._logs = dict(state["logs"])
