# SPDX-License-Identifier: Apache-2.0
"""
Mitigations
-----------

IA32_SPEC_CTRL and IA32_ARCH_CAPABILITIES: the vulnerabilities of a CPU, and its switches.

(Intel SDM volume 4, MSRs 48H and 10AH. The flags of a CPU model are those that such CPUs report.)
"""

from typing import Final, Literal

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access
from kvmsr.policy.registers import Field, Register
from kvmsr.policy.topology import Scope

__all__ = ("Mitigations",)

Flag = Literal[
    "rdcl_no", "ibrs_all", "rsba", "skip_l1dfl_vmentry", "ssb_no", "mds_no", "if_pschange_mc_no",
    "tsx_ctrl", "taa_no", "sbdr_ssdp_no", "fbsdp_no", "psdp_no", "fb_clear", "rrsba", "bhi_no",
    "pbrsb_no", "gds_no", "rfds_no",
]  # fmt: skip
_BITS: Final[dict[str, int]] = {
    "rdcl_no": 0, "ibrs_all": 1, "rsba": 2, "skip_l1dfl_vmentry": 3, "ssb_no": 4, "mds_no": 5,
    "if_pschange_mc_no": 6, "tsx_ctrl": 7, "taa_no": 8, "sbdr_ssdp_no": 13, "fbsdp_no": 14,
    "psdp_no": 15, "fb_clear": 17, "rrsba": 19, "bhi_no": 20, "pbrsb_no": 24, "gds_no": 26,
    "rfds_no": 27,
}  # fmt: skip
_CASCADE_LAKE: Final = ("rdcl_no", "ibrs_all", "skip_l1dfl_vmentry", "mds_no")
_ICE_LAKE: Final = (*_CASCADE_LAKE, "if_pschange_mc_no", "taa_no")
_MODELS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "skylake-server": (),
    "cascadelake-server": _CASCADE_LAKE,
    "icelake-server": _ICE_LAKE,
    "sapphire-rapids": (*_ICE_LAKE, "sbdr_ssdp_no", "fbsdp_no", "psdp_no"),
}


class Mitigations(RegisterModel):
    """
    What a CPU model reports about speculation.

    The guest believes it. Whether it is true of the CPU that the guest runs on is not checked.
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """*cpu* names a set of flags; *flags* are added to it."""

        cpu: Literal[
            "none", "skylake-server", "cascadelake-server", "icelake-server", "sapphire-rapids"
        ] = "none"
        flags: tuple[Flag, ...] = ()

    scope = Scope.THREAD

    control = Register(
        "IA32_SPEC_CTRL", others="fault", ibrs=Field(0), stibp=Field(1), ssbd=Field(2)
    )
    capabilities = Register("IA32_ARCH_CAPABILITIES", "ro")

    def read(self, register: Register, access: Access) -> int:
        """Return the flags, or the switches that are on."""
        if register is self.capabilities:
            flags = {*_MODELS[self.parameters.cpu], *self.parameters.flags}
            return sum(1 << _BITS[flag] for flag in flags)
        return super().read(register, access)
