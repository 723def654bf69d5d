"""Conditions: what they hold for, and what is wrong with them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import PolicyError
from kvmsr.policy import Reason, Rule, When, Where


@given(st.none() | st.integers(1, 6), st.none() | st.integers(1, 6), st.integers(1, 40))
def test_counting_is_what_crossing_off_a_row_of_matches_gives(after, every, most):
    if after is None and every is None:
        return
    when = When(after=after, every=every)
    held = [count for count in range(1, most + 1) if when.holds_for(count)]
    row = list(range(1, most + 1))
    if after is not None:
        row = row[after - 1 :]
        row = row[:: every or 1]
    else:
        row = row[every - 1 :: every]
    assert held == row


@given(
    st.none() | st.integers(0, 3),
    st.none() | st.tuples(st.integers(0, 255), st.none() | st.integers(0, 255)),
    st.none() | st.sets(st.sampled_from(list(Reason)), min_size=1),
    st.integers(0, 3),
    st.integers(0, 255),
    st.sampled_from(list(Reason)),
)
def test_everything_given_must_hold(vcpu, value_mask, reasons, on, written, reason):
    value, mask = value_mask or (None, None)
    if mask is not None:
        value &= mask
    if vcpu is None and value is None and reasons is None:
        return
    when = When(vcpu=vcpu, value=value, mask=mask, reason=reasons)
    expected = True
    if vcpu is not None and on != vcpu:
        expected = False
    if value is not None:
        for bit in range(64):
            counts = mask is None or mask >> bit & 1
            if counts and (written >> bit & 1) != (value >> bit & 1):
                expected = False
    if reasons is not None and reason not in reasons:
        expected = False
    assert (when.failing(on, written, reason) == "") is expected


def test_rip_is_a_range_with_both_ends():
    when = When(rip="0x1000-0x1fff")
    held = [rip for rip in (0xFFF, 0x1000, 0x1FFF, 0x2000) if when.holds_at(rip)]
    assert held == [0x1000, 0x1FFF]
    assert When(rip=(5, 5)) == When(rip="5") == When(rip="0x5-0x5")


def test_a_condition_is_written_as_it_is_read():
    when = When(
        vcpu=[1, 0], cpl=0, rip="0x10-0x20", value=2, mask=3, after=4, every=5, reason="filter"
    )
    assert When.parse(when.spec()) == when
    assert str(when) == (
        "vcpu = [0, 1], cpl = [0], rip = 0x10-0x20, value = 0x2, mask = 0x3, after = 4, every = 5,"
        " reason = [filter]"
    )


@pytest.mark.parametrize(
    ("wrong", "key", "piece"),
    [
        ({}, (), "is empty"),
        ({"vcpus": 1}, ("vcpus",), "did you mean 'vcpu'"),
        ({"vcpu": -1}, ("vcpu",), "0 or more"),
        ({"vcpu": []}, ("vcpu",), "empty"),
        ({"vcpu": "1"}, ("vcpu",), "got string"),
        ({"cpl": 4}, ("cpl",), "0 to 3"),
        ({"rip": "0x10..0x20"}, ("rip",), "neither an address range nor"),
        ({"rip": "0x20-0x10"}, ("rip",), "not a range of 64-bit addresses"),
        ({"value": 1 << 64}, ("value",), "write 0 to 2"),
        ({"mask": 1}, ("mask",), "needs a value"),
        ({"value": 2, "mask": 1}, ("value",), "outside the mask"),
        ({"after": 0}, ("after",), "out of range: write 1 to 2"),
        ({"every": 0}, ("every",), "out of range: write 1 to 2"),
        ({"reason": "unkown"}, ("reason",), "did you mean 'unknown'"),
        ({"reason": []}, ("reason",), "empty"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(wrong, key, piece):
    with pytest.raises(PolicyError, match=piece) as caught:
        When.parse(wrong)
    assert getattr(caught.value, "path", ()) == key


def test_reads_have_no_value_to_compare():
    with pytest.raises(PolicyError, match="reads have no value"):
        Rule(1, read=5, write="ignore", when={"value": 1})


def test_callers_are_addresses_or_names():
    known = {"init_amd": (0x1000, 0x1FFF)}
    when = When(caller="init_amd", symbols=known.__getitem__)
    assert str(when) == "caller = init_amd"
    assert when == When(caller="0x1000-0x1fff") == When.parse(when.spec())
    assert when.passes(Where(0x1800))
    assert when.passes(Where(5, 0, (0x3000, 0x1234)))
    assert when.passes(Where(5, 0, (0x2000,)))  # the call is the last instruction
    assert not when.passes(Where(5, 0, (0x1000,)))  # and here that of the function before
    assert not when.passes(Where(5))
    assert When(rip="init_amd", symbols=known.__getitem__).rip == (0x1000, 0x1FFF)
    with pytest.raises(PolicyError, match="'init_amd' is the name of a function, and there are no"):
        When(caller="init_amd")
