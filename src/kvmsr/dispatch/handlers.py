# SPDX-License-Identifier: Apache-2.0
"""
Handlers at run time
--------------------

Calls the functions that answer accesses, and holds them to what they may answer.
"""

import errno
import operator
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvmsr.dispatch.host import HostMsrs
from kvmsr.dispatch.outcome import Outcome, Verdict, plain_outcome
from kvmsr.errors import UsageError
from kvmsr.policy import Access, Fault, Handler, Host, Op, Plain
from kvmsr.text import error_text, shown

__all__ = ("HandlerFailure", "Handlers", "host_handler")

_U64: Final = (1 << 64) - 1
_MAX_FAILURES: Final = 32
_MAX_TRACEBACK: Final = 16_000

# On the way of every access; looking a member up in its enumeration costs more than using it.
_READ, _WRITE = Op.READ, Op.WRITE
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT

# Half the price of the constructor that a NamedTuple gets.
_outcome: Callable[..., Outcome] = tuple.__new__


@dataclass(frozen=True, slots=True)
class HandlerFailure:
    """
    A handler that raised, or returned something that is not an answer.

    :ivar handler: its name.
    :ivar rule: where the rule that names it was written.
    :ivar access: the access that it was to answer.
    :ivar message: what went wrong, in one line.
    :ivar traceback: Python's traceback, the last 16,000 characters of it; "" if it did not raise.
    """

    handler: str
    rule: str
    access: Access
    message: str
    traceback: str


class Handlers:
    """
    Calls handlers, and records what goes wrong in them; threads of several vCPUs may do so at once.

    :param on_error: what the guest gets where a handler fails.
    :ivar failures: the first 32 failures.
    :ivar failure_count: how many there were.
    """

    def __init__(self, on_error: Plain) -> None:
        self.failures: list[HandlerFailure] = []
        self.failure_count = 0
        self._on_error = on_error
        self._failing = threading.Lock()

    def act(self, function: Handler, name: str, rule: str) -> Callable[[Access], Outcome]:
        """
        Return what has *function* answer an access.

        :param name: how messages call it.
        :param rule: where the rule that names it was written.
        """
        done, fault = Outcome(_DONE, rule), Outcome(_FAULT, rule)

        def act(access: Access) -> Outcome:
            try:
                answer = function(access)
            except Fault:
                return fault
            except KeyboardInterrupt:
                raise  # it is not the handler's
            except BaseException as error:  # also SystemExit: it would end the vCPU's thread
                return self._failed(
                    name, rule, access, f"raised {error_text(error)}", _trace(error)
                )
            if access.op == _WRITE:
                if answer is None:
                    return done
                message = f"returned {shown(answer)}; a handler of writes returns nothing"
                return self._failed(name, rule, access, message)
            try:
                value = operator.index(answer)  # type: ignore[arg-type]
            except KeyboardInterrupt:
                raise
            except BaseException:  # whatever somebody's __index__ does
                message = f"returned {shown(answer)}; a handler of reads returns an integer"
                return self._failed(name, rule, access, message)
            if not 0 <= value <= _U64:
                message = f"returned {shown(value)}, which does not fit an MSR's 64 bits"
                return self._failed(name, rule, access, message)
            return _outcome(Outcome, (_VALUE, rule, value))

        return act

    def _failed(
        self, name: str, rule: str, access: Access, message: str, text: str = ""
    ) -> Outcome:
        with self._failing:
            self.failure_count += 1
            if len(self.failures) < _MAX_FAILURES:
                self.failures.append(HandlerFailure(name, rule, access, message, text))
        return plain_outcome(self._on_error, "defaults.on_error", access.op)


def host_handler(host: HostMsrs | None, action: Host, rule: str) -> Handler:
    """
    Return a handler that reads and writes the host's registers.

    :raises UsageError: if there are none.
    """
    if host is None:
        raise UsageError(f"{rule} asks for the host's registers: give Dispatcher(host=…)")
    cpu = action.cpu

    def answer(access: Access) -> int | None:
        try:
            if access.op == _READ:
                return host.read(cpu, access.index)
            host.write(cpu, access.index, access.value)
        except OSError as error:
            if error.errno == errno.EIO:
                raise Fault from None  # the host's CPU faulted
            raise
        return None

    return answer


def _trace(error: BaseException) -> str:
    """Return the traceback; of a long one the end."""
    return "".join(traceback.format_exception(error))[-_MAX_TRACEBACK:]
