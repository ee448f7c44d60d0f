"""Record the README's five commands with their output, on photos of yours, in the folder WORK.

Training takes minutes: a command whose output is in WORK already is not run again.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from readme import ROOT, with_section

README = ROOT / "README.md"
COMMANDS = {
    "train": "edgecnn train --data photos/ --quick",
    "export": "edgecnn export --format tflite --int8",
    "verify": "edgecnn verify --max-drop 1.0",
    "bundle": "edgecnn bundle --out photos.edgecnn",
    "classify": "edgecnn classify --model photos.edgecnn photo.jpg",
}


def record(work: Path) -> str:
    """Run the commands in a folder that has photos/ and photo.jpg; return them with what each prints on standard output."""
    parts = []
    for name, command in COMMANDS.items():
        written = work / f"{name}.out"
        if not written.exists():
            words = [sys.executable, "-m", *shlex.split(command)]
            done = subprocess.run(words, cwd=work, check=True, stdout=subprocess.PIPE, text=True)
            written.write_text(done.stdout, encoding="utf-8")
        text = written.read_text(encoding="utf-8").replace(f"{work.resolve()}/", "")
        parts.append(f"$ {command}\n{text.rstrip()}")
    return "```text\n" + "\n".join(parts) + "\n```"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, metavar="WORK", help="a folder with photos/ and photo.jpg")
    recorded = record(parser.parse_args().work)
    README.write_text(with_section(README.read_text(encoding="utf-8"), "commands", recorded), encoding="utf-8")
