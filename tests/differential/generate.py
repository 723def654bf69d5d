# SPDX-License-Identifier: Apache-2.0
"""
Generated scenarios
-------------------

Hypothesis' strategies for scenarios, weighted towards what is interesting: few MSRs that matter,
values at the edges of what they take, filters that cover a handful of them.
"""

from typing import Any, Final

from hypothesis import strategies as st

from tests.differential.cpuid import FEATURES
from tests.differential.guest import FREE
from tests.differential.scenario import MODES, Scenario

__all__ = ("INDICES", "scenarios")

UNKNOWN_TO_ALL: Final = 0x474F4F00
_EFER, _APIC_BASE, _TSC = 0xC0000080, 0x1B, 0x10
_PV: Final = (0x11, 0x12, *range(0x4B564D00, 0x4B564D09))

INDICES: Final = (
    UNKNOWN_TO_ALL, _EFER, _APIC_BASE, _TSC, 0x3B, 0x6E0, 0x35, 0x3A, 0x17, 0x2A, 0x2C, 0xCD,
    0xCE, 0x140, 0x1A0, 0x8B, 0x34, 0x9E, 0xFE, 0x79, 0x10A, 0x10B, 0x11E, 0x122, 0x345, 0xDA0,
    0x48, 0x49, 0x174, 0x175, 0x176, 0x198, 0x199, 0x1C4, 0x1C5, 0x1D9, 0x1DB, 0x1DE, 0x1FC, 0,
    1, 0x200, 0x201, 0x20F, 0x210, 0x250, 0x258, 0x26F, 0x270, 0x277, 0x2FF, 0x300, 0x179, 0x17A,
    0x17B, 0x280, 0x29F, 0x2A0, 0x400, 0x401, 0x402, 0x47F, 0x480, 0x486, 0x4D0, 0x606, 0x610,
    0x611, 0x800, 0x802, 0x803, 0x808, 0x80B, 0x80D, 0x80E, 0x80F, 0x810, 0x828, 0x82F, 0x830,
    0x831, 0x832, 0x835, 0x837, 0x838, 0x83E, 0x83F, 0x840, 0x8FF, 0x7FF, 0x900, 0xC1, 0x186,
    0x187, 0x38D, 0x38F, 0x309, 0xE1, 0xE7, 0x1AD, 0x570, 0xD90, 0x40000000, 0x40000001,
    0x40000002, 0x40000020, 0x40000021, 0x40000073, 0x40000080, 0x400000B0, 0x400000F1,
    0x40000100, 0x40000105, 0x40000118, 0x40000200, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084,
    0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103, 0xC0000104, 0xC0010000, 0xC0010004,
    0xC0010010, 0xC0010015, 0xC001001B, 0xC001001F, 0xC0010020, 0xC0010055, 0xC0010058,
    0xC0010061, 0xC0010112, 0xC0010114, 0xC0010115, 0xC0010117, 0xC001011F, 0xC0010140,
    0xC0010141, 0xC0010200, 0xC0010299, 0xC0011020, 0xC0011021, 0xC0011022, 0xC0011029,
    0xC001102A, 0xC001102C, 0xFFFFFFFF, 0x4B564DFF, 0x4B564DF0,
    0x6A0, 0x6A2, 0x6A4, 0x6A7, 0x6A8, *_PV,
)  # fmt: skip
"""MSRs that are worth a try: known ones of each kind, their neighbours, and unknown ones."""

_ANY: Final = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x20, 0x80, 0xFF, 0x100, 0x400, 0x500, 0x501, 0x800, 0xC00,
    0xC06, 0xD00, 0xD01, 0x1000, 0x1800, 0x1801, 0x4000, 0x10000, 0x1FFFF, 0x40000, 0x1000000,
    0x1040000, 0x40000001, 0x80000000, 0xFFFFFFFF, 0x100000000, 0x100000001, 0x7FFFFFFFFFFF,
    0x800000000000, 0xFFFF800000000000, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF,
    0xFFFFFFFFFFFFFBFE, 0xFEE00800, 0xFEE00900, 0xFEE00C00, 0xFEE00D00, 0xFEE00400, 0xFED00900,
    0x0007040600070406, 0x0606060606060606, 0x0606060606060602,
)  # fmt: skip

# Where KVM writes by itself there must be room.
_PLACES: Final = (0, 1, FREE, FREE | 1, FREE | 2, FREE | 3, FREE | 9, FREE | 0x11, FREE | 5,
                  0xFFFFF001, 0xFFFFF000, 1 << 52 | 1, 0xEC, 0x100)  # fmt: skip
