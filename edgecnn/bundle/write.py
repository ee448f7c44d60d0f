"""Writes a bundle."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from edgecnn.bundle.canonical import pack
from edgecnn.bundle.manifest import Manifest, check_labels
from edgecnn.bundle.read import parse_bundle
from edgecnn.errors import BundleError
from edgecnn.files import refuse_existing, sha256, write_atomic


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], force: bool = False) -> str:
    """Write a bundle atomically, after checking that it reads back; return its SHA-256. BundleError or OutputError if that fails."""
    refuse_existing(path, force)
    try:
        check_labels(manifest.labels)
    except BundleError as error:
        raise BundleError(f"{error}. Rename its folder and train again.") from None
    hashes = {name: sha256(content) for name, content in files.items()}
    data = pack(dataclasses.replace(manifest, files=hashes), files)
    bundle = parse_bundle(data, path)
    write_atomic(path, data)
    return bundle.sha256
