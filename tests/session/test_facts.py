"""What a session knows of a guest's CPU."""

from dataclasses import replace

from kvmsr.session.facts import VmFacts, likely_cpu, with_cpu


def test_the_cpu_is_the_vcpus_own_or_what_kvm_supports(kvm):
    supported = kvm.get_supported_cpuid()
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        assert with_cpu(VmFacts(), vcpu).cpu.signature == 0
        vcpu.set_cpuid2(
            supported.replace(lambda e: replace(e, eax=0x50654) if e.function == 1 else e)
        )
        cpu = with_cpu(VmFacts(), vcpu).cpu
        assert (cpu.model, cpu.tsc_khz) == ((6, 0x55), vcpu.get_tsc_khz())
        assert cpu.tsc_khz > 0
    assert likely_cpu(kvm) == replace(cpu, signature=supported.find(1).eax)
