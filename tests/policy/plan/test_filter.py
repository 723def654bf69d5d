"""The filter compiler, against a model of KVM's decision and against brute force."""

from itertools import product

import pytest
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from kvmsr.policy import Op
from kvmsr.policy.plan.filter import Filter, Misfit, Run, Want, compile_filter

TOP = (1 << 32) - 1
ALLOW, DENY, ANY = Want.ALLOW, Want.DENY, Want.ANY


def kvm_allows(filter_: Filter, index: int, op: str) -> bool:
    """KVM's decision: arch/x86/kvm, kvm_msr_allowed()."""
    if 0x800 <= index <= 0x8FF:
        return True
    for one in filter_.ranges:
        end = (one.base + one.count) & 0xFFFFFFFF  # KVM adds in 32 bits
        if getattr(one, op) and one.base <= index < end:
            offset = index - one.base
            return bool(one.bitmap[offset // 8] & 1 << offset % 8)
    return not filter_.default_deny


def borders(filter_: Filter, runs: list[Run]) -> list[int]:
    """Return every MSR at which the filter's decision or what is wanted can change."""
    found = {0, 0x800, 0x900} | {run.first for run in runs}
    for one in filter_.ranges:
        found |= {one.base, one.base + one.count}
        bits = int.from_bytes(one.bitmap, "little")
        changes = bits ^ bits >> 1
        found |= {one.base + k + 1 for k in range(one.count) if changes >> k & 1}
    return sorted(index for index in found if index <= TOP)


def wanted(runs: list[Run], index: int) -> Run:
    return next(run for run in reversed(runs) if run.first <= index)


def violations(filter_: Filter, runs: list[Run]) -> list[tuple[int, str]]:
    """Return where the filter does not do what is wanted, over all 2**32 MSRs."""
    found = []
    for index in borders(filter_, runs):
        if 0x800 <= index <= 0x8FF:
            continue
        run = wanted(runs, index)
        for op, want in (("reads", run.read), ("writes", run.write)):
            if want is not ANY and kvm_allows(filter_, index, op) != (want is ALLOW):
                found.append((index, op))
    return found


def legal(filter_: Filter, max_ranges: int = 16, max_msrs: int = 0x3000) -> bool:
    """Tell whether KVM_X86_SET_MSR_FILTER takes it and means what it says."""
    return (
        len(filter_.ranges) <= max_ranges
        and not (filter_.default_deny and not filter_.ranges)
        and all(
            1 <= one.count <= max_msrs
            and (one.reads or one.writes)
            and one.base + one.count <= TOP
            and len(one.bitmap) == (one.count + 7) // 8
            for one in filter_.ranges
        )
    )


wants = st.sampled_from(Want)

# Where MSRs live, and the ends of everything.
LOW = (0, 0x10, 0x35, 0x277, 0x7FF, 0x800, 0x8FF, 0x900, 0x2FFF, 0x3000, 0x3001)
HIGH = (0x40000000, 0x4B564D00, 0xC0000080, 0xC0010000, 0xC0011029, 0xFFFFCFFF, TOP - 1, TOP)
landmarks = st.sampled_from(LOW + HIGH)
points = st.builds(
    lambda base, offset: min(max(base + offset, 0), TOP),
    landmarks,
    st.one_of(st.integers(-3, 3), st.integers(-0x6000, 0x6000)),
)


@st.composite
def many_runs(draw):
    starts = sorted({0, 0x800, 0x900, *draw(st.lists(points, max_size=24))})
    runs = []
    for start, end in zip(starts, [*starts[1:], TOP + 1], strict=True):
        x2apic = 0x800 <= start <= 0x8FF
        # Long runs are mostly let be: else nothing ever fits.
        choice = wants if end - start < 0x3000 else st.sampled_from([ALLOW, ANY, ANY, DENY])
        read, write = (ANY, ANY) if x2apic else (draw(choice), draw(choice))
        runs.append(Run(start, end - 1, read, write, draw(st.booleans()), draw(st.booleans())))
    return runs


@given(many_runs())
@settings(max_examples=400)
def test_kvm_decides_as_wanted_for_every_msr(runs):
    result = compile_filter(runs)
    event(type(result).__name__)
    if isinstance(result, Misfit):
        assert result.left
        return
    assert legal(result)
    assert violations(result, runs) == []
    for index in borders(result, runs):
        for op, name in ((Op.READ, "reads"), (Op.WRITE, "writes")):
            assert result.decide(op, index)[0] is not kvm_allows(result, index, name)


# Small cases: MSRs 0 to 5, ranges of at most 3.

SPAN, LENGTH = 6, 3
KINDS = ((True, True), (True, False), (False, True))
RANGES = [
    (base, base + count, reads, writes)
    for base in range(SPAN)
    for count in range(1, LENGTH + 1)
    for reads, writes in KINDS
]


def consistent(ranges, runs, default_deny: bool) -> bool:
    """Tell whether bits exist with which *ranges*, in this order, do what is wanted."""
    needed = {}
    for index, run in enumerate(runs[:SPAN]):
        for op, want in ((2, run.read), (3, run.write)):
            if want is ANY:
                continue
            number = next((n for n, r in enumerate(ranges) if r[op] and r[0] <= index < r[1]), None)
            if number is None:
                if (want is DENY) != default_deny:
                    return False
            elif needed.setdefault((number, index), want) is not want:
                return False
    return True


def fewest_by_brute_force(runs, limit: int) -> int | None:
    """Return the fewest ranges that do it, if that is below *limit*."""
    for count in range(limit):
        for default_deny in (False, True):
            if default_deny and count == 0:
                continue  # KVM refuses
            for ranges in product(RANGES, repeat=count):
                if consistent(ranges, runs, default_deny):
                    return count
    return None


small = st.lists(st.tuples(wants, wants), min_size=SPAN, max_size=SPAN).map(
    lambda pairs: [
        *(Run(index, index, read, write) for index, (read, write) in enumerate(pairs)),
        Run(SPAN, TOP, ANY, ANY),
    ]
)


def from_words(text: str) -> list[Run]:
    """Read wants: a letter for reads and one for writes of each MSR; a allow, d deny, - any."""
    letters = {"a": ALLOW, "d": DENY, "-": ANY}
    pairs = [(letters[word[0]], letters[word[1]]) for word in text.split()]
    runs = [Run(n, n, read, write) for n, (read, write) in enumerate(pairs)]
    return [*runs, Run(len(runs), TOP, ANY, ANY)]


@given(small)
@example(from_words("dd dd da da dd dd"))  # a read-only range over the seam of two shared ones
@example(from_words("da ad da ad da ad"))
@example(from_words("dd -- -- -- -- dd"))
@example(from_words("ad dd da -d d- dd"))
@settings(max_examples=250)
def test_no_fewer_ranges_do_it(runs):
    result = compile_filter(runs, max_msrs=LENGTH)
    assert isinstance(result, Filter)
    assert violations(result, runs) == []
    assert legal(result, max_msrs=LENGTH)
    count = len(result.ranges)
    event(f"{count} ranges")
    assume(count <= 3)
    assert fewest_by_brute_force(runs, count) is None


def test_an_overlap_saves_a_range():
    # Two shared ranges and, before both, a read-only one over their seam; without the overlap reads
    # and writes would each need one there. (All other MSRs are to be allowed: no default-deny.)
    wants = [*from_words("dd dd ad ad dd dd")[:-1], Run(6, TOP, ALLOW, ALLOW)]
    result = compile_filter(wants, max_msrs=3)
    assert violations(result, wants) == []
    assert len(result.ranges) == 3


def test_directions_that_agree_share_a_range():
    assert len(compile_filter(from_words("dd dd dd"), max_msrs=3).ranges) == 1


def test_default_deny_is_chosen_where_it_takes_fewer():
    runs = [
        Run(0, 0x10, DENY, DENY),
        Run(0x11, 0x11, ALLOW, ALLOW),
        Run(0x12, 0x7FF, DENY, DENY),
        Run(0x800, 0x8FF, ANY, ANY),
        Run(0x900, TOP, DENY, DENY),
    ]
    result = compile_filter(runs)
    assert result.default_deny
    assert len(result.ranges) == 1
    assert violations(result, runs) == []


def test_default_deny_without_exception_still_has_a_range():
    result = compile_filter([Run(0, TOP, DENY, DENY)])
    assert result.default_deny
    assert legal(result)
    assert not kvm_allows(result, 0x10, "reads")


def test_nothing_wanted_needs_nothing():
    assert compile_filter([Run(0, TOP, ANY, ALLOW)]) == Filter()


@pytest.mark.parametrize("want", [ALLOW, DENY])
def test_the_last_msr_follows_the_default(want):
    other = DENY if want is ALLOW else ALLOW
    runs = [Run(0, TOP - 1, ANY, ANY), Run(TOP, TOP, want, ANY)]
    result = compile_filter(runs)
    assert violations(result, runs) == []
    clash = [Run(0, 0, other, ANY), Run(1, TOP - 1, other, ANY), Run(TOP, TOP, want, ANY)]
    assert isinstance(compile_filter(clash), Misfit)


def test_a_misfit_lists_what_is_left():
    islands = [0x10000 * n for n in range(1, 21)]
    runs, at = [], 0
    for island in islands:
        runs += [Run(at, island - 1, ALLOW, ALLOW), Run(island, island, DENY, DENY)]
        at = island + 1
    runs.append(Run(at, TOP, ALLOW, ALLOW))
    result = compile_filter(runs)
    assert result == Misfit(tuple((island, island) for island in islands[16:]))
    assert len(compile_filter([*runs[:32], Run(runs[31].last + 1, TOP, ALLOW, ALLOW)]).ranges) == 16


def bit(filter_, index, op):
    return next(r for r in filter_.ranges if getattr(r, op) and r.base <= index).allows(index)


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("write", [True, False])
def test_idle_bits_lean_to_the_default_of_their_own_direction(read, write):
    ends = [Run(3, 0x7FF, ALLOW, ALLOW), Run(0x800, 0x8FF, ANY, ANY), Run(0x900, TOP, ALLOW, ALLOW)]
    for op, wants in (("reads", (DENY, ALLOW)), ("writes", (ALLOW, DENY))):
        runs = [Run(0, 0, *wants), Run(1, 1, ANY, ANY, read, write), Run(2, 2, *wants), *ends]
        result = compile_filter(runs)
        assert [(r.reads, r.writes) for r in result.ranges] == [(op == "reads", op == "writes")]
        assert bit(result, 1, op) is (read if op == "reads" else write)


@pytest.mark.parametrize("lean", [True, False])
def test_nor_does_a_direction_matter_that_a_range_before_decides(lean):
    # A read-only range over 1 to 3 stands before the shared one: its bit of 2 is for writes only.
    runs = from_words("dd da -- da dd")[:-1]
    runs[2] = Run(2, 2, ANY, ANY, not lean, lean)
    result = compile_filter([*runs, Run(5, TOP, ALLOW, ALLOW)])
    first, shared = result.ranges
    assert (first.reads, first.writes, shared.reads, shared.writes) == (True, False, True, True)
    assert (first.allows(2), shared.allows(2)) == (not lean, lean)
