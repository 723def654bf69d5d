# SPDX-License-Identifier: Apache-2.0
"""
Forms
-----

The formulas by which a field's number becomes an address, watts, degrees or words, and back. The
catalog's data names them. Sources: SDM volume 3, chapter 15 (RAPL, temperatures), 12.11 (MTRRs),
and volume 4 (interrupt response limits); AMD's PPR of families 17h and 19h,
Core::X86::Msr::PStateDef, and APM volume 2.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from kvmsr.errors import FieldError
from kvmsr.msr.context import Context
from kvmsr.msr.entry import Msr, MsrField
from kvmsr.msr.machine_check import error_code
from kvmsr.msr.units import Quantity, in_unit, sized, to_text

__all__ = ("FORMS", "Form", "Reading", "check_address", "form_of")

_TARGET: Final = "MSR_TEMPERATURE_TARGET"
_BELOW: Final = "°C below TjMax"


class Reading(NamedTuple):
    """
    What a field's number stands for.

    :ivar meaning: the number in other words, which encode takes for it; "" if there are none.
    :ivar quantity: the number with its unit; None if it is not a quantity.
    :ivar remark: what else is to say, such as the size of a range; "" for nothing.
    """

    meaning: str = ""
    quantity: Quantity | None = None
    remark: str = ""


class Form:
    """A plain number."""

    tells_zero = False
    """Whether 0 says as much as other numbers, so that it is not left out."""

    def read(self, number: int, field: MsrField, context: Context) -> Reading:
        """Return what *number* stands for."""
        return Reading()

    def write(self, text: str, field: MsrField, context: Context) -> tuple[int, str] | None:
        """
        Return the number that *text* stands for, and what is to be said about that.

        None means that the text is none of this form.

        :raises FieldError: if it is, and the field cannot have the number.
        """
        return None


class _Measure(Form):
    """A quantity: each number of the field stands for a value in the field's unit."""

    def __init__(
        self,
        value: Callable[[int, MsrField, Context], float],
        number: Callable[[float, MsrField, Context], float],
        *,
        tells_zero: bool = False,
    ) -> None:
        self._value, self._number, self.tells_zero = value, number, tells_zero

    def read(self, number: int, field: MsrField, context: Context) -> Reading:
        value = self._value(number, field, context)

        def is_exact(near: float) -> bool:
            fits = self._is_within(near, field, context)
            return fits and self._nearest(near, field, context) == number

        return Reading(to_text(value, field.unit, is_exact), Quantity(value, field.unit))

    def _ends(self, field: MsrField, context: Context) -> list[float]:
        """Return the lowest and the highest value."""
        most = field.mask >> field.shift
        return sorted(self._value(end, field, context) for end in (0, most))

    def _is_within(self, value: float, field: MsrField, context: Context) -> bool:
        low, high = self._ends(field, context)
        return low <= value <= high or _same(value, low) or _same(value, high)

    def _nearest(self, value: float, field: MsrField, context: Context) -> int:
        """Return the number whose value is nearest; the present one if several have that value."""
        own = field.of(context.value)
        if math.isclose(self._value(own, field, context), value, rel_tol=1e-15):
            return own
        return self._search(value, field, context)

    def _search(self, value: float, field: MsrField, context: Context) -> int:
        most = field.mask >> field.shift
        ideal = int(min(max(self._number(value, field, context), -1), most + 1))
        near = {number for number in range(ideal - 1, ideal + 2) if 0 <= number <= most}
        return min(near, key=lambda number: abs(self._value(number, field, context) - value))

    def write(self, text: str, field: MsrField, context: Context) -> tuple[int, str] | None:
        value = in_unit(text, field.unit)
        if value is None:
            return None
        name = f"{context.msr.name}.{field.name}"
        number = self._nearest(value, field, context)
        if not self._is_within(value, field, context):
            lowest, highest = (_rough(end, field.unit) for end in self._ends(field, context))
            raise FieldError(f"{name} cannot be {text}: it goes from {lowest} to {highest}")
        real = self._value(number, field, context)
        if _same(real, value):
            return number, ""
        return number, f"{name} is {_rough(real, field.unit)}, the nearest to {text}"


def _rough(value: float, unit: str) -> str:
    return to_text(value, unit, lambda near: _same(near, value))


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * max(abs(one), abs(other))


