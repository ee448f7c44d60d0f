"""The code that runs on the device: cameras, the stream loop, the benchmark and the doctor.

A program that classifies the images of a camera:

    from edgecnn.device import open_stream
    with open_stream() as stream:
        for item in stream:
            print(item)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecnn.device.stream.loop import open_stream as open_stream

__all__ = ["open_stream"]


def __getattr__(name: str) -> Any:
    if name == "open_stream":
        from edgecnn.device.stream.loop import open_stream

        return open_stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
