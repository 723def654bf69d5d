# SPDX-License-Identifier: Apache-2.0
"""
Topology
--------

What a package says of its cores and threads.
"""

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access
from kvmsr.policy.registers import Field, Register

__all__ = ("CoreThreadCount",)

_MOST = 0xFFFF


class CoreThreadCount(RegisterModel):
    """
    MSR_CORE_THREAD_COUNT: how many cores and threads of the *package* are enabled.

    They are counted from the policy's ``[topology]`` and the vCPUs that there are; a package that
    is not full has fewer. (Intel SDM volume 4, MSR 35H: bits 15:0 THREAD_COUNT, 31:16 CORE_COUNT.)
    """

    count = Register("MSR_CORE_THREAD_COUNT", "ro", threads=Field("0-15"), cores=Field("16-31"))

    def read(self, register: Register, access: Access) -> int:
        """Return threads and cores of the package."""
        site = self.site
        cores = {vcpu // site.topology.threads_per_core for vcpu in site.vcpus}
        return register.pack(threads=min(len(site.vcpus), _MOST), cores=min(len(cores), _MOST))
