# SPDX-License-Identifier: Apache-2.0
"""
Register models
---------------

Behaviour behind one or more MSRs. A model is a class that declares its registers and parameters,
and overrides reads and writes that do more than keep a value::

    class Fan(RegisterModel):
        \"\"\"A fan that turns as fast as the policy says.\"\"\"

        class Parameters(RegisterModel.Parameters):
            rpm: Annotated[int, Meta(ge=0, le=9000)] = 1200

        speed = Register(0x1234, "ro", rpm=Field("0-15"))

        def read(self, register: Register, access: Access) -> int:
            return register.pack(rpm=self.parameters.rpm)

A policy uses it as ``{ model = "module:Fan", rpm = 900 }``. The models that come with kvmsr have
short names; :data:`kvmsr.policy.register_models.BUILT_IN` lists them.
"""

from msgspec import Meta

from kvmsr.dispatch.models.base import Cpu, RegisterModel, Site
from kvmsr.dispatch.models.instances import Instances, Kept
from kvmsr.policy.registers import Field, Register
from kvmsr.policy.topology import Scope, Topology

__all__ = (
    "Cpu",
    "Field",
    "Instances",
    "Kept",
    "Meta",
    "Register",
    "RegisterModel",
    "Scope",
    "Site",
    "Topology",
)
