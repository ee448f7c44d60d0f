"""What the commands that make a bundle do with it."""

from pathlib import Path

from edgecnn.cli.console import note


def remember(path: Path) -> None:
    """Let `edgecnn classify` use this bundle by default; a record that cannot be written is a note, not a failure."""
    from edgecnn.errors import OutputError
    from edgecnn.runtime.default import remember_bundle

    try:
        remember_bundle(path)
    except OutputError as error:
        note(f"edgecnn classify needs --model {path}: {error}")
