"""Take the pictures of the live page in docs/assets: a drawn water meter whose last digit is read by the digits model.

The page, server, camera loop and model are those that ship. The camera is a program that writes pictures of the meter, and the history of
the hour before is made up. Chromium and its driver are required, as for the page's tests.
"""

import argparse
import contextlib
import functools
import io
import os
import random
import shlex
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
from browser import open_browser, save, set_view
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).parent.parent
BUNDLE = ROOT / "models" / "digits" / "digits.edgecnn"
SIZE = (1280, 720)
WHEEL = (100, 130)
WHEELS = [(330 + 126 * place, 290) for place in range(5)]
REGION = (WHEELS[-1][0] / SIZE[0], WHEELS[-1][1] / SIZE[1], WHEEL[0] / SIZE[0], WHEEL[1] / SIZE[1])
TURN_S = 9.0
SETTLED = "return document.getElementById('picture').width > 0 && document.getElementById('state').className === ''"
VIEWS = {"wide": (1280, 900, "light", True), "narrow": (390, 844, "dark", False)}
"""Width, height and theme of each picture, and whether it shows the whole page or only the first screen."""


@functools.cache
def meter() -> Image.Image:
    """Return a wall with a pipe and a meter, without its wheels."""
    width, height = SIZE
    rows = np.linspace(0, 1, height)[:, np.newaxis, np.newaxis]
    wall = (
        np.array([176, 172, 160]) - 70 * rows * [1, 1, 0.95] + np.random.default_rng(0).normal(0, 3, (height, width, 1))
    )
    picture = Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8))
    shadow = Image.new("L", SIZE)
    ImageDraw.Draw(shadow).rounded_rectangle((230, 130, 1070, 640), 90, fill=150)
    picture.paste((30, 28, 25), mask=shadow.filter(ImageFilter.GaussianBlur(28)))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 500, width, 590), fill=(134, 92, 60))
    pen.rectangle((0, 500, width, 516), fill=(171, 124, 84))
    pen.rounded_rectangle((210, 100, 1050, 620), 90, fill=(214, 217, 219), outline=(120, 126, 130), width=6)
    pen.rounded_rectangle((244, 134, 1016, 586), 66, fill=(237, 239, 240))
    pen.text((306, 190), "WATER  ·  Q3 4.0  ·  0417-22", fill=(70, 80, 90), font_size=34)
    pen.text((306, 490), "litres", fill=(70, 80, 90), font_size=40)
    pen.rounded_rectangle((306, 266, 974, 444), 18, fill=(40, 44, 48))
    return picture


def draw(seconds: float, faces: list[Image.Image]) -> bytes:
    """Return a JPEG of the meter after some seconds. Its last wheel turns slowly to the next digit every TURN_S."""
    picture = meter().copy()
    step, part = divmod(seconds / TURN_S, 1)
    rolled = round(max(0.0, (part - 0.8) / 0.2) * WHEEL[1])
    for place, corner in enumerate(WHEELS):
        last = place == len(WHEELS) - 1
        wheel = Image.new("L", (WHEEL[0], 2 * WHEEL[1]))
        for row in range(2):
            wheel.paste(faces[(int(step) + row if last else 3 * place + row) % 10], (0, row * WHEEL[1]))
        top = rolled if last else 0
        picture.paste(wheel.crop((0, top, WHEEL[0], top + WHEEL[1])), corner)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return file.getvalue()


def wheel_faces() -> list[Image.Image]:
    """Return the ten digits for the wheels: the second example of each in scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return [
        Image.fromarray(pixels[np.flatnonzero(labels == digit)[1]]).resize(WHEEL, Image.Resampling.BICUBIC)
        for digit in range(10)
    ]


def show() -> NoReturn:
    """Act as the camera: write pictures of the meter until the reader stops."""
    faces, start = wheel_faces(), time.monotonic()
    while True:
        sys.stdout.buffer.write(draw(time.monotonic() - start, faces))
        sys.stdout.buffer.flush()
        time.sleep(0.2)


def hour_before(labels: list[str], source: str):
    """Return the changes of a made-up hour: a wheel that moves on occasionally, with uncertain states in between."""
    from edgecnn.device.stream.events import StateChangedEvent

    chance, events = random.Random(4), []
    ts, place = time.time() - 3600, 0
    while ts < time.time() - 60:
        for state, lasts in (
            (labels[place % len(labels)], chance.uniform(150, 700)),
            ("abstain", chance.uniform(8, 50)),
        ):
            reason = "below_threshold" if state == "abstain" else None
            events.append(
                StateChangedEvent(ts=ts, source=source, state=state, previous=None, score=0.9, reason=reason, seq=None)
            )
            ts += lasts
        place += 1
    return [event for event in events if event.ts < time.time() - 30]


def photograph(url: str, out: Path) -> None:
    """Open the page and take the pictures of VIEWS."""
    from selenium.webdriver.support.ui import WebDriverWait

    with open_browser() as browser:
        browser.execute_cdp_cmd("Emulation.setLocaleOverride", {"locale": "en-GB"})
        for name, (width, height, theme, whole) in VIEWS.items():
            set_view(browser, (width, height), theme)
            browser.get(url)
            for tall in (False, True)[: 1 + whole]:
                if tall:
                    set_view(browser, (width, browser.execute_script("return document.body.offsetHeight")), theme)
                WebDriverWait(browser, 30, 0.1).until(lambda driver: driver.execute_script(SETTLED))
                time.sleep(1.5)
            save(browser, out / f"live-{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    parser.add_argument("--camera", action="store_true", help="act as the camera; used by this program itself")
    arguments = parser.parse_args()
    if arguments.camera:
        show()
    from edgecnn.cli.classify_stream import listen, make_live
    from edgecnn.cli.options import load_classifier
    from edgecnn.device.keep.keeper import make_keepers
    from edgecnn.device.stream.loop import Ends, open_stream
    from edgecnn.device.stream.settings import Decision, Engine, Http, Model, Reaction, Settings, State

    out = arguments.out.absolute()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), Ends():
        os.environ["XDG_STATE_HOME"] = folder  # where drift counts are stored
        settings = Settings(
            http=Http(address="0"), state=State(smooth="3"), decision=Decision(threshold=0.9),
            reaction=Reaction(keep=Path(folder, "kept"), keep_random=0),
        )  # fmt: skip
        choice = {**vars(Engine()), **vars(Model(region=REGION))}
        door, classifier = listen(settings.http), load_classifier(BUNDLE, **choice)
        keepers = make_keepers(settings, classifier)
        camera = Path(folder, "camera-in-the-cellar")
        camera.write_text(
            f"#!/bin/sh\nexec {shlex.join([sys.executable, str(Path(__file__).resolve()), '--camera'])}\n"
        )
        camera.chmod(0o755)
        source = f"exec:./{camera.name}"
        live = make_live(door, settings, classifier, choice, source, keepers)
        for event in hour_before(list(classifier.labels), source):
            live.hear(event)
        with open_stream(source, classifier, settings, consumers=[*keepers, live]) as stream:
            loop = threading.Thread(target=lambda: [None for _ in stream.ticks()])
            loop.start()
            time.sleep(4 * TURN_S)  # until there are some unsure pictures
            photograph(door.url, out)
            stream.close()
            loop.join()


if __name__ == "__main__":
    main()
