"""The catalog says about MSRs what edk2's and ia32-doc's headers say."""

import os

import pytest

from kvmsr.msr import MsrField
from tests.msr.agreement.compare import Difference, compare_fields
from tests.msr.agreement.headers import Range, read_edk2, read_ia32_doc
from tests.msr.agreement.held import read_held
from tests.msr.agreement.report import report, table

WHAT = {"KVMSR_EDK2": "a source tree of edk2", "KVMSR_IA32_DOC": "a source tree of ia32-doc"}


@pytest.mark.parametrize("variable", WHAT)
def test_it_agrees_but_for_what_has_a_reason(variable):
    if variable not in os.environ:
        pytest.skip(f"needs {variable}, {WHAT[variable]}")
    done = report(variable)
    print(table(done))
    assert done.agreed() >= 0.95
    assert done.open == []
    assert done.unused == []


EDK2 = """
/**
  Package. Something (R/W).

  @param  EAX  Described by the type MSR_NEW_LAKE_X_REGISTER.
  @note MSR_NEW_LAKE_X is defined as MSR_X in SDM.
**/
#define MSR_NEW_LAKE_X  0x00000123

typedef union {
  struct {
    UINT32    Low       : 4;
    UINT32    Reserved1 : 8;
    UINT32    Base      : 20;
    UINT32    BaseHi    : 20;
    UINT32    Reserved2 : 12;
  } Bits;
  UINT64    Uint64;
} MSR_NEW_LAKE_X_REGISTER;
"""


def test_edk2_is_read(tmp_path):
    folder = tmp_path / "MdePkg/Include/Register/Intel"
    (folder / "Msr").mkdir(parents=True)
    (folder / "ArchitecturalMsr.h").write_text("")
    model = "(DisplayFamily == 0x06 && (DisplayModel == 0x4E || DisplayModel == 0x5E))\n"
    other = "\n/**\n  Y (RO)\n**/\n#define MSR_NEW_LAKE_Y  0x124\n"
    (folder / "Msr/NewLakeMsr.h").write_text(model + EDK2 + other)
    _, header = read_edk2(tmp_path)
    assert (header.name, header.family, header.models) == ("NewLakeMsr", 6, (0x4E, 0x5E))
    first, second = header.claims
    assert (first.index, first.scope, first.access) == (0x123, "package", "rw")
    assert first.fields == [Range("Low", 0, 3), Range("Base", 12, 51)]
    assert {"MSR_NEW_LAKE_X", "MSR_X"} == set(first.names)
    assert (second.access, second.fields) == ("ro", [])


IA32_DOC = """
/**
 * @defgroup MODEL_SPECIFIC_REGISTERS
 * @{
 */
/** One of them. <b>(RO)</b> */
#define IA32_ONE  0x00000123
typedef union
{
  struct
  {
    UINT64 Reserved1 : 8;
    UINT64 Flag      : 1;
#define IA32_ONE_FLAG_FLAG  0x00000100
  };
} IA32_ONE_REGISTER;
/**
 * @defgroup IA32_BANK
 * @{
 */
typedef union
{
  struct
  {
    UINT64 Type : 8;
  };
} IA32_BANK_REGISTER;
#define IA32_BANK0  0x00000200
#define IA32_BANK1  0x00000202
/**
 * @}
 */
/**
 * @}
 */
#define IA32_NO_MSR  0x00000300
"""


def test_ia32_doc_is_read(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/ia32.h").write_text(IA32_DOC)
    (header,) = read_ia32_doc(tmp_path)
    assert [claim.names[0] for claim in header.claims] == ["IA32_ONE", "IA32_BANK0", "IA32_BANK1"]
    assert [claim.access for claim in header.claims] == ["ro", "", ""]
    flag, bank = [Range("Flag", 8, 8)], [Range("Type", 0, 7)]
    assert [claim.fields for claim in header.claims] == [flag, bank, bank]


@pytest.mark.parametrize(
    ("low", "high", "result"),
    [
        (0, 7, "identical"),
        (0, 3, "granularity"),
        (0, 15, "granularity"),
        (4, 11, "different"),
        (20, 31, "unknown"),
    ],
)
def test_fields_are_compared(low, high, result):
    ours = [MsrField("a", 0, 7), MsrField("b", 8, 15)]
    ((found, *_),) = compare_fields([Range("x", low, high)], ours)
    assert found == result


def test_a_reason_covers_what_it_names():
    row = next(row for row in read_held() if row.msr == "IA32_BIOS_SIGN_ID")
    assert row.covers(Difference("ia32.h", "IA32_BIOS_SIGN_ID", "access", "rw", "ro"))
    assert not row.covers(Difference("ia32.h", "IA32_BIOS_SIGN_ID", "access", "ro", "rw"))
