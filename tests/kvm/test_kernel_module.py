"""What /sys/module says about KVM."""

from kvmsr.kvm import kernel_module


def test_what_the_host_says_of_itself(tmp_path):
    assert kernel_module.ignore_msrs(tmp_path) is None
    assert kernel_module.vendor_module(tmp_path) == ""
    (tmp_path / "kvm_amd").mkdir()
    (tmp_path / "kvm/parameters").mkdir(parents=True)
    for text, on in (("Y\n", True), ("N\n", False), ("1", True)):
        (tmp_path / "kvm/parameters/ignore_msrs").write_text(text)
        assert kernel_module.ignore_msrs(tmp_path) is on
    assert kernel_module.vendor_module(tmp_path) == "kvm_amd"
