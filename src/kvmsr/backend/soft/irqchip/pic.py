# SPDX-License-Identifier: Apache-2.0
"""
8259
----

The two interrupt controllers of a PC, the slave on the master's IRQ 2, as KVM models them.

KVM's chip is simpler than Intel's, and a guest can see where: an edge stays latched when the line
falls again, special mask mode is stored and has no effect, ICW1 keeps most in-service bits, a poll
returns the IRQ without the valid bit, and single and level-sensitive mode (ICW1) do not exist.
Sources: Intel 8259A datasheet; Linux arch/x86/kvm/i8259.c.
"""

from collections.abc import Callable
from typing import Final

from kvmsr.abi.vm import PicState

__all__ = ("Pic",)

_MASTER, _SLAVE = 0, 1
_CASCADE: Final = 2
_SPURIOUS: Final = 7
_NO_RANK: Final = 8
# The IRQs that can be level-triggered: not the timer, keyboard, cascade, clock and coprocessor.
_ELCR_MASKS: Final = (0xF8, 0xDE)
_COMMAND: Final = {0x20: _MASTER, 0xA0: _SLAVE}
_DATA: Final = {0x21: _MASTER, 0xA1: _SLAVE}
_ELCR: Final = {0x4D0: _MASTER, 0x4D1: _SLAVE}

# PicState.init_state: what the next byte at the data port is.
_OCW1, _ICW2, _ICW3, _ICW4 = range(4)


def _rank(chip: PicState, lines: int) -> int:
    """Return how far down the priorities the first of *lines* (a bit mask) is; 8 without any."""
    top = chip.priority_add & 7
    ordered = (lines >> top | lines << (8 - top)) & 0xFF
    return (ordered & -ordered).bit_length() - 1 if ordered else _NO_RANK


def _set_line(chip: PicState, irq: int, level: bool) -> int:
    """Latch a line's level or edge. Return -1 if it is masked, 0 if it was pending, else 1."""
    bit = 1 << irq
    latched = level and (chip.elcr & bit or not chip.last_irr & bit)
    coalesced = latched and chip.irr & bit
    if latched:
        chip.irr |= bit
    elif chip.elcr & bit:
        chip.irr &= ~bit
    chip.last_irr = chip.last_irr | bit if level else chip.last_irr & ~bit
    if chip.imr & bit:
        return -1
    return 0 if coalesced else 1


