"""Write the JSON schemas of the documents that scripts read into a folder. The site and each release include them.

Schemas of reports are generated from their dataclasses. The lines of `edgecnn classify` and `edgecnn explain` are formatted by hand on the
device, so their schemas are written by hand next to that code.
"""

import argparse
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from edgecnn.inspect import findings as inspection
from edgecnn.report import figures
from edgecnn.stress import stress_report as stress
from edgecnn.tables import fields_of, to_json
from edgecnn.verify import against
from edgecnn.verify import parity_report as report

ROOT = Path(__file__).parent.parent
WRITTEN = {
    "result": ROOT / "edgecnn" / "device" / "stream" / "result.schema.json",
    "explanation": ROOT / "edgecnn" / "device" / "explanation.schema.json",
    "kept": ROOT / "edgecnn" / "device" / "keep" / "kept.schema.json",
}
"""The schemas that are stored as files."""

DOCUMENTS: dict[str, tuple[type, ...]] = {
    "parity": (report.Report, report.BoardsReport),
    "stress": (stress.StressReport,),
    "against": (against.Against,),
    "report": (figures.PageFigures,),
    "inspection": (inspection.Inspection, inspection.Cleaned),
}
"""The documents that the other schemas describe: the first is the whole file, others go under $defs."""

SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema(name: str) -> dict[str, Any]:
    """Return one of the schemas of WRITTEN and DOCUMENTS."""
    if name in WRITTEN:
        return json.loads(WRITTEN[name].read_text(encoding="utf-8"))
    first, *others = DOCUMENTS[name]
    definitions: dict[str, Any] = {}
    whole = described_object(first, definitions)
    for other in others:
        of_type(other, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": typing.get_args(fields_of(first)["schema"].type)[0],
        **whole,
        "$defs": dict(sorted(definitions.items())),
    }


def described_object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a dataclass."""
    entries = fields_of(kind).values()
    properties = {}
    for entry in entries:
        about = entry.metadata.get("meaning", "")
        properties[entry.name] = of_type(entry.type, definitions) | ({"description": about} if about else {})
    return {
        "description": " ".join((inspect.getdoc(kind) or "").split()),
        "type": "object",
        "additionalProperties": False,
        "required": [entry.name for entry in entries if entry.default is dataclasses.MISSING],
        "properties": properties,
    }


def of_type(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field's type. A dataclass's schema goes into the definitions."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        limits = {key: to_json(value) for key, value in vars(inner[1]).items() if value is not None}
        return of_type(inner[0], definitions) | limits
    if origin in (typing.Union, types.UnionType):
        (present,) = (item for item in inner if item is not type(None))
        return {"oneOf": [of_type(present, definitions), {"type": "null"}]}
    if origin is Literal:
        return {"const": inner[0]} if len(inner) == 1 else {"enum": list(inner)}
    if origin is tuple:
        size = {} if inner[-1] is Ellipsis else {"minItems": len(inner), "maxItems": len(inner)}
        return {"type": "array", "items": of_type(inner[0], definitions)} | size
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": of_type(inner[1], definitions)}
    if dataclasses.is_dataclass(kind):
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", typing.cast(type, kind).__name__).lower()
        if name not in definitions:
            definitions[name] = {}  # a placeholder while its own fields are described
            definitions[name] = described_object(typing.cast(type, kind), definitions)
        return {"$ref": f"#/$defs/{name}"}
    return {"type": SIMPLE[kind]}


def files() -> dict[str, str]:
    """Return every schema's text by file name."""
    return {
        f"{name}.schema.json": json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"
        for name in (*WRITTEN, *DOCUMENTS)
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
