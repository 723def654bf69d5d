# SPDX-License-Identifier: Apache-2.0
"""
Dispatch
--------

Decide accesses: a :class:`Dispatcher` turns each access into an :class:`Outcome`.
"""

from kvmsr.dispatch.dispatcher import Dispatcher, Step
from kvmsr.dispatch.explain import Case, Effect, Explanation, explain
from kvmsr.dispatch.handlers import HandlerFailure
from kvmsr.dispatch.host import HostMsrs
from kvmsr.dispatch.log import MAX_MARKS, Sink
from kvmsr.dispatch.outcome import Outcome, Verdict
from kvmsr.dispatch.registers import Registers
from kvmsr.dispatch.state import MAX_SHADOWS, Shadows

__all__ = (
    "MAX_MARKS",
    "MAX_SHADOWS",
    "Case",
    "Dispatcher",
    "Effect",
    "Explanation",
    "HandlerFailure",
    "HostMsrs",
    "Outcome",
    "Registers",
    "Shadows",
    "Sink",
    "Step",
    "Verdict",
    "explain",
)