class _Window(_Measure):
    """A time window, whose numbers have an exponent: the nearest is looked for."""

    def __init__(self, value: Callable[[int, MsrField, Context], float]) -> None:
        super().__init__(value, lambda value, field, context: 0)

    def _search(self, value: float, field: MsrField, context: Context) -> int:
        numbers = range((field.mask >> field.low) + 1)
        return min(numbers, key=lambda number: abs(self._value(number, field, context) - value))


def _rapl_window(number: int, field: MsrField, context: Context) -> float:
    """Return 2**Y * (1 + Z/4) time units: Y is in the lower five bits, Z above."""
    return (1 << (number & 31)) * (1 + (number >> 5) / 4) * _unit(context, 16, 15)


def _hwp_window(number: int, field: MsrField, context: Context) -> float:
    """Return the lower seven bits times 10**n µs: n is in the three bits above."""
    return (number & 127) * float(10.0 ** ((number >> 7) - 6))


def _unit(context: Context, low: int, most: int) -> float:
    """Return one unit of a RAPL register, from the bits of the MSR with the units."""
    is_amd = context.msr.vendors == ("amd",)
    units = context.other("MSR_AMD_RAPL_POWER_UNIT" if is_amd else "MSR_RAPL_POWER_UNIT")
    assert units is not None
    return float(2.0 ** -(units >> low & most))


def _rapl(low: int, most: int) -> _Measure:
    """Return the form of a number of units, whose size is in bits of the MSR with the units."""
    return _Measure(
        lambda number, field, context: number * _unit(context, low, most),
        lambda value, field, context: value / _unit(context, low, most),
    )


def _log2(value: float) -> float:
    return math.log2(value) if value > 0 else -math.inf


class _BelowTjMax(Form):
    """Degrees below the temperature at which the CPU throttles."""

    tells_zero = True

    def read(self, number: int, field: MsrField, context: Context) -> Reading:
        maximum = _maximum(context)
        if maximum is None:
            return Reading(f"{number} {_BELOW}", Quantity(number, _BELOW))
        celsius = maximum - number
        remark = f"{number} below TjMax"
        return Reading(f"{celsius} °C", Quantity(celsius, "°C"), remark)

    def write(self, text: str, field: MsrField, context: Context) -> tuple[int, str] | None:
        below = in_unit(text, _BELOW)
        if below is None:
            celsius = in_unit(text, "°C")
            if celsius is None:
                return None
            maximum = _maximum(context)
            if maximum is None:
                raise FieldError(
                    f"{context.msr.name}.{field.name} has degrees below TjMax: give"
                    f" --with {_TARGET}=VALUE, or write '15 {_BELOW}'"
                )
            below = maximum - celsius
        most, number = field.mask >> field.low, round(below)
        if not 0 <= number <= most:
            raise FieldError(
                f"{context.msr.name}.{field.name} cannot be {text}: it goes from 0 to {most}"
                f" {_BELOW}"
            )
        if number == below:
            return number, ""
        return number, f"{context.msr.name}.{field.name} is in whole degrees: {number} {_BELOW}"


def _maximum(context: Context) -> int | None:
    target = context.other(_TARGET)
    return None if target is None else target >> 16 & 0xFF


class _Address(Form):
    """A physical address, whose lower bits are 0."""

    def write(self, text: str, field: MsrField, context: Context) -> tuple[int, str] | None:
        size = in_unit(text, "B")
        try:
            number = int(text, 0) if size is None else int(size)
        except ValueError:
            return None
        check_address(context.msr, field, number)
        doubt = self.doubt(number)
        return number, f"{context.msr.name}.{field.name} is {doubt}" if doubt else ""

    def doubt(self, number: int) -> str:
        """Return what is to be said about an address, or ""."""
        return ""


def check_address(msr: Msr, field: MsrField, number: int) -> None:
    """
    Check that a field can have a whole address.

    :raises FieldError: if it has bits below the field, or above it.
    """
    what = "is a mask" if field.form == "mask" else "is an address"
    name, size = f"{msr.name}.{field.name}", 1 << field.low
    if number >= 0 and number & (size - 1):
        raise FieldError(f"{name} {what} in units of {sized(size)}: {number:#x} has lower bits")
    if number & ~field.mask:
        raise FieldError(f"{name} {what} of {field.high + 1} bits: {number:#x} has more")


class _Linear(_Address):
    """A linear address, which must be canonical."""

    def read(self, number: int, field: MsrField, context: Context) -> Reading:
        return Reading(remark=self.doubt(number))

    def doubt(self, number: int) -> str:
        if _is_canonical(number, 48):
            return ""
        if _is_canonical(number, 57):
            return "canonical only with 5-level paging"
        return "not canonical"


