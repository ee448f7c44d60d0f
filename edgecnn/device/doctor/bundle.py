"""Find and check the bundle in a separate process: `python -m edgecnn.device.doctor.bundle [BUNDLE]`.

A damaged installation then crashes this process, not the doctor. Prints a JSON object with `path`, `reason`, `sha256` and
`wrong_layers`: "decode" or "resize", if the golden photos do not give the expected bytes there.
"""

import sys
from pathlib import Path
from typing import Any

from edgecnn.bundle.read import read_bundle
from edgecnn.device.slots.default import default_bundle
from edgecnn.runtime.child import run_program
from edgecnn.runtime.selftest import check_layers


def main() -> dict[str, Any]:
    choice = default_bundle(Path(sys.argv[1]) if sys.argv[1:] else None)
    bundle = read_bundle(choice.path)
    wrong = [layer.layer for layer in check_layers(bundle) if not layer.passed]
    return {"path": str(choice.path), "reason": choice.reason, "sha256": bundle.sha256, "wrong_layers": wrong}


if __name__ == "__main__":
    run_program(main)
