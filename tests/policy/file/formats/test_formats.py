"""Other programs' files: what they say, what becomes of it, and the way back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import PolicyError, UsageError
from kvmsr.policy import Policy, Rule
from kvmsr.policy.actions import Host
from kvmsr.policy.file import parse_policy
from kvmsr.policy.file.formats import FORMATS, as_policy, export_policy, import_text
from kvmsr.policy.plan import compile_policy

MSR_SAFE = """\
# MSR        # Write Mask       # Comment
# 0x00000001 0x0000000000000000 # "commented out"
0x00000010 0x0000000000000000 # "IA32_TIME_STAMP_COUNTER"
0x00000610 0x00FFFFFF00FFFFFF # "MSR_PKG_POWER_LIMIT"
"""
FIRECRACKER = """{
  "cpuid_modifiers": [],
  "msr_modifiers": [
    {"addr": "0x10a", "bitmap": "0b1x_10"},
    {
      "addr": "0x199",
      "bitmap": "0b0000000000000000000000000000000000000000000000000001000000000000"
    }
  ]
}"""
CROSVM = "crosvm run --userspace-msr 0x1a2,type=r,action=pass,from=cpu0 \\\n" + (
    " --userspace-msr=0x1b0,type=rw,action=emu --cpus 2\n"
)
BOCHS = """\
# ADDRESS  TYPE   RESET_HI   RESET_LO    RSRVD_HI   RSRVD_LO   IGNRD_HI   IGNRD_LO
   0x017     0    00000000   00000000    00000000   00000000   00000000   00000000    # ID
   0x03a     0    00000001   00000005    ffffffff   fff00000   00000000   00000010
   0x175     1    00000000   00000000    00000000   00000000   00000000   00000000
