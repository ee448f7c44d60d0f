import ctypes.util
import re
import subprocess
from pathlib import Path

import pytest

from edgecnn.device.cameras import v4l2_abi as abi

HEADER = Path("/usr/include/linux/videodev2.h")

STRUCTS = {
    "v4l2_capability": (abi.CAPABILITY, {"capabilities": 84, "device_caps": 88}),
    "v4l2_fmtdesc": (abi.FMTDESC, {"description": 12, "pixelformat": 44}),
    "v4l2_format": (
        abi.FORMAT,
        {"fmt.pix.width": 8, "fmt.pix.bytesperline": 24, "fmt.pix.ycbcr_enc": 44, "fmt.pix.quantization": 48},
    ),
    "v4l2_frmsizeenum": (abi.FRMSIZE, {"type": 8, "discrete.width": 12, "stepwise.max_height": 28}),
    "v4l2_frmivalenum": (abi.FRMIVAL, {"type": 16, "discrete.numerator": 20, "stepwise.max.denominator": 32}),
    "v4l2_streamparm": (abi.STREAMPARM, {"parm.capture.timeperframe.numerator": 12}),
    "v4l2_requestbuffers": (abi.REQUESTBUFFERS, {"memory": 8}),
    "v4l2_buffer": (
        abi.BUFFER,
        {
            "flags": 12,
            "timestamp.tv_sec": 24,
            "timestamp.tv_usec": 32,
            "sequence": 56,
            "memory": 60,
            "m.offset": 64,
            "length": 72,
        },
    ),
    "v4l2_input": (abi.INPUT, {"status": 56}),
}
"""Each structure with its layout and the byte offsets of the fields used, from linux/videodev2.h of kernel 6.12 on x86-64."""

SIZES = {
    "v4l2_capability": 104, "v4l2_fmtdesc": 64, "v4l2_format": 208, "v4l2_frmsizeenum": 44, "v4l2_frmivalenum": 52,
    "v4l2_streamparm": 204, "v4l2_requestbuffers": 20, "v4l2_buffer": 88, "v4l2_input": 80,
}  # fmt: skip

ALIASES = {"YUYV": "PIX_FMT_YUYV", "RGB3": "PIX_FMT_RGB24", "BGR3": "PIX_FMT_BGR24", "MJPG": "PIX_FMT_MJPEG", "JPEG": "PIX_FMT_JPEG",
           "DISCRETE": "FRMSIZE_TYPE_DISCRETE", "PRIV_MAGIC": "PIX_FMT_PRIV_MAGIC"}  # fmt: skip


def numbers():
    """Return the constants under the kernel's names."""
    found = {name: value for name, value in vars(abi).items() if name.isupper() and isinstance(value, int)}
    return {
        name if name.startswith("VIDIOC") else f"V4L2_{ALIASES.get(name, name)}": value for name, value in found.items()
    }


def test_layouts_have_the_recorded_sizes_and_requests_name_them():
    for name, (layout, _) in STRUCTS.items():
        assert layout.size == SIZES[name], name
    structs = {"QUERYCAP": "v4l2_capability", "ENUM_FMT": "v4l2_fmtdesc", "G_FMT": "v4l2_format", "S_FMT": "v4l2_format",
               "REQBUFS": "v4l2_requestbuffers", "QUERYBUF": "v4l2_buffer", "QBUF": "v4l2_buffer", "DQBUF": "v4l2_buffer",
               "G_PARM": "v4l2_streamparm", "S_PARM": "v4l2_streamparm", "ENUMINPUT": "v4l2_input",
               "ENUM_FRAMESIZES": "v4l2_frmsizeenum", "ENUM_FRAMEINTERVALS": "v4l2_frmivalenum"}  # fmt: skip
    for request, struct in structs.items():
        number = getattr(abi, f"VIDIOC_{request}")
        assert (number >> 16) & 0x3FFF == SIZES[struct], request
        assert (number >> 8) & 0xFF == ord("V")


def test_layouts_put_each_field_where_it_was_recorded():
    """Locates a field by unpacking a structure with non-zero bytes only there."""
    for name, (layout, fields) in STRUCTS.items():
        for field, offset in fields.items():
            data = bytearray(layout.size)
            data[offset] = 1
            found = [value for value in layout.unpack(data) if value and value != b"\0" * len(str(value))]
            assert any(value == 1 or (isinstance(value, bytes) and value[:1] == b"\1") for value in found), (
                name,
                field,
            )


@pytest.mark.needs("gcc")
@pytest.mark.skipif(
    not HEADER.exists(), reason="the kernel's header is not on this machine: apt-get install linux-libc-dev"
)
@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="layouts are those of 64-bit systems")
def test_layouts_and_numbers_match_the_kernels_header(tmp_path):
    lines = []
    for name, (_, fields) in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        lines += [f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));' for field in fields]
    lines += [f'printf("{name} %lu\\n", (unsigned long)(__u32){name});' for name in numbers()]
    source = tmp_path / "abi.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/videodev2.h>\nint main(void){"
        + "\n".join(lines)
        + "}\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "abi", source], check=True)
    printed = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True).stdout
    measured = {name: int(value) for name, value in re.findall(r"(\S+) (\d+)", printed)}
    expected = dict(SIZES)
    for name, (_, fields) in STRUCTS.items():
        expected |= {f"{name}.{field}": offset for field, offset in fields.items()}
    assert measured == expected | numbers()


def test_a_fourcc_and_text_fields_are_readable():
    assert [abi.fourcc(item) for item in (abi.YUYV, abi.MJPG, abi.RGB3)] == ["YUYV", "MJPG", "RGB3"]
    assert abi.fourcc(int.from_bytes(b"Y16 ", "little") | 1 << 31) == "Y16"
    assert abi.text(b"uvcvideo\0junk") == "uvcvideo"
