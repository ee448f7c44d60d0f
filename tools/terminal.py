"""Record docs/assets/terminal.svg: edgecnn's own output in a terminal, from digits to labels, in half a minute.

The commands run in a temporary folder. Long lines end in an ellipsis, and only the first lines of long output are shown.
"""

import argparse
import io
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "assets" / "terminal.svg"
WIDTH = 100
COMMANDS = {
    "edgecnn train --data digits --epochs 20": 2,
    "edgecnn export --format tflite --int8": 1,
    "edgecnn verify --max-drop 1.0": 6,
    "edgecnn bundle --out digits.edgecnn": 2,
    "edgecnn classify images/ --model digits.edgecnn": 3,
}
"""The commands, and how many lines of output to show for each."""


def record(commands: dict[str, int], folder: Path) -> str:
    """Run commands in a folder and return an SVG of a terminal with their standard output.

    Raises:
        subprocess.CalledProcessError: if one fails.
    """
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for command, count in commands.items():
        words = [sys.executable, "-m", *shlex.split(command)]
        text = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout
        lines = text.replace(f"{folder.resolve()}/", "").splitlines()
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        for line in lines[:count]:
            console.print(Text(line, no_wrap=True, overflow="ellipsis"), no_wrap=True, overflow="ellipsis")
        console.print()
    # rich loads a font from a server; our pages must not fetch anything
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
        "Fira Code", "ui-monospace, Menlo, Consolas"
    )
    return console.export_svg(title="edgecnn", code_format=form, unique_id="terminal")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="the picture (default: the README's)")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [
            sys.executable,
            str(ROOT / "tools" / "write_images.py"),
            "--data",
            "digits",
            "--out",
            "images",
            "--count",
            "3",
        ]
        subprocess.run(images, cwd=folder, check=True, capture_output=True)
        out.write_text(record(COMMANDS, folder), encoding="utf-8")
