"""What the processor can do, as Linux tells it."""

from polyjax.runtime import hardware


def test_bfloat16_units_are_known_by_name(processor):
    assert hardware.cpu_has_bfloat16() == (processor == "avx512_bf16")


def test_what_is_not_told_is_not_there(processor, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "absent")
    assert not hardware.cpu_has_bfloat16()
