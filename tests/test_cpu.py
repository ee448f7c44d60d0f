"""/proc/cpuinfo of several machines, and a machine without it."""

from edgecnn.cpu import read_cpu

X86 = """processor\t: 0
model name\t: AMD EPYC 7B13
flags\t\t: fpu sse2 avx2

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd atomics\nCPU part\t: 0xd08\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


def test_the_first_processor_counts(tmp_path):
    (tmp_path / "proc").mkdir()
    for text, expected in ((X86, ("AMD EPYC 7B13", {"fpu", "sse2", "avx2"})), (ARM, ("", {"fp", "asimd", "atomics"}))):
        (tmp_path / "proc" / "cpuinfo").write_text(text)
        assert read_cpu(tmp_path) == expected


def test_a_system_without_the_file(tmp_path):
    assert read_cpu(tmp_path) == ("", frozenset())


def test_no_other_module_reads_the_file(root):
    readers = [str(path) for path in (root / "edgecnn").rglob("*.py") if "/cpuinfo" in path.read_text(encoding="utf-8")]
    assert readers == [str(root / "edgecnn" / "cpu.py")]
