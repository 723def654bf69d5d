"""What the kernel tells of its module."""

from kvmsr.kvm import module


def test_what_the_host_says_of_itself(tmp_path):
    assert module.ignore_msrs(tmp_path) is None
    assert module.vendor_module(tmp_path) == ""
    (tmp_path / "kvm_amd").mkdir()
    (tmp_path / "kvm/parameters").mkdir(parents=True)
    for text, on in (("Y\n", True), ("N\n", False), ("1", True)):
        (tmp_path / "kvm/parameters/ignore_msrs").write_text(text)
        assert module.ignore_msrs(tmp_path) is on
    assert module.vendor_module(tmp_path) == "kvm_amd"
