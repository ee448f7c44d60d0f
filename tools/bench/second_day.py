"""The second day, from a few photos to a better model in a slot: what is kept, labelled and gained, and how long it takes.

A draw trains a model on a few photos of each class and shows it others as a stream, each for a moment. The pictures it keeps get their true
labels through the API of `edgecnn review` and join the photos. `edgecnn run --against` makes the next model, which goes into a slot. Both
models then classify the remaining photos, which neither has seen. The day is as long as the stream. The random sample is drawn for a whole
day, so a large quota is requested to get some of it within the stream.

    python tools/bench/second_day.py --data <trash-photos.zip>

A draw takes two trainings. `--train` takes more options of `edgecnn run`, such as "--folds 5", which takes six times as long. For a trial:

    python tools/bench/second_day.py --data <trash-photos.zip> --draws 1 --stream 40 --hold 0.2 --out /tmp/day.json \\
        --train "--network resnet_25kb --size 32 --epochs 1 --qat-epochs 1 --set init.source=random"
"""

import json
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from PIL import Image

NETWORK = "--network efficientnet_lite0_1200kb"
"""Fixed, because choosing it from the photos takes minutes and is measured elsewhere."""

STREAMED = """\
import sys, time
for name in sys.stdin.read().split("\\n"):
    data = open(name, "rb").read()
    for _ in range(2):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        time.sleep({hold} / 2)
"""

PATIENCE_S = 300.0  # for a server to start, since the machine may be busy

SIDE = 16  # side in pixels of the thumbnails that match a kept picture with the photo shown


def main() -> None:
    parser = harness.parser(__doc__, "second_day")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--each", type=int, default=20, help="photos per class for the first model")
    parser.add_argument("--stream", type=int, default=600, help="photos to show")
    parser.add_argument("--hold", type=float, default=1.0, help="seconds to show each")
    parser.add_argument("--keep-unsure", type=int, default=720, help="per day; an hour may use a sixth")
    parser.add_argument("--keep-random", type=int, default=10_000, help="per whole day, of which the stream is a part")
    parser.add_argument("--train", default=NETWORK, help="more options of edgecnn run")
    given = parser.parse_args()
    settings = {
        name: getattr(given, name) for name in ("each", "stream", "hold", "keep_unsure", "keep_random", "train")
    }
    results = harness.Results(given.out, harness.about("second_day", **settings))
    for case in results.missing(draw=range(1, given.draws + 1)):
        with tempfile.TemporaryDirectory(prefix="second-day.") as folder:
            results.add(**case, **day(given, Path(folder), case["draw"]))
    headings = (
        "draw",
        "before",
        "after",
        "drop (95 %)",
        "verdict",
        "unsure",
        "strange",
        "random",
        "labelled",
        "minutes",
    )
    rows = [
        (
            str(row["draw"]), f"{row['before']:.1%}", f"{row['after']:.1%}",
            "{:.1f} ({:.1f} to {:.1f})".format(row["drop"], *row["interval"]),
            row["verdict"], *(str(row["kept"].get(why, 0)) for why in ("unsure", "stranger", "random")), str(row["labelled"]),
            f"{sum(row['minutes'].values()):.0f}",
        )
        for row in results.rows
    ]  # fmt: skip
    harness.finish(given.out, {**results.context, "results": results.rows}, headings, rows)


def page() -> list[list[str]]:
    """Return the words of each command of the day, from the first block of docs/second-day.md."""
    text = (harness.ROOT / "docs" / "second-day.md").read_text(encoding="utf-8")
    return [shlex.split(line) for line in text.split("```sh\n")[1].split("```")[0].splitlines()]


def day(given: Any, folder: Path, draw: int) -> harness.Row:
    """Follow the page with the photos of a draw, and return the figures; `given` are the options of `main`."""
    photos, rest = folder / "photos", folder / "rest"
    shown = divided(given, photos, rest, draw)
    minutes: dict[str, float] = {}

    (folder / "door.toml").write_text(f'name = "door"\nseed = {draw}\n[data]\nsource = "photos"\n')
    train = ["--max-drop", "100", "--accept-conversion", *shlex.split(given.train)]
    slots, code, reviewed = ["--slots", folder / "slots"], 0, {}
    for _, name, *words in page():
        started = time.monotonic()
        if name == "run":
            _, code = command(folder, name, *words, *train, codes=(0, 36, 37))
        elif name == "classify":
            stream(given, folder, words, [path for path, _ in shown])
        elif name == "review":
            reviewed = review(folder, words, labels_of(folder / "kept", shown))
        else:
            command(folder, name, *words, *slots, *(["--accept", "a bench"] if code else []))
        minutes[f"{len(minutes) + 1} {name}"] = round((time.monotonic() - started) / 60, 2)
    kept = [json.loads(path.read_text()) for path in sorted((folder / "kept").glob("*/*.json"))]
    old, new = folder / "runs/door/door.edgecnn", folder / "runs/door-1/door-1.edgecnn"
    in_use = json.loads(command(folder, "slot", "list", "--json", *slots)[0])
    against = json.loads(command(folder, "compare", old, new, "--data", rest, "--json", codes=(0, 36, 37))[0])
    whole = against["parts"][0]
    own = json.loads((new.parent / "against.json").read_text())
    return {
        "before": whole["accuracy_reference"],
        "after": whole["accuracy_candidate"],
        "n": whole["n"],
        "drop": whole["drop"],
        "interval": whole["drop_interval"],
        "mcnemar_p": whole["mcnemar_p"],
        "verdict": own["verdict"],
        "verdict_photos": own["parts"][0]["n"] if own["parts"] else 0,
        "verdict_rest": against["verdict"],
        "serial_in_use": in_use["releases"][in_use["current"]]["serial"],
        "kept": {why: sum(item["why"] == why for item in kept) for why in {item["why"] for item in kept}},
        "pictures": len({item["picture"]["sha256"] for item in kept}),
        "labelled": reviewed["labelled"],
        "field": reviewed["field"],
        "minutes": minutes,
    }


