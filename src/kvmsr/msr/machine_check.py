# SPDX-License-Identifier: Apache-2.0
"""
Machine-check errors
--------------------

The error codes in the lower 16 bits of a bank's status, in words: those that Intel and AMD share,
and Intel's own. Sources: SDM volume 3, chapter "Interpreting Machine-Check Error Codes" (simple and
compound codes); APM volume 2, chapter 9 (error codes).
"""

from typing import Final

__all__ = ("error_code",)

_SIMPLE: Final = {
    0x0000: "no error code",
    0x0001: "unclassified",
    0x0002: "parity error in the microcode ROM",
    0x0003: "external error, signalled by BINIT#",
    0x0004: "functional redundancy check failed",
    0x0005: "internal parity error",
    0x0006: "the SMM handler ran code outside its memory",
    0x0400: "internal timer expired",
    0x0E0B: "generic I/O error",
}
_KIND: Final = ("instructions", "data", "", "")
_LEVEL: Final = ("level 0", "level 1", "level 2", "")
_REQUEST: Final = (
    "", "read", "write", "data read", "data write", "instruction fetch", "prefetch", "eviction",
    "snoop",
)  # fmt: skip
_MEMORY: Final = ("generic", "read", "write", "address or command", "scrubbing")
_PART: Final = ("as the source", "as the responder", "as an observer", "")
_SPACE: Final = ("memory", "", "I/O", "")


def error_code(code: int) -> str:
    """Return what a bank's error *code*, 16 bits, means; "" if it is none that is known."""
    if code in _SIMPLE:
        return _SIMPLE[code]
    code &= ~(1 << 12)  # Intel's filtering bit: says only that later errors were not logged
    for first, tell in ((0x800, _bus), (0x400, _internal), (0x280, _extended), (0x100, _cache)):
        if code >= first:
            return tell(code)
    if code >= 0x80:
        return _controller("memory controller", code)
    if code >= 0x10:
        return _joined("TLB", _LEVEL[code & 3], _KIND[code >> 2 & 3]) if code < 0x20 else ""
    return _joined(_hierarchy(code), _LEVEL[code & 3]) if code >= 0xC else ""


def _hierarchy(code: int) -> str:
    """Return what has the error: the generic level includes memory."""
    return "cache or memory" if code & 3 == 3 else "cache"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _request(code: int) -> str:
    number = code >> 4 & 15
    return _REQUEST[number] if number < len(_REQUEST) else ""


def _cache(code: int) -> str:
    if code >= 0x200:
        return ""
    return _joined(_hierarchy(code), _LEVEL[code & 3], _request(code), _KIND[code >> 2 & 3])


def _bus(code: int) -> str:
    if code >= 0x1000:
        return ""
    timeout = "timeout" if code & 0x100 else ""
    part, space = _PART[code >> 9 & 3], _SPACE[code >> 2 & 3]
    return _joined("bus or interconnect", _request(code), space, _LEVEL[code & 3], part, timeout)


def _internal(code: int) -> str:
    return "internal, unclassified"


def _extended(code: int) -> str:
    return _controller("memory as a cache", code) if code < 0x300 else ""


def _controller(what: str, code: int) -> str:
    action, channel = code >> 4 & 7, code & 15
    which = "channel unknown" if channel == 15 else f"channel {channel}"
    return _joined(what, _MEMORY[action] if action < len(_MEMORY) else "", which)
