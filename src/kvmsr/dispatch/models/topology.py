# SPDX-License-Identifier: Apache-2.0
"""
Topology
--------

The number of cores and threads in a package.
"""

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access
from kvmsr.policy.registers import Field, Register

__all__ = ("CoreThreadCount",)

_MOST = 0xFFFF


class CoreThreadCount(RegisterModel):
    """
    MSR_CORE_THREAD_COUNT: the number of enabled cores and threads in the *package*.

    They follow from the policy's ``[topology]`` and the number of vCPUs; a package that is not full
    has fewer. (Intel SDM volume 4, MSR 35H: bits 15:0 THREAD_COUNT, 31:16 CORE_COUNT.)
    """

    count = Register("MSR_CORE_THREAD_COUNT", "ro", threads=Field("0-15"), cores=Field("16-31"))

    def read(self, register: Register, access: Access) -> int:
        """Return the package's number of threads and cores."""
        site = self.site
        cores = {vcpu // site.topology.threads_per_core for vcpu in site.vcpus}
        return register.pack(threads=min(len(site.vcpus), _MOST), cores=min(len(cores), _MOST))