class Pic:
    """
    The 8259 pair. IRQs are numbered 0 to 15, chips 0 (master) and 1 (slave).

    :ivar on_change: called when INTR rises.
    :ivar on_ack: called with an IRQ that is no longer in service (KVM's IRQ ack notifiers).
    :ivar on_mask: called with an IRQ and whether it is now masked (KVM's mask notifiers).
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] | None = None
        self.on_ack: Callable[[int], None] | None = None
        self.on_mask: Callable[[int, bool], None] | None = None
        self.reset()

    def reset(self) -> None:
        """Return to the state of KVM_CREATE_IRQCHIP."""
        self._chips = [PicState(elcr_mask=mask) for mask in _ELCR_MASKS]
        self._output = False

    @property
    def output(self) -> bool:
        """Whether the INTR line is up."""
        return self._output

    # Lines

    def set_line(self, irq: int, level: bool) -> int:
        """Set the line of *irq*. Return -1 if it is masked, 0 if it was pending, else 1."""
        status = _set_line(self._chips[irq >> 3], irq & 7, level)
        self._update()
        return status

    def acknowledge(self) -> int:
        """Acknowledge the interrupt that INTR stands for; return its vector, spurious ones too."""
        self._output = False
        number, irq = _MASTER, self._accept(_MASTER)
        if irq == _CASCADE:
            number, irq = _SLAVE, self._accept(_SLAVE)
        vector = self._chips[number].irq_base + (_SPURIOUS if irq is None else irq)
        self._update()
        return vector & 0xFF

    def _requested(self, number: int) -> int | None:
        """Return the chip's IRQ that is pending, unmasked and above all in service, or None."""
        chip = self._chips[number]
        rank = _rank(chip, chip.irr & ~chip.imr)
        in_service = chip.isr
        if chip.special_fully_nested_mode and number == _MASTER:
            in_service &= ~(1 << _CASCADE)
        return rank + chip.priority_add & 7 if rank < _rank(chip, in_service) else None

    def _update(self) -> None:
        """Find INTR anew; to be called after each change of what decides about it."""
        if self._requested(_SLAVE) is not None:
            # A pulse, for another IRQ of the slave must be an edge too.
            _set_line(self._chips[_MASTER], _CASCADE, True)
            _set_line(self._chips[_MASTER], _CASCADE, False)
        rises = not self._output
        self._output = self._requested(_MASTER) is not None
        if self._output and rises and self.on_change is not None:
            self.on_change()

    def _accept(self, number: int) -> int | None:
        """Move the chip's request into service and return it; None if it is gone."""
        irq = self._requested(number)
        if irq is None:
            return None
        chip = self._chips[number]
        chip.isr |= 1 << irq
        if not chip.elcr >> irq & 1:
            chip.irr &= ~(1 << irq)
        if chip.auto_eoi:
            if chip.rotate_on_auto_eoi:
                chip.priority_add = irq + 1 & 7
            self._end(number, irq)
        return irq

    def _end(self, number: int, irq: int) -> None:
        """End the service of the chip's *irq*."""
        self._chips[number].isr &= ~(1 << irq)
        if self.on_ack is not None:
            self.on_ack(number * 8 + irq)

    # Ports

    def port_read(self, port: int, size: int) -> int:
        """Read from a port of the chips; 0 for a *size* other than 1 byte."""
        if size != 1:
            return 0
        if port in _ELCR:
            return self._chips[_ELCR[port]].elcr
        number = _COMMAND[port] if port in _COMMAND else _DATA[port]
        chip = self._chips[number]
        if chip.poll:
            chip.poll = 0
            return self._poll(number)
        if port in _DATA:
            return chip.imr
        return chip.isr if chip.read_reg_select else chip.irr

    def port_write(self, port: int, size: int, value: int) -> None:
        """Write to a port of the chips; ignored for a *size* other than 1 byte."""
        if size != 1:
            return
        if port in _ELCR:
            chip = self._chips[_ELCR[port]]
            chip.elcr = value & chip.elcr_mask
        elif port in _DATA:
            self._write_data(_DATA[port], value)
        elif value & 0x10:
            self._initialize(_COMMAND[port], value)
        elif value & 0x08:
            self._write_ocw3(self._chips[_COMMAND[port]], value)
        else:
            self._write_ocw2(_COMMAND[port], value)

    def _poll(self, number: int) -> int:
        """Take the chip's request without INTR, and end it at once; 7 without a request."""
        irq = self._requested(number)
        if irq is not None:
            if number == _SLAVE:
                self._chips[_MASTER].isr &= ~(1 << _CASCADE)
                self._chips[_MASTER].irr &= ~(1 << _CASCADE)
            self._chips[number].irr &= ~(1 << irq)
            self._end(number, irq)
        # The master's cascade waits for the poll of the slave: INTR is not looked at in between.
        if number == _SLAVE or irq != _CASCADE:
            self._update()
        return _SPURIOUS if irq is None else irq

    def _initialize(self, number: int, icw1: int) -> None:
        """Begin the initialization sequence."""
        chip = self._chips[number]
        dropped = chip.irr & ~chip.elcr
        chip.last_irr = 0
        chip.irr &= chip.elcr
        chip.imr = 0
        chip.priority_add = 0
        chip.special_mask = 0
        chip.read_reg_select = 0
        chip.init4 = icw1 & 1
        if not chip.init4:
            chip.special_fully_nested_mode = 0
            chip.auto_eoi = 0
        chip.init_state = _ICW2
        # Whoever waits for the end of an interrupt must not wait for one that is lost here.
        for irq in range(8):
            if dropped >> irq & 1:
                self._end(number, irq)

    def _write_data(self, number: int, value: int) -> None:
        """Take OCW1, or the next of ICW2 to ICW4."""
        chip = self._chips[number]
        if chip.init_state == _OCW1:
            self._set_mask(number, value)
        elif chip.init_state == _ICW2:
            chip.irq_base = value & 0xF8
            chip.init_state = _ICW3
        elif chip.init_state == _ICW3:
            chip.init_state = _ICW4 if chip.init4 else _OCW1
        elif chip.init_state == _ICW4:
            chip.special_fully_nested_mode = value >> 4 & 1
            chip.auto_eoi = value >> 1 & 1
            chip.init_state = _OCW1

    def _set_mask(self, number: int, mask: int) -> None:
        """Take OCW1."""
        chip = self._chips[number]
        changed = chip.imr ^ mask
        chip.imr = mask
        if self.on_mask is not None:
            for irq in range(8):
                if changed >> irq & 1:
                    self.on_mask(number * 8 + irq, bool(mask >> irq & 1))
        self._update()

    def _write_ocw2(self, number: int, value: int) -> None:
        """End an interrupt, rotate the priorities, or both."""
        chip = self._chips[number]
        rotate, specific, end = value >> 7, value >> 6 & 1, value >> 5 & 1
        if not specific and not end:
            chip.rotate_on_auto_eoi = rotate
            return
        irq = value & 7
        if not specific:
            rank = _rank(chip, chip.isr)
            if rank == _NO_RANK:
                return
            irq = rank + chip.priority_add & 7
        if rotate:
            chip.priority_add = irq + 1 & 7
        if end:
            self._end(number, irq)
        self._update()

    def _write_ocw3(self, chip: PicState, value: int) -> None:
        """Choose what the next reads return, and special mask mode."""
        if value & 0x04:
            chip.poll = 1
        if value & 0x02:
            chip.read_reg_select = value & 1
        if value & 0x40:
            chip.special_mask = value >> 5 & 1

    # State

    def get_state(self, chip: int) -> PicState:
        """Return what KVM_GET_IRQCHIP gives of *chip*."""
        found: PicState = self._chips[chip].copy()
        return found

    def set_state(self, chip: int, state: PicState) -> None:
        """Take what KVM_SET_IRQCHIP gives for *chip*."""
        self._chips[chip] = state.copy()
        self._update()