def divided(given: Any, photos: Path, rest: Path, draw: int) -> list[tuple[Path, str]]:
    """Unpack the photos: a few of each class to `photos`, some to be shown, the rest to `rest`. Returns those to show, with classes."""
    chance = random.Random(draw)
    whole = rest.parent / "whole"
    with zipfile.ZipFile(given.data) as file:
        file.extractall(whole)
    paths = sorted(whole.glob("*/*/*.jpg"))
    chance.shuffle(paths)
    taken: dict[str, int] = {}
    others = []
    for path in paths:
        label = path.parent.name
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= given.each:
            moved(path, photos)
        else:
            others.append(path)
    for path in others[given.stream :]:
        moved(path, rest)
    return [(path, path.parent.name) for path in others[: given.stream]]


def moved(path: Path, folder: Path) -> None:
    (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
    shutil.move(path, folder / path.parent.name / path.name)


def stream(given: Any, folder: Path, words: Sequence[str], paths: Sequence[Path]) -> None:
    """Show photos to a model like a camera, and let it keep pictures."""
    script, names = folder / "stream.py", folder / "names"
    script.write_text(STREAMED.format(hold=given.hold))
    names.write_text("\n".join(map(str, paths)))
    line = f"{shlex.join([sys.executable, str(script)])} < {shlex.quote(str(names))}"
    source = f"exec:{shlex.join(['sh', '-c', line])}"
    keep = ["--keep-unsure", given.keep_unsure, "--keep-random", given.keep_random]
    others = [word for word in words if word != "--camera"]
    command(folder, "classify", source, *others, *keep, "--duration", round(given.hold * len(paths)), codes=(0, 24))


def small(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE)), np.float32).ravel()


def labels_of(kept: Path, shown: Sequence[tuple[Path, str]]) -> dict[str, str]:
    """Return the true class of each kept picture by its hash: that of the most similar photo."""
    photos = np.stack([small(path) for path, _ in shown])
    labels = {}
    for path in kept.glob("*/*.json"):
        nearest = np.abs(photos - small(path.with_suffix(".jpg"))).mean(axis=1).argmin()
        labels[json.loads(path.read_text())["picture"]["sha256"]] = shown[int(nearest)][1]
    return labels


def review(folder: Path, words: Sequence[str], labels: Mapping[str, str]) -> harness.Row:
    """Answer every question of a review with the true class, like its page, and return the command's final output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "edgecnn", "review", *words, "--http", f"127.0.0.1:{port}", "--http-open", "--json"]
    # started with a shell's `&`, this process and its children would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(line, cwd=folder, env=harness.environment(), stdout=subprocess.PIPE) as server:
        for document in questions(f"http://127.0.0.1:{port}/v1/review", server):
            for question in document["next"]:
                for label in {labels[digest] for digest in question["pictures"]}:
                    same = [digest for digest in question["pictures"] if labels[digest] == label]
                    body = {"reviewer": "bench", "pictures": same, "decision": "label", "label": label}
                    asked(f"http://127.0.0.1:{port}/v1/review/answer", body)
        server.send_signal(signal.SIGINT)
        assert server.stdout
        said: harness.Row = json.loads(server.stdout.read())
    return said


def questions(url: str, server: subprocess.Popen[bytes]) -> Iterator[harness.Row]:
    """Yield the questions until none is left. The server takes a while to start."""
    until, document = time.monotonic() + PATIENCE_S, None
    while document is None:
        try:
            document = asked(url, {"reviewer": "bench"})
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > until or server.poll() is not None:
                sys.exit("edgecnn review does not answer")
            time.sleep(0.5)
    while document["next"]:
        yield document
        document = asked(url, {"reviewer": "bench"})


def asked(url: str, body: Mapping[str, Any]) -> harness.Row:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: harness.Row = json.load(answer)
    return found


def command(folder: Path, *arguments: object, codes: Sequence[int] = (0,)) -> tuple[bytes, int]:
    """Run edgecnn in a folder. Returns its output and exit code, which must be one of `codes`."""
    line = [sys.executable, "-m", "edgecnn", *map(str, arguments)]
    done = subprocess.run(line, cwd=folder, env=harness.environment(), capture_output=True)
    if done.returncode not in codes:
        sys.exit(f"{shlex.join(line)}: code {done.returncode}\n{done.stderr.decode()[-3000:]}")
    return done.stdout, done.returncode


if __name__ == "__main__":
    main()
