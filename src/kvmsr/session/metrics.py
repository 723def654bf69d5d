# SPDX-License-Identifier: Apache-2.0
"""
Metrics
-------

What a run does, for Prometheus: an HTTP server that answers with the run's numbers as they are.
"""

import socket
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric

from kvmsr._version import __version__
from kvmsr.errors import HostError, UsageError
from kvmsr.msr import catalog
from kvmsr.session.session import Session
from kvmsr.text import shown
from kvmsr.trace import Latencies, Row, Summary

__all__ = ("Address", "MetricsServer", "parse_address")

_MOST_MSRS: Final = 1000
"""The number of MSRs with rows of their own: the guest chooses them, and each costs memory."""

_SHORTEST, _LONGEST = 8, 31
"""The buckets of the latency histogram: 256 ns to 2.1 s, each twice as long as the one before."""

_LOOPBACK: Final = "127.0.0.1"


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


def parse_address(text: str) -> Address:
    """
    Return the address in *text*: ``PORT``, ``HOST:PORT`` or ``[HOST]:PORT``.

    Without a host, it is the loopback address.

    :raises UsageError: if it is none.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise UsageError(
            f"--metrics {shown(text)}: write HOST:PORT, such as {_LOOPBACK}:9100, with a port up to"
            " 65535"
        )
    return Address(host.removeprefix("[").removesuffix("]") or _LOOPBACK, int(port))


class MetricsServer:
    """
    Serves a run's metrics over HTTP, until it is closed.

    :param session: the policy at work.
    :param address: where to listen.
    :ivar port: the port; if *address* has port 0, the one that the host chose.
    :raises HostError: if it cannot listen there.
    """

    def __init__(self, session: Session, address: Address) -> None:
        registry = CollectorRegistry()
        registry.register(_Collector(session))
        try:
            self._server: WSGIServer
            self._server, self._thread = start_http_server(
                address.port, address.host, registry=registry
            )
        except (OSError, OverflowError, socket.gaierror) as error:
            why = getattr(error, "strerror", None) or error
            raise HostError(
                f"--metrics {address.host}:{address.port}: cannot listen there: {why}"
            ) from None
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop to listen."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Collector:
    def __init__(self, session: Session) -> None:
        self._session = session

    def describe(self) -> Iterable[Metric]:
        """Return nothing: which MSRs there are is not known before."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        session = self._session
        policy = session.plan.policy
        yield InfoMetricFamily(
            "kvmsr_run", "The run.",
            {"version": __version__, "backend": session.backend,
             "policy": policy.source or policy.name},
        )  # fmt: skip
        counts = session.vcpu_counts()
        yield GaugeMetricFamily("kvmsr_vms", "The VMs under the policy so far.", len(counts))
        yield GaugeMetricFamily("kvmsr_vcpus", "Their vCPUs.", sum(counts.values()))
        yield CounterMetricFamily(
            "kvmsr_policy_replacements", "How often the policy was replaced.", session.replacements
        )
        yield CounterMetricFamily(
            "kvmsr_handler_failures", "Handlers that failed.", session.failure_count
        )
        yield CounterMetricFamily(
            "kvmsr_trace_dropped_events",
            "Accesses that came too fast for the trace.",
            session.dropped_events,
        )
        yield _accesses(session.summary())
        yield _latency(session.latencies())


def _accesses(summary: Summary) -> Metric:
    family = CounterMetricFamily(
        "kvmsr_accesses",
        "MSR accesses that reached user space.",
        labels=("msr", "name", "op", "outcome"),
    )
    found: dict[tuple[str, str, str, str], int] = {}
    msrs: set[int] = set()

    def add(msr: str, name: str, row: Row, op: str) -> None:
        outcomes = {
            "value": row.values, "done": row.dones, "fault": row.faults, "stop": row.stops,
        }  # fmt: skip
        for outcome, count in outcomes.items():
            if count:
                key = (msr, name, op, outcome)
                found[key] = found.get(key, 0) + count

    for row in summary:
        if row.index in msrs or len(msrs) < _MOST_MSRS:
            msrs.add(row.index)
            add(f"{row.index:#x}", catalog().name(row.index) or "", row, str(row.op))
        else:
            add("other", "", row, str(row.op))
    for op, row in summary.others.items():
        add("other", "", row, str(op))
    for key, count in found.items():
        family.add_metric(key, count)
    return family


def _latency(latencies: Latencies) -> Metric:
    family = HistogramMetricFamily(
        "kvmsr_access_latency_seconds",
        "How long accesses took in user space, from KVM's exit to the answer.",
    )
    buckets, total = [], 0
    for number, count in enumerate(latencies.counts):
        total += count
        if _SHORTEST <= number < _LONGEST:
            buckets.append((repr((1 << number) / 1e9), total))
    buckets.append(("+Inf", total))
    family.add_metric((), buckets, latencies.sum_ns / 1e9)
    return family