_VALUES: Final[dict[int, tuple[int, ...]]] = {
    **dict.fromkeys(_PV, _PLACES),
    _EFER: (0, 1, 2, 0x100, 0x400, 0x500, 0x501, 0x901, 0xD01, 0x1001, 0x2001, 0x4501, 0x5D01,
            0x8501, 1 << 21, 1 << 63),
    # Masked, so that no timer's interrupt comes at a time of its own.
    **dict.fromkeys((0x832, 0x835, 0x837), (0x10000, 0x10020, 0x30020, 0x50020, 0x1F7FF, 1 << 32)),
    # Not to oneself: an interrupt would come, but this one is fixed, to nobody.
    0x830: (0x0000000F000000FE, 0x400000FF00000020, 0x000C0000, 0x1000, 0x0000000F00000100),
    0x83F: (1 << 32, 0x100),
    _APIC_BASE: (0, 0x800, 0xFEE00800, 0xFEE00900, 0xFEE00C00, 0xFEE00D00, 0xFEE00400, 0xFEE00100,
                 0xFEE00A00, 1 << 40 | 0xFEE00900, 1 << 52, 0xFED00900),
}  # fmt: skip

indices = st.sampled_from(INDICES) | st.sampled_from(
    (UNKNOWN_TO_ALL, _EFER, 0xC0000082, 0x277, 0x174, 0xC0000102)
)


def values(index: int) -> Any:
    """Values for an MSR."""
    if index in _VALUES:
        return st.sampled_from(_VALUES[index])
    return st.sampled_from(_ANY)


def _with_value(index: int) -> Any:
    return st.tuples(st.just(index), values(index))


pairs = indices.flatmap(_with_value)
prefixes = st.sampled_from(((),) * 6 + ((0x66,), (0x2E,), (0xF3,), (0x66, 0x67)))
_ports = st.sampled_from((0x10, 0x60, 0x7E, 0x80, 0xF4))


_LEAVES: Final = (0, 1, 7, 0x80000001, 0x80000008, 0x40000001)


def _instructions(mode: str, *, irqchip: bool, on: str) -> Any:
    codes = prefixes
    if mode in ("long", "user"):
        codes |= st.sampled_from(((0x48,), (0x66, 0x48)))
    kinds = [
        st.tuples(st.just("rdmsr"), indices, codes),
        st.tuples(pairs, codes).map(lambda two: ("wrmsr", *two[0], two[1])),
        st.tuples(st.sampled_from(("out", "outl", "in")), _ports),
        st.just(("nop",)),
    ]
    if on != "kvm_pvm" or mode != "user":
        kinds.append(st.sampled_from((("sti",), ("cli",))))
    if on != "kvm_pvm":
        kinds.append(st.tuples(st.just("cpuid"), st.sampled_from(_LEAVES)))
    if not irqchip and mode != "user":
        kinds.append(st.just(("hlt",)))
    return st.one_of(kinds[0], kinds[1], *kinds)


# What user space does

_errors = st.sampled_from((0, 1, 1, 2, 0x80, 0xFF))
_masks = st.sampled_from((7, 7, 0, 1, 2, 3, 4, 5, 6, 8, 1 << 32, 0xFFFF_FFFF_FFFF_FFFF))
_bits = st.integers(0, 0xFF) | st.sampled_from((0, (1 << 64) - 1))
_ranges = st.tuples(
    st.sampled_from((3, 3, 1, 2, 0, 4)),
    st.sampled_from((1, 1, 2, 8, 64, 65, 0, 0x3000, 0x3001)),
    st.tuples(indices, st.sampled_from((0, 0, 0, -1, -2, 1))).map(
        lambda two: sum(two) & 0xFFFFFFFF
    ),
    _bits,
)
_features = st.lists(st.sampled_from(sorted(FEATURES)), max_size=8, unique=True).map(tuple)
_all_features = st.just(tuple(sorted(FEATURES)))
_vendors = st.sampled_from(("amd", "amd", "intel"))

_vm_moves = st.one_of(
    st.tuples(st.just("mask"), _masks, st.sampled_from((0, 0, 0, 1))),
    st.tuples(
        st.just("filter"),
        st.sampled_from((0, 0, 1, 1, 2)),
        st.lists(_ranges, max_size=3).map(tuple),
    ),
    st.tuples(st.just("platform_info"), st.sampled_from((0, 1))),
)

_gprs = st.sampled_from(("rax", "rbx", "rcx", "rdx", "r8"))
_answers = st.one_of(
    st.tuples(st.just("error"), _errors),
    st.tuples(st.just("data"), st.sampled_from(_ANY)),
    st.tuples(st.just("scribble"), st.sampled_from((0, 1, 0x1D, 0xFF))),
)
_rflags = st.sampled_from((2, 0, 0x8D7, 0x102, 0x202, 0x10002))


