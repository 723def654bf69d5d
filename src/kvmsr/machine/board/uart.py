# SPDX-License-Identifier: Apache-2.0
"""
UART
----

A 16550A as software sees it: FIFO, transmit and receive interrupts, loopback. Characters are sent
at once. Received characters wait outside until the FIFO has room, as on a line with flow control;
only in loopback mode can they overrun it. Source: National Semiconductor PC16550D data sheet,
section 8.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ("Uart",)

_RBR_THR, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCR = range(8)

_IER_RECEIVE: Final = 0x01
_IER_TRANSMIT: Final = 0x02
_IIR_NONE: Final = 0x01
_IIR_TRANSMIT: Final = 0x02
_IIR_RECEIVE: Final = 0x04
_IIR_FIFO: Final = 0xC0
_FCR_ENABLE: Final = 0x01
_FCR_CLEAR_RECEIVE: Final = 0x02
_LCR_DLAB: Final = 0x80
_MCR_LOOP: Final = 0x10
_MCR_OUT2: Final = 0x08
_LSR_DATA: Final = 0x01
_LSR_EMPTY: Final = 0x60  # holding register and transmitter
_LSR_OVERRUN: Final = 0x02
_FIFO_SIZE: Final = 16
_MSR_CTS_DSR_DCD: Final = 0xB0


class Uart:
    """
    A 16550A.

    :param base: its first port.
    :param output: called with the bytes that the guest sends.
    :param set_irq: called with the level of its interrupt line when that changes.
    """

    def __init__(
        self, base: int, output: Callable[[bytes], None], set_irq: Callable[[bool], None]
    ) -> None:
        self._base = base
        self._output = output
        self._set_irq = set_irq
        self._level = False
        self._received: deque[int] = deque()
        self._lock = threading.RLock()  # input comes from another thread
        self._ier = self._lcr = self._mcr = self._scr = self._fcr = 0
        self._divisor = 12  # 9600 baud, as a PC's firmware leaves it
        self._transmit_pending = False
        self._overrun = False

    @property
    def backlog(self) -> int:
        """Return the number of characters that the guest has not read yet."""
        return len(self._received)

    def receive(self, data: bytes) -> None:
        """Queue *data* for the guest. May be called from any thread."""
        with self._lock:
            self._received.extend(data)
            self._update()

    def read(self, address: int, size: int) -> int:
        """Return a register."""
        register = address - self._base
        with self._lock:
            if self._lcr & _LCR_DLAB and register in (_RBR_THR, _IER):
                return self._divisor >> 8 * register & 0xFF
            if register == _RBR_THR:
                value = self._received.popleft() if self._received else 0
                self._update()
                return value
            if register == _IIR_FCR:
                return self._identify()
            if register == _LSR:
                return self._line_status()
            return {
                _IER: self._ier,
                _LCR: self._lcr,
                _MCR: self._mcr,
                _MSR: self._modem_status(),
                _SCR: self._scr,
            }[register]

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register."""
        register = address - self._base
        with self._lock:
            if self._lcr & _LCR_DLAB and register in (_RBR_THR, _IER):
                shift = 8 * register
                self._divisor = self._divisor & ~(0xFF << shift) | value << shift
            elif register == _RBR_THR:
                self._transmit(value)
            elif register == _IER:
                if value & _IER_TRANSMIT and not self._ier & _IER_TRANSMIT:
                    self._transmit_pending = True  # the holding register is empty now
                self._ier = value & 0x0F
            elif register == _IIR_FCR:
                self._fcr = value
                if value & _FCR_CLEAR_RECEIVE:
                    self._received.clear()
            elif register == _LCR:
                self._lcr = value
            elif register == _MCR:
                self._mcr = value & 0x1F
            elif register == _SCR:
                self._scr = value
            self._update()

    def _transmit(self, value: int) -> None:
        if self._mcr & _MCR_LOOP:
            if len(self._received) < (_FIFO_SIZE if self._fcr & _FCR_ENABLE else 1):
                self._received.append(value)
            else:
                self._overrun = True
        else:
            self._output(bytes((value,)))
        # The character is sent at once and the register is empty again: an edge, even if the line
        # was high already.
        self._transmit_pending = False
        self._update()
        self._transmit_pending = True

    def _pending(self) -> int:
        if self._ier & _IER_RECEIVE and self._received:
            return _IIR_RECEIVE
        if self._ier & _IER_TRANSMIT and self._transmit_pending:
            return _IIR_TRANSMIT
        return _IIR_NONE

    def _identify(self) -> int:
        pending = self._pending()
        if pending == _IIR_TRANSMIT:  # reading IIR acknowledges it
            self._transmit_pending = False
            self._update()
        return pending | (_IIR_FIFO if self._fcr & _FCR_ENABLE else 0)

    def _line_status(self) -> int:
        overrun, self._overrun = self._overrun, False  # reading LSR clears it
        return _LSR_EMPTY | (_LSR_DATA if self._received else 0) | (_LSR_OVERRUN if overrun else 0)

    def _modem_status(self) -> int:
        if not self._mcr & _MCR_LOOP:
            return _MSR_CTS_DSR_DCD
        # In loopback mode: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        mcr = self._mcr
        return (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4

    def _update(self) -> None:
        # On a PC, OUT2 connects the chip to the interrupt controller.
        level = self._pending() != _IIR_NONE and bool(self._mcr & _MCR_OUT2)
        if level != self._level:
            self._level = level
            self._set_irq(level)
