# SPDX-License-Identifier: Apache-2.0
"""
Energy sources
--------------

Sources of the energy that RAPL's counters show.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

__all__ = ("DOMAINS", "ConstantWatts", "CpuTime", "Powercap", "Source")

DOMAINS: Final = ("package", "cores", "graphics", "memory")
"""The domains that are counted: Intel's PKG, PP0, PP1 and DRAM."""

_POWERCAP: Final = Path("/sys/class/powercap")
_ZONES: Final = {"core": "cores", "uncore": "graphics", "dram": "memory"}
_NANO: Final = 1e-9


class Source(Protocol):
    """Measures energy from the moment it is created."""

    def joules(self, domain: str) -> float:
        """Return the joules that *domain* has used. They never decrease."""


class ConstantWatts:
    """
    Constant power in each domain.

    :param watts: watts by domain; a missing domain uses none.
    :param now: returns the guest's time in nanoseconds.
    """

    def __init__(self, watts: Mapping[str, float], now: Callable[[], int]) -> None:
        self._watts = watts
        self._now = now
        self._begin = now()

    def joules(self, domain: str) -> float:
        """Return the domain's watts times the seconds that have passed."""
        return self._watts.get(domain, 0.0) * (self._now() - self._begin) * _NANO


class CpuTime:
    """
    Power that package and cores use while this process, which runs the guest, uses CPU time.

    :param watts: watts of one busy CPU.
    :param idle: watts that each domain uses at all times, in addition.
    :param now: returns the guest's time in nanoseconds.
    :param cpu_time: returns the CPU time used, in nanoseconds.
    """

    def __init__(
        self,
        watts: float,
        idle: Mapping[str, float],
        now: Callable[[], int],
        cpu_time: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self._watts = watts
        self._idle = ConstantWatts(idle, now)
        self._cpu_time = cpu_time
        self._begin = cpu_time()

    def joules(self, domain: str) -> float:
        """Return the busy energy and the idle energy of *domain*."""
        busy = 0.0
        if domain in ("package", "cores"):
            busy = self._watts * (self._cpu_time() - self._begin) * _NANO
        return busy + self._idle.joules(domain)


class Powercap:
    """
    The host's own counters, from Linux's powercap, summed over all packages.

    (Documentation/power/powercap/powercap.rst: ``energy_uj`` wraps at ``max_energy_range_uj``.)

    :raises OSError: if there are none, or they may not be read; by default only root may.
    """

    def __init__(self, folder: Path = _POWERCAP) -> None:
        self._zones: dict[str, list[_Zone]] = {domain: [] for domain in DOMAINS}
        for path in sorted(folder.glob("intel-rapl:*")):
            name = (path / "name").read_text().strip()
            domain = "package" if name.startswith("package") else _ZONES.get(name)
            if domain is not None:
                self._zones[domain].append(_Zone(path))
        if not self._zones["package"]:
            raise FileNotFoundError(f"{folder} shows no package: the host has no RAPL driver")

    def joules(self, domain: str) -> float:
        """Return the joules that *domain* has used, in all packages."""
        return sum(zone.joules() for zone in self._zones[domain])


class _Zone:
    def __init__(self, path: Path) -> None:
        self._path = path / "energy_uj"
        self._range = int((path / "max_energy_range_uj").read_text()) + 1
        self._last = self._read()
        self._total = 0

    def _read(self) -> int:
        return int(self._path.read_text())

    def joules(self) -> float:
        now = self._read()
        self._total += (now - self._last) % self._range
        self._last = now
        return self._total / 1e6
