"""Error codes of machine checks, as the manuals and logs from real machines have them."""

import pytest

from kvmsr.msr.machine_check import error_code


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0x0000, "no error code"),
        (0x0005, "internal parity error"),
        (0x0400, "internal timer expired"),
        (0x0402, "internal, unclassified"),
        (0x000E, "cache, level 2"),
        (0x000F, "cache or memory"),
        (0x0010, "TLB, level 0, instructions"),
        (0x0091, "memory controller, read, channel 1"),
        (0x00CF, "memory controller, scrubbing, channel unknown"),
        (0x0134, "cache, level 0, data read, data"),
        (0x0145, "cache, level 1, data write, data"),
        (0x0151, "cache, level 1, instruction fetch, instructions"),
        (0x011B, "cache or memory, read"),
        (0x110A, "cache, level 2"),
        (0x0282, "memory as a cache, generic, channel 2"),
        (0x0E0B, "generic I/O error"),
        (0x0863, "bus or interconnect, prefetch, memory, as the source"),
        (0x0B0B, "bus or interconnect, I/O, as the responder, timeout"),
        (0x0030, ""),
        (0x0008, ""),
        (0xFFFF, ""),
    ],
)
def test_error_codes_are_said_in_words(code, text):
    assert error_code(code) == text
