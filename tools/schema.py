"""Make the JSON schemas of the parity report, the stress report, the report page's figures and an inspection from their dataclasses.

`--check` fails if a file is out of date.
"""

import argparse
import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from edgecnn.inspect import report as inspection
from edgecnn.report import figures
from edgecnn.stress import report as stress
from edgecnn.tables import fields_of, to_json
from edgecnn.verify import report

DOCUMENTS: dict[Path, tuple[type, ...]] = {
    Path(report.__file__).with_name("parity.schema.json"): (report.Report, report.BoardsReport),
    Path(stress.__file__).with_name("stress.schema.json"): (stress.StressReport,),
    Path(figures.__file__).with_name("report.schema.json"): (figures.PageFigures,),
    Path(inspection.__file__).with_name("inspection.schema.json"): (inspection.Inspection, inspection.Cleaned),
}
"""Each schema's file, and the documents that it describes: a file's whole, and others under $defs."""

SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema(first: type, *others: type) -> dict[str, Any]:
    """Return the schema of a document, with every other dataclass, and other documents, under $defs."""
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
    """Return the schema of a field's type; that of a dataclass goes into the definitions."""
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
            definitions[name] = {}  # held while its own fields are described
            definitions[name] = described_object(typing.cast(type, kind), definitions)
        return {"$ref": f"#/$defs/{name}"}
    return {"type": SIMPLE[kind]}


def text(documents: tuple[type, ...]) -> str:
    """Return the schema of documents as its file has it."""
    return json.dumps(schema(*documents), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file would change")
    check = parser.parse_args().check
    for path, documents in DOCUMENTS.items():
        if not check:
            path.write_text(text(documents), encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text(documents):
            sys.exit(f"{path.name} is out of date: python tools/schema.py")
