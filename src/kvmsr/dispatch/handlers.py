# SPDX-License-Identifier: Apache-2.0
"""
Handlers at run time
--------------------

Call the functions that answer accesses, and check what they return.
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

# Every access uses these, and looking up a member of an enumeration costs more than using it.
_READ, _WRITE = Op.READ, Op.WRITE
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT

# Costs half as much as the constructor that NamedTuple generates.
_outcome: Callable[..., Outcome] = tuple.__new__


@dataclass(frozen=True, slots=True)
class HandlerFailure:
    """
    A handler raised an exception, or returned something that is not an answer.

    :ivar handler: the handler's name.
    :ivar rule: where the rule that names it was written.
    :ivar access: the access that it should have answered.
    :ivar message: what went wrong, in one line.
    :ivar traceback: the last 16,000 characters of Python's traceback; "" if it did not raise.
    """

    handler: str
    rule: str
    access: Access
    message: str
    traceback: str


class Handlers:
    """
    Calls handlers and records their failures.

    The threads of several vCPUs may call handlers at once.

    :param on_error: what happens to an access whose handler fails.
    :ivar failures: the first 32 failures.
    :ivar failure_count: number of failures.
    """

    def __init__(self, on_error: Plain) -> None:
        self.failures: list[HandlerFailure] = []
        self.failure_count = 0
        self._on_error = on_error
        self._failing = threading.Lock()

    def act(self, function: Handler, name: str, rule: str) -> Callable[[Access], Outcome]:
        """
        Return a function that lets *function* answer an access.

        :param name: the handler's name, for messages.
        :param rule: where the rule that names it was written.
        """
        done, fault = Outcome(_DONE, rule), Outcome(_FAULT, rule)

        def act(access: Access) -> Outcome:
            try:
                answer = function(access)
            except Fault:
                return fault
            except KeyboardInterrupt:
                raise  # Ctrl-C is not the handler's failure
            except BaseException as error:  # even SystemExit, which would end the vCPU's thread
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
            except BaseException:  # an __index__ may raise anything
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

    :param rule: where the rule was written, for messages.
    :raises UsageError: if *host* is None.
    """
    if host is None:
        raise UsageError(f"{rule} needs the host's registers: pass host= to Dispatcher")
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
    """Return the traceback, or the end of a long one."""
    return "".join(traceback.format_exception(error))[-_MAX_TRACEBACK:]
