"""Traces made without a guest."""

import numpy as np

from kvmsr.trace.file import Head, TraceWriter
from kvmsr.trace.file.columns import CPL, LATENCY, MAX_CALLERS, RIP, VALUE, event_type

RULES = ["quiet.toml:3", "quiet.toml:17 bits", "defaults.unknown"]
BEGAN_NS = 1_764_000_000_000_000_000
MSRS = [0x10, 0x35, 0x8B, 0x1A0, 0xC0000080]


def events(count, *, seed=1, rip=False, callers=0):
    """Return rows of accesses that a guest might have made; with *callers*, they have a RIP."""
    random = np.random.default_rng(seed)
    made = np.zeros(count, event_type(callers))
    made["guest_ns"] = np.cumsum(random.integers(1, 10_000, count))
    made["time_ns"] = made["guest_ns"] + np.uint64(BEGAN_NS)
    made["index"] = random.choice(MSRS, count)
    made["value"] = random.integers(0, 1 << 63, count)
    made["latency_ns"] = random.integers(200, 5000, count)
    made["count"], made["pid"] = 1, 77
    made["vcpu"] = random.integers(0, 4, count)
    made["rule"] = random.integers(0, len(RULES), count)
    made["op"], made["reason"] = random.integers(0, 2, count), random.integers(0, 3, count)
    faults = random.random(count) < 0.1
    made["outcome"] = np.where(faults, 2, made["op"])
    made["has"] = LATENCY | np.where(faults & (made["op"] == 0), 0, VALUE)
    if rip or callers:
        made["rip"], made["cpl"] = random.integers(1, 1 << 63, count), 0
        made["has"] |= RIP | CPL
    if callers:
        made["n_callers"] = random.integers(0, callers + 1, count)
        made["guesses"] = random.integers(0, 256, count)
        made["callers"] = random.integers(1, 1 << 63, (count, MAX_CALLERS))
        made["callers"][np.arange(MAX_CALLERS) >= made["n_callers"][:, None]] = 0
    made["value"][made["has"] & VALUE == 0] = 0
    return made


def trace(path, made, rules=RULES, **head):
    """Write a trace, and return its path."""
    rip = bool((made["has"] & RIP).any())
    callers = int(made["n_callers"].max()) if "callers" in made.dtype.names else 0
    head = Head(kvmsr="0.1", image="made", **head)
    with TraceWriter(path, head, rip=rip, callers=callers) as writer:
        writer.write(made, rules)
    return path