_EFERS: Final = (0, 1, 0x501, 0x901, 0xD01, 0x400)
_MCG_CAPS: Final = (0, 1, 0x20, 0x21, 0x10A, 0x120, 0x1000120, 0x2000120, 0x8000401)


def _state_moves(mode: str, *, irqchip: bool, on: str) -> Any:
    iopl = 0x3000 if mode == "user" else 0
    controls: tuple[int, ...] = (0, 1, 2, 0x40001, 0x80001)
    if on != "kvm_pvm" or mode in ("real", "protected"):
        controls += (3, 3)
    moves = [
        st.tuples(st.just("reg"), _gprs, st.sampled_from(_ANY)),
        st.tuples(st.just("reg"), st.just("rflags"), _rflags.map(lambda flags: flags | iopl)),
        st.tuples(st.just("skip"), st.sampled_from((0, 1, -1))),
        st.sampled_from((("sregs",), ("events",), ("flush",), ("flush",))),
        st.tuples(st.just("sreg"), st.just("efer"), st.sampled_from(_EFERS)),
        st.tuples(st.just("sreg"), st.just("cr8"), st.sampled_from((0, 5, 15, 16))),
        st.tuples(st.just("sreg"), st.just("apic_base"), st.sampled_from(_VALUES[_APIC_BASE])),
        st.tuples(st.just("exception"), st.sampled_from((6, 1, 3)), st.just(None)),
        st.tuples(st.just("exception"), st.sampled_from((13, 32)), st.sampled_from((0, 0x18))),
        st.tuples(st.just("interrupt"), st.sampled_from((0x20, 0x2F, 256))),
        st.tuples(st.just("set_msrs"), st.lists(pairs, max_size=3).map(tuple)),
        st.tuples(st.just("get_msrs"), st.lists(indices, max_size=3).map(tuple)),
        st.tuples(st.just("debug"), st.sampled_from(controls)),
        st.tuples(st.just("cpuid"), _vendors, _features),
        st.tuples(st.just("enforce_pv"), st.sampled_from((0, 1))),
        st.tuples(st.just("mce"), st.sampled_from(_MCG_CAPS)),
        st.tuples(st.just("valid_regs"), st.sampled_from((0, 1, 7, 8))),
        st.tuples(
            st.just("dirty_regs"), st.sampled_from((1, 3, 7, 4, 8)), _gprs, st.sampled_from(_ANY)
        ),
        st.tuples(st.just("mp_state"), st.sampled_from((0, 0, 5))),
    ]  # fmt: skip
    if not irqchip:
        moves.append(st.tuples(st.just("cr8"), st.sampled_from((0, 7, 15, 16))))
        if not on:  # where it opens depends on when real ones look
            moves.append(st.tuples(st.just("window"), st.sampled_from((0, 1))))
    return st.one_of(moves)


_DEBUGCTL: Final = 0x1D9
"""Without LBR virtualisation, as in QEMU, KVM drops every write to it."""
_ARCH_CAPABILITIES: Final = 0x10A
"""The value is the host's own."""
_PASSED_THROUGH: Final = frozenset((0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102))
"""KVM does not see their writes, and QEMU takes addresses that are not canonical."""
_SYSENTER_CS: Final = 0x174
"""QEMU keeps 16 bits of it."""
_MAY_BE_REFUSED: Final = ("cr8", "valid_regs", "dirty_regs")
"""Moves by which a KVM_RUN may fail, so that the next turn's moves are on top of this one's."""
_EVENTS: Final = frozenset(("exception", "interrupt", "debug"))


def _on_qemu(instruction: Any, *, paging: bool) -> Any:
    """Return an instruction, or another where QEMU's emulated CPU is not like hardware."""
    if instruction[:2] == ("wrmsr", _EFER) and not paging:  # with LME set it hangs
        return (*instruction[:2], instruction[2] & ~0x100, instruction[3])
    if instruction[:2] == ("wrmsr", _DEBUGCTL):
        return ("nop",)
    if instruction[0] == "wrmsr" and instruction[1] in _PASSED_THROUGH:
        return (
            instruction if instruction[2] < 1 << 47 or instruction[2] >> 47 == 0x1FFFF else ("nop",)
        )
    if instruction[:2] == ("wrmsr", _SYSENTER_CS):
        return (*instruction[:2], instruction[2] & 0xFFFF, instruction[3])
    return instruction


def _without(move: Any, strange: frozenset[int], unlike: frozenset[str]) -> Any:
    """Return a move less the MSRs and the features that the host cannot compare."""
    if move[0] == "cpuid":
        return (*move[:2], tuple(name for name in move[2] if name not in unlike))
    if move[0] == "set_msrs":
        return move[0], tuple(pair for pair in move[1] if pair[0] not in strange)
    if move[0] == "get_msrs":
        return move[0], tuple(index for index in move[1] if index not in strange)
    return move