def _is_canonical(number: int, bits: int) -> bool:
    upper = number >> bits - 1
    return upper in (0, (1 << 65 - bits) - 1)


class _Mask(_Address):
    """The bits of an address that must match for it to be in a range."""

    def read(self, number: int, field: MsrField, context: Context) -> Reading:
        size = number & -number
        if not number:
            return Reading(remark="every address matches")
        if (number + size) & (number + size - 1):
            return Reading(remark="not one range: the mask has gaps")
        return Reading(remark=f"size {sized(size)}")

    def write(self, text: str, field: MsrField, context: Context) -> tuple[int, str] | None:
        size = in_unit(text, "B")
        if size is None:
            return super().write(text, field, context)
        least, number = 1 << field.low, int(size)
        if number < least or number & (number - 1):
            raise FieldError(
                f"{context.msr.name}.{field.name} cannot be for {text}: the size of a range is a"
                f" power of two from {sized(least)} on"
            )
        note = (
            f"{context.msr.name}.{field.name} has address bits up to {field.high}: clear those that"
            " the CPU does not have"
        )
        return field.mask & ~(number - 1), note


class _Selector(Form):
    """A segment selector."""

    def read(self, number: int, field: MsrField, context: Context) -> Reading:
        if not number & ~7:
            return Reading(remark="null" if not number else "")
        table = "LDT" if number & 4 else "GDT"
        return Reading(remark=f"{table} entry {number >> 3}, RPL {number & 3}")


class _ErrorCode(Form):
    """The code of a machine-check error."""

    def read(self, number: int, field: MsrField, context: Context) -> Reading:
        return Reading(remark=error_code(number))


def _linear(step: int = 0) -> _Measure:
    """Return the form of a number of steps, *step* of them more than the field says."""
    return _Measure(
        lambda number, field, context: (number + step) * field.scale,
        lambda value, field, context: value / field.scale - step,
        tells_zero=bool(step),
    )


def _divisor(context: Context) -> int:
    return context.number("did") or 8


def _amd_current(field: MsrField, context: Context) -> float:
    return float(10.0 ** -context.number("idd_div"))


def _irtl(context: Context) -> float:
    return float(1e-9 * 32 ** context.number("unit"))


_NUMBER: Final = Form()
_LINEAR: Final = _linear()
FORMS: Final[dict[str, Form]] = {
    "": _NUMBER,
    "address": _Address(),
    "linear": _Linear(),
    "mask": _Mask(),
    "selector": _Selector(),
    "error-code": _ErrorCode(),
    "minus-1": _linear(1),
    "1/2^n": _Measure(
        lambda number, field, context: 2.0**-number,
        lambda value, field, context: -_log2(value),
        tells_zero=True,
    ),
    "2^n": _Measure(
        lambda number, field, context: field.scale * 2**number,
        lambda value, field, context: _log2(value / field.scale),
    ),
    "rapl-power": _rapl(0, 15),
    "rapl-energy": _rapl(8, 31),
    "rapl-time": _rapl(16, 15),
    "rapl-window": _Window(_rapl_window),
    "hwp-window": _Window(_hwp_window),
    "below-tjmax": _BelowTjMax(),
    "irtl": _Measure(
        lambda number, field, context: number * _irtl(context),
        lambda value, field, context: value / _irtl(context),
    ),
    "amd-frequency": _Measure(
        lambda number, field, context: 200.0 * number / _divisor(context),
        lambda value, field, context: value * _divisor(context) / 200,
    ),
    "amd-voltage": _Measure(
        lambda number, field, context: max(1.55 - 0.00625 * number, 0.0),
        lambda value, field, context: (1.55 - value) / 0.00625,
    ),
    "amd-voltage-svi3": _Measure(
        lambda number, field, context: 0.245 + 0.005 * number if number else 0.0,
        lambda value, field, context: (value - 0.245) / 0.005,
    ),
    "amd-current": _Measure(
        lambda number, field, context: number * _amd_current(field, context),
        lambda value, field, context: value / _amd_current(field, context),
    ),
}
"""The forms, by the names that the catalog's data use."""


def form_of(field: MsrField) -> Form:
    """Return the form of a field."""
    return FORMS[field.form] if field.form or not field.unit else _LINEAR