"""
LOG = """\
[1.0] kvm [4321]: vcpu0, guest rIP: 0xffffffff81064d32 unhandled rdmsr: 0x1c9
Nov 20 10:00:00 host kernel: kvm: vcpu1, guest rIP: 0xfff ignored wrmsr: 0x199 data 0x1600
kvm_amd: Unhandled WRMSR(0xc0010200) = 0x530076
[2.0] vcpu0 disabled perfctr wrmsr: 0xc1 data 0xabcd
something else
qemu-1  [001] 1.2: kvm_msr: msr_read c0000080 = 0x500
qemu-1  [001] 1.2: kvm_msr: msr_write 140 = 0x1 (#GP)
[0.1] unchecked MSR access error: RDMSR from 0x852 at rIP: 0xffffffff (native_read_msr+0x4)
[0.2] unchecked MSR access error: WRMSR to 0x122 (tried to write 0x0000000000000003) at rIP: 0x1
[9.0] kvm [4321]: vcpu0 unhandled rdmsr: 0x1c9
"""
TEXTS = {
    "msr-safe": MSR_SAFE, "firecracker": FIRECRACKER, "crosvm": CROSVM, "bochs": BOCHS,
    "kernel-log": LOG,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_is_recognised_and_its_policy_loads_and_compiles(form):
    imported = import_text(TEXTS[form], "x")
    assert imported.format == form
    policy = parse_policy(as_policy(imported, "x"))
    assert [rule.msrs for rule in policy.rules] == [rule.msrs for rule in imported.rules]
    compile_policy(policy)


def test_a_guessed_0_comes_with_what_is_better():
    log = "unhandled rdmsr: 0x1a2\nunhandled rdmsr: 0x1a0\nunhandled rdmsr: 0x5000\n"
    imported = import_text(log, "x")
    thermal, misc, unknown = (each.hint for each in imported.statements)
    encode = "a value from: kvmsr encode"
    assert thermal == f'model = "thermal", or {encode} MSR_TEMPERATURE_TARGET'
    assert misc == f"{encode} IA32_MISC_ENABLE"
    assert unknown == ""
    text = as_policy(imported, "x")
    assert f"# 0x1a2 MSR_TEMPERATURE_TARGET: {thermal}\n# 0x1a0 IA32_MISC_ENABLE: {misc}" in (text)
    for form in ("firecracker", "bochs"):  # these say what the register holds
        assert not any(each.hint for each in import_text(TEXTS[form], "x").statements)


def said(form):
    return [
        (each.line, each.index, each.said, each.becomes, bool(each.lost))
        for each in import_text(TEXTS[form], "x").statements
    ]


def test_msr_safe():
    host = 'read { host = "same-cpu" }, write fault'
    assert said("msr-safe") == [
        (3, 0x10, "may be read", host, False),
        (4, 0x610, "may be read; bits 0xffffff00ffffff may be written", "shadow", True),
    ]
    rule = import_text(MSR_SAFE, "x").rules[1]
    assert rule.bits.rw == 0xFFFFFF00FFFFFF
    assert rule.bits.ro == 2**64 - 1 - rule.bits.rw


def test_firecracker():
    assert said("firecracker") == [
        (4, 0x10A, "initially holds 0xa", "read { value = 0xa }, write fault", True),
        (6, 0x199, "initially holds 0x1000", "shadow", False),
    ]


def test_crosvm():
    assert said("crosvm") == [
        (1, 0x1A2, "is passed to the host (r)", "read { host = 0 }, write fault", False),
        (2, 0x1B0, "is emulated (rw)", "shadow", True),
    ]


def test_bochs():
    assert said("bochs") == [
        (2, 0x17, "initially holds 0x0", "shadow", False),
        (3, 0x3A, "initially holds 0x100000005", "shadow", False),
        (4, 0x175, "initially holds 0x0, and a linear address", "shadow", True),
    ]
    rule = import_text(BOCHS, "x").rules[1]
    assert (rule.reset, rule.bits.fault, rule.bits.ro) == (0x1_0000_0005, 0xFFFFFFFF_FFF00000, 0x10)


def test_kernel_logs_of_all_times():
    ignored = "read { value = 0x0 }, write ignore"
    assert said("kernel-log") == [
        (1, 0x1C9, "unhandled read", ignored, False),
        (2, 0x199, "ignored write of 0x1600", "shadow", False),
        (3, 0xC0010200, "unhandled write of 0x530076", "shadow", False),
        (4, 0xC1, "disabled perfctr write of 0xabcd", "shadow", False),
        (6, 0xC0000080, "read of 0x500", "", True),
        (7, 0x140, "write of 0x1, which faulted", "shadow", False),
        (8, 0x852, "read faulted in a guest", "", True),  # x2APIC
        (9, 0x122, "write of 0x0000000000000003 faulted in a guest", "shadow", False),
        (10, 0x1C9, "unhandled read", "", False),
    ]


def test_what_is_lost_stands_in_the_policy():
    text = as_policy(import_text(FIRECRACKER, "x"), "x")
    assert "# line 4: initially holds 0xa: 61 bits are 0, and not left to KVM" in text


def test_the_first_word_on_an_msr_counts():
    first, second = import_text("0x10 0x0\n0x10 0x1\n", "x").statements
    assert first.rule is not None
    assert (second.rule, second.lost) == (None, "line 1 already has a rule")


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("msr-safe", "0x10\n", "f:1: '0x10': write 0xMSR 0xMASK # comment"),
        ("msr-safe", "0x10 0x0\n0x1 0x2 0x3\n", "f:2: "),
        ("bochs", "0x10 0 0 0 0 0 0\n", "f:1: '0x10 0 0 0 0 0 0': write an address, a type"),
        ("bochs", "0x10 7 0 0 0 0 0 0\n", "f:1: there is no type 7: write 0, 1 or 2"),
        (
            "crosvm",
            "--userspace-msr 0x1,type=x,action=emu",
            "f:1: type must be one of r, w, rw, wr, not 'x'",
        ),
        ("crosvm", "\n--userspace-msr 0x1,kind=r", "f:2: unknown key 'kind': there are type"),
        ("crosvm", "--userspace-msr 0x1,type=r", "f:1: 0x1,type=r needs type= and action="),
        ("crosvm", "--userspace-msr zz,type=r", "f:1: 'zz' is not an MSR"),
        ("firecracker", "{", "f:1: invalid JSON"),
        ("firecracker", "[]", "f:1: there is no list msr_modifiers"),
        ("firecracker", '{"msr_modifiers": [{"addr": 1}]}', "f:1: msr_modifiers[0].addr must be"),
        (
            "firecracker",
            '{"msr_modifiers": [\n{"addr": "0x1", "bitmap": "0b2"}]}',
            "f:2: msr_modifiers[0].bitmap must be",
        ),
        (
            "firecracker",
            '{"msr_modifiers": [{"addr": "0x1", "bitmap": "0b' + "0" * 65 + '"}]}',
            "f:1: msr_modifiers[0].bitmap has 65 bits",
        ),
        (None, "hello\n", "f: unknown format; there are firecracker"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_line(form, text, message):
    with pytest.raises(PolicyError) as raised:
        import_text(text, "f", form)
    assert str(raised.value).startswith(message)


def test_there_is_no_other_format():
    with pytest.raises(UsageError, match="there is no format 'xen'"):
        import_text("", "f", "xen")
    with pytest.raises(UsageError, match="cannot write policies as 'kernel-log'"):
        export_policy(Policy(), "kernel-log")


@given(st.sampled_from(list(FORMATS)), st.text(max_size=300))
def test_any_text_is_read_or_refused(form, text):
    for what in (text, TEXTS[form][: len(text)] + text):
        try:
            import_text(what, "f", form)
        except PolicyError:
            pass


# Round trips: what a format can say comes back as it was

INDICES = st.integers(0, 2**32 - 1).filter(lambda index: not 0x800 <= index <= 0x8FF)
WORDS = st.integers(0, 2**64 - 1)


def shadow(index, **more):
    return Rule(index, read="shadow", write="shadow", **more)


def masked(index, mask):
    return shadow(index, bits={"*": "rw"} if mask == 2**64 - 1 else bits_of(mask))


def bits_of(mask):
    spec = {str(bit): "rw" for bit in range(64) if mask >> bit & 1}
    return spec | {"*": "ro"}


RULES = {
    "msr-safe": st.one_of(
        INDICES.map(lambda i: Rule(i, read=Host(None), write="fault")),
        st.builds(masked, INDICES, st.integers(1, 2**64 - 1)),
    ),
    "firecracker": st.builds(lambda i, v: shadow(i, reset=v), INDICES, WORDS),
    "crosvm": st.one_of(
        INDICES.map(shadow),
        INDICES.map(lambda i: Rule(i, read=Host(0), write="fault")),
        INDICES.map(lambda i: Rule(i, read="fault", write="shadow")),
    ),
    "bochs": st.builds(lambda i, v: shadow(i, reset=v), INDICES, WORDS),
}


@given(st.data(), st.sampled_from(list(RULES)))
def test_what_a_format_can_say_comes_back(data, form):
    rules = data.draw(st.lists(RULES[form], max_size=6, unique_by=lambda rule: rule.msrs))
    if form == "firecracker":  # a read-only register is imported as a constant
        rules = [rule for rule in rules if rule.msrs[0][0] > 0x10000]
    text, left = export_policy(Policy(rules), form)
    assert left == []
    if rules:
        assert list(import_text(text, "x", form).rules) == rules


@pytest.mark.parametrize("form", RULES)
def test_what_a_format_cannot_say_is_left(form):
    rules = [
        Rule(1, read="stop"),
        Rule(2, read="shadow", write="shadow", when={"cpl": 0}),
        Rule("0x10000-0xffffffff", read="shadow", write="shadow"),  # nobody reads so long a file
    ]
    text, left = export_policy(Policy(rules), form)
    assert left == list(Policy(rules).rules)
    assert text in ("", '{\n  "msr_modifiers": []\n}\n')


def test_a_template_is_json():
    text, _ = export_policy(Policy([Rule(0x10A, read=5, write="fault")]), "firecracker")
    (modifier,) = json.loads(text)["msr_modifiers"]
    assert modifier == {"addr": "0x10a", "bitmap": "0b" + "0" * 61 + "101"}