def _possible_on_pvm(mode: str, move: Any, turn: Any, _first: bool) -> bool:
    """Return whether kvm_pvm does with a move what KVM does."""
    if move[0] == "interrupt":  # with an exception at the same time
        return not any(one[0] in ("exception", "debug", "nmi") for one in turn)
    # It loses the trap of an IRETQ, as long mode's handlers end in.
    if move[:2] == ("reg", "rflags") and move[2] & 0x100 and mode in ("long", "user"):
        return False
    # It executes the pending instruction again when EFER changes, be it an MSR access or IN.
    return move[:2] != ("sreg", "efer") and not (
        move[0] == "set_msrs" and any(pair[0] == _EFER for pair in move[1])
    )


def _possible_on_amd(mode: str, move: Any, _turn: Any, first: bool) -> bool:
    """Return whether soft and kvm_amd on QEMU's SVM can agree about a move."""
    if move[:2] == ("debug", 3):
        # Soft steps into the handlers of events; SVM's TF is pushed and cleared with the rest.
        return False
    if move[0] == "skip":  # QEMU tells no next RIP: KVM decodes what is at the RIP of then
        return False
    if move[0] == "exception" or move in (("debug", 0x40001), ("debug", 0x80001)):
        # QEMU tells no next RIP, so KVM's emulator skips the instruction that the guest came out
        # at, and before it does, it drops the exception that waits.
        return first
    if move[0] == "set_msrs" and any(pair[0] == _EFER for pair in move[1]):
        return False
    # The machine hangs with EFER.LME and without paging.
    return move[:2] != ("sreg", "efer") or mode in ("long", "user") or not move[2] & 0x100


_POSSIBLE: Final = {"kvm_pvm": _possible_on_pvm, "kvm_amd": _possible_on_amd}


@st.composite
def scenarios(
    draw: Any,
    on: str = "",
    strange: frozenset[int] = frozenset(),
    modes: tuple[str, ...] = MODES,
    unlike: frozenset[str] = frozenset(),
) -> Scenario:
    """
    Draw a scenario.

    :param on: the module of the KVM that it is for. With ``kvm_pvm`` there are no instructions
        that are not KVM's there: CPUID is the host's, CLI and STI at CPL 3 are the hardware's. A
        single step over IRETQ is lost. NMIs wait for the next exit if there is something else to
        inject.
    :param strange: MSRs that user space does not access.
    :param unlike: CPUID features that the guest does not have.
    """
    mode = draw(st.sampled_from(modes))
    irqchip = draw(st.booleans())
    cpuid = draw(st.none() | _all_features | _features)
    if cpuid:
        cpuid = tuple(name for name in cpuid if name not in unlike)
    usual = draw(st.booleans())  # most of what follows needs a mask
    early = (("mask", 7, 0),) if usual else ()
    early += tuple(draw(st.lists(_vm_moves, max_size=2)))
    program = draw(st.lists(_instructions(mode, irqchip=irqchip, on=on), min_size=1, max_size=5))
    moves = st.one_of(_answers, _answers, _state_moves(mode, irqchip=irqchip, on=on), _vm_moves)
    turns = draw(st.lists(st.lists(moves, max_size=3).map(tuple), max_size=5))
    if turns and draw(st.integers(0, 5)) == 0:
        alone = not any(
            one[0] in (*_EVENTS, *_MAY_BE_REFUSED) and one != ("debug", 3) for one in turns[0]
        )
        if on != "kvm_pvm" or alone:
            turns[0] = (*turns[0], ("nmi",))
    if on == "kvm_amd":
        paging = mode in ("long", "user")
        program = [_on_qemu(one, paging=paging) for one in program]
    if on == "kvm_pvm" and any(("debug", 3) in turn for turn in turns):
        # A HLT that is stepped over leaves a request behind (halt_request, which KVM's emulator
        # sets): it comes out as KVM_EXIT_HLT of the next instruction that is not stepped over.
        program = [("nop",) if one == ("hlt",) else one for one in program]
    if _ARCH_CAPABILITIES in strange:  # the guest reads what the host's CPU has
        unread = ("rdmsr", _ARCH_CAPABILITIES)
        program = [("nop",) if one[:2] == unread else one for one in program]
    turns = [tuple(_without(one, strange, unlike) for one in turn) for turn in turns]
    possible = _POSSIBLE.get(on, lambda mode, move, turn, first: True)
    turns = [
        tuple(one for one in turn if possible(mode, one, turn, not number))
        for number, turn in enumerate(turns)
    ]
    return Scenario(
        mode=mode, irqchip=irqchip, cpuid=cpuid, vendor=draw(_vendors) if cpuid else "amd",
        early=early, program=tuple(program), turns=tuple(turns),
    )  # fmt: skip
