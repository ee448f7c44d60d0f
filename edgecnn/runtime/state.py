"""Where edgecnn keeps what it remembers between commands: edgecnn/ in $XDG_STATE_HOME or ~/.local/state."""

import os


def tuned_file() -> str:
    """Return the path of the tuned settings, `edgecnn.runtime.tuned`."""
    return os.path.join(
        os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "edgecnn", "tuned.json"
    )
