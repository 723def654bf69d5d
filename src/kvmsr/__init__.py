# SPDX-License-Identifier: Apache-2.0
"""kvmsr gives the owner of a virtual machine the say over every MSR that its guest touches."""
