"""The live page in Chromium: it follows a real camera loop, reports problems, and never runs code from a label."""

import dataclasses
import itertools
import json
import random
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the page needs the http extra")

from starlette.responses import JSONResponse
from starlette.routing import Route

from edgecnn.device.http import routes as pages

TOKEN = "correct-horse-battery-staple"
REGION = (0.25, 0.2, 0.5, 0.6)
HOSTILE = "<img src=x onerror=hacked=1>/../%2e\u05e9" + "W" * 180

chromium = pytest.mark.needs("chromium", "chromedriver", package="chromium chromium-driver")

CAMERA = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
while not (folder / "unplugged").exists():
    sys.stdout.buffer.write((folder / "now.jpg").read_bytes())
    sys.stdout.buffer.flush()
    time.sleep(0.05)
"""


class Camera:
    """A camera that shows a digit in the middle of a grey wall, and can be unplugged."""

    def __init__(self, folder, digits):
        self.folder, self.digits = folder, digits
        program = folder / "camera.py"
        program.write_text(CAMERA)
        self.source = f"exec:{shlex.join([sys.executable, str(program), str(folder)])}"
        self.show("2")

    def show(self, label):
        from PIL import Image

        picture = Image.new("RGB", (320, 200), (120, 125, 118))
        picture.paste(self.digits[label].resize((160, 120)), (80, 40))
        picture.save(self.folder / "next.jpg", quality=90)
        (self.folder / "next.jpg").rename(self.folder / "now.jpg")

    def unplug(self, out=True):
        (self.folder / "unplugged").touch() if out else (self.folder / "unplugged").unlink()


@pytest.fixture
def camera(tmp_path, digits):
    return Camera(tmp_path, digits)


@pytest.fixture
def board(root, serve, camera):
    """Start `edgecnn classify` with the camera and the digits model: `board("--http", "8080", model=path)`."""

    def start(*arguments, model=root / "models/digits/digits.edgecnn"):
        region = ",".join(map(str, REGION))
        started.append(serve(camera.source, "--region", region, "--smooth", "2", "--model", str(model), *arguments))
        return started[-1]

    started = []
    yield start
    for serving in started:
        serving.process.kill()


@chromium
def test_the_page_at_each_size_in_light_and_dark(board, browser, looks, serious, page, camera, tmp_path):
    serving = board("--keep", "kept", "--keep-random", "0", "--threshold", "0.9999999").ready()
    serving.until(lambda: serving.state()["unsure"])
    for width, theme in looks():
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(serving.url)
        page.until("state", "abstain")
        page.until_picture()
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = {item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"}
        assert {url for url in asked if not url.startswith(("data:", serving.url + "/"))} == set()
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
        overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{overflow} px wider than {width}"
        if (width < 500) == (theme == "light"):  # axe takes seconds, and these two have every colour and every layout
            browser.execute_script("document.querySelectorAll('details').forEach(item => item.open = true)")
            assert serious() == [], (width, theme)
    assert page["why"] == "The best score is below the threshold." and "of 385 test images" in page["proof"]
    assert re.search(r"digits[\s\S]*SHA-256\s+[0-9a-f\s]{64}", page["model"])
    assert "The best score is below the threshold." in page["unsure"] and "abstain" in page["legend"]
    assert browser.execute_script("return document.getElementById('strip').ariaLabel").startswith("The last hour: abst")
    assert (
        browser.execute_script("return document.querySelectorAll('img:not([alt]), [onclick], [style*=script]').length")
        == 0
    )
    box = (
        "const [inner, outer] = ['region', 'frame'].map(name => document.getElementById(name).getBoundingClientRect());"
    )
    place = f"{box} return [(inner.x - outer.x) / outer.width, (inner.y - outer.y) / outer.height, inner.width / outer.width]"
    assert browser.execute_script(place) == pytest.approx(REGION[:3], abs=0.01)


@chromium
def test_it_follows_the_camera_while_somebody_can_see_it_and_comes_back_after_each_loss(board, browser, page, camera):
    serving = board().ready()
    browser.get(serving.url)
    page.until("state", "^2$")
    before = page.until_picture()
    browser.execute_script("""
        const note = () => noted.push([document.hidden, Boolean(taking)]);
        window.noted = [];
        document.addEventListener("visibilitychange", note);
    """)
    shown = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.close()
    browser.switch_to.window(shown)
    serving.until(lambda: browser.execute_script("return noted") == [[True, False], [False, True]])
    for label in ("1", "9", "2"):
        camera.show(label)
        assert page.until("state", f"^{label}$") < 3, "by an event: the page asks by itself every five seconds"
        before = page.until_picture(differs_from=before)
    page.until("say", r"^State: 2\.$")  # at most one in three seconds
    assert page["link"] == "connected" and "2" in browser.title

    camera.unplug()
    page.until("notices", "Camera lost since")
    assert page["state"] == "no state" and page["veil"] == "The camera is lost"
    camera.unplug(False)
    page.until("state", "^2$")
    page.until_picture()
    page.until("notices", "^$")

    serving.process.send_signal(signal.SIGSTOP)
    browser.execute_script("const now = Date.now; Date.now = () => now() + 4000")  # the page waits five seconds
    try:
        page.until("notices", "The picture is old|No connection")
    finally:
        serving.process.send_signal(signal.SIGCONT)
    page.until("state", "^2$")

    serving.process.send_signal(signal.SIGKILL)
    page.until("notices", "No connection to the board since")
    assert page["link"] == "no connection" and page["veil"] == "No connection to the board"
    camera.show("9")
    board("--http", str(serving.port)).ready()
    page.until("state", "^9$")
    page.until("notices", "edgecnn restarted")
    before = page.until_picture()
    camera.show("1")
    assert page.until("state", "^1$") < 3, "the EventSource is back"
    page.until_picture(differs_from=before)


COLOURS = {"cat": (255, 0, 0), "bird": (0, 255, 0), "airplane": (255, 255, 0)}
"""What the shipped model answers for pictures of one colour."""

WATCH = """
    window.noted = [];
    const to = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
    const look = () => {
        const [picture, state, rate] = ["picture", "state", "rate"].map(name => document.getElementById(name));
        if (picture.width) {
            to.drawImage(picture, 0, 0, picture.width, picture.height, 0, 0, 1, 1);
            const colour = [...to.getImageData(0, 0, 1, 1).data.slice(0, 3)];
            const now = JSON.stringify([colour, state.textContent, rate.textContent.split(",")[0]]);
            if (now !== noted.at(-1)) noted.push(now);
        }
        requestAnimationFrame(look);
    };
    look();
"""


def coloured(folder, count):
    """Write a folder of pictures of one colour each, of two sizes, and return the state that belongs to each."""
    from PIL import Image

    folder.mkdir()
    labels = list(itertools.islice(itertools.cycle(COLOURS), count))
    for number, label in enumerate(labels):
        Image.new("RGB", (64 + number % 2 * 32, 48), COLOURS[label]).save(folder / f"{number:03}.png")
    return labels


@chromium
@pytest.mark.parametrize(("fps", "frames"), [(10, 20), (1, 5), pytest.param(0.1, 4, marks=pytest.mark.slow)])
def test_the_picture_and_the_state_are_those_of_the_same_frame_at_any_rate(serve, browser, page, tmp_path, fps, frames):
    coloured(tmp_path / "colours", frames)
    source = f"folder:{tmp_path / 'colours'}?fps={fps}&loop=1"
    serving = serve(source, "--json", "--threshold", "0", "--no-strangers")
    browser.get(serving.url)
    page.until("state", "|".join(COLOURS))
    browser.execute_script(WATCH)

    def seen():
        return [json.loads(item) for item in browser.execute_script("return noted")]

    sizes = {"64 \u00d7 48", "96 \u00d7 48"}

    def all_seen():  # a busy machine skips frames, and the folder is shown again and again
        labels, found = ({one[part] for one in seen()} for part in (1, 2))
        return len(seen()) >= frames and found == sizes and labels == COLOURS.keys()

    serving.until(all_seen, 30 + 2 * frames / fps)
    for colour, label, _ in seen():
        assert max(abs(a - b) for a, b in zip(colour, COLOURS[label], strict=True)) < 60, (label, colour, seen())


@chromium
def test_a_page_opened_after_the_last_frame_shows_it(serve, browser, page, tmp_path):
    coloured(tmp_path / "colours", 2)
    serving, count = serve(f"watch:{tmp_path}", "--json", "--threshold", "0", "--no-strangers"), itertools.count()

    def shown(label, number):
        """Return whether a label is the newest decision; else give the folder its picture, which it ignores before it is watched."""
        if f'"decision": "{label}"' in "".join(list(serving.lines)[-1:]):
            return True
        shutil.copyfile(tmp_path / f"colours/{number:03}.png", tmp_path / f"{next(count)}.png")
        time.sleep(1)
        return False

    for number, label in enumerate(("cat", "bird")):
        serving.until(lambda label=label, number=number: shown(label, number))
    for _ in range(2):
        browser.get(serving.url)
        page.until("state", "^bird$")
        serving.until(lambda: page.picture is not None)
        colour = browser.execute_script(
            "return [...document.getElementById('picture').getContext('2d').getImageData(9, 9, 1, 1).data]"
        )
        assert colour[0] < 60 and colour[1] > 200 and colour[2] < 60
        assert page["rate"].startswith("96 \u00d7 48") and page["veil"] is None
        browser.get("about:blank")
        time.sleep(0.5)


@chromium
def test_the_page_asks_for_the_token_once(board, browser, page, serious, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o600)
    serving = board("--http-token-file", str(tmp_path / "token"))
    serving.until(lambda: serving.ask("/readyz", Authorization=f"Bearer {TOKEN}")[0] == 200)
    browser.get(serving.url)
    page.until("login", "this board's token")
    field = browser.find_element("id", "token")
    field.send_keys("a guess\n")
    page.until("wrong", "not this board's token")
    assert serious() == []
    field.clear()
    field.send_keys(TOKEN + "\n")
    page.until("state", "^2$")
    page.until_picture()
    assert TOKEN not in browser.current_url and browser.execute_script("return document.cookie") == ""
    cookie, *others = browser.get_cookies()
    assert not others and cookie["httpOnly"] and cookie["sameSite"] == "Strict" and TOKEN not in cookie["value"]
    assert TOKEN not in "".join(serving.notes + serving.lines)


@chromium
def test_a_label_is_text_and_never_runs(root, board, browser, page, camera, looks, tmp_path):
    from edgecnn.bundle.file import pack, read_bundle
    from edgecnn.files import sha256

    bundle = read_bundle(root / "models/digits/digits.edgecnn")
    labels = tuple(HOSTILE if label == "2" else label for label in bundle.manifest.labels)
    files = {name: sha256(content) for name, content in bundle.files.items()}
    forged = tmp_path / "forged.edgecnn"
    forged.write_bytes(pack(dataclasses.replace(bundle.manifest, labels=labels, files=files), bundle.files))
    serving = board("--keep", "kept", "--keep-margin", "1", "--keep-random", "0", model=forged).ready()
    serving.until(lambda: serving.state()["unsure"])
    for width, _ in itertools.islice(looks(), 0, None, 3):
        browser.get(serving.url)
        page.until("state", "W" * 100)
        page.until("unsure", "onerror")
        overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{overflow} px wider than {width}"
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    loaded = "return [...document.querySelectorAll('#unsure img')].map(item => item.naturalWidth)"
    browser.execute_script("document.querySelector('#unsure img').scrollIntoView()")
    serving.until(lambda: browser.execute_script(loaded)[0] == 160)  # only the region is kept
    browser.execute_script("""
        const script = document.createElement("script"), policy = trustedTypes.createPolicy("test", {createScript: text => text});
        script.textContent = policy.createScript("window.hacked = 2");
        document.body.append(script);
    """)
    assert browser.execute_script("return window.hacked") is None, "the policy blocks every other script"
    markup = "try { document.body.innerHTML = '<p>'; return 'taken' } catch { return 'refused' }"
    assert browser.execute_script(markup) == "refused"


@chromium
def test_other_scores_are_reported_until_a_week_of_them_is_accepted(root, board, browser, page, serious, camera):
    from edgecnn.device.http.drift import Drift
    from edgecnn.device.http.live import drift_facts
    from edgecnn.device.stream.settings import Settings
    from edgecnn.files import write_atomic
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(root / "models/digits/digits.edgecnn", region=REGION)
    facts = drift_facts(classifier, Settings(), camera.source)
    drift = Drift(classifier.labels, facts["key"], Path(facts["file"]))
    chance = random.Random(1)

    def pass_(first, last, score):
        for hour in (hour for hour in range(first, last) if hour % 24 < 8):
            for frame in range(60):
                line = {"top": [{"label": "2", "score": chance.gauss(score, 0.02)}], "decision": "2"}
                drift.take(line, time.time() + 3600 * hour + frame)

    pass_(-20 * 24, -11 * 24, 0.9)
    drift.accept()
    pass_(-11 * 24, 0, 0.6)
    write_atomic(drift.file, drift.dumped())
    browser.get(board().ready().url)
    page.until("notices", "Drift: the scores differ from .*lower, since")
    page.until("accept", "Accept")
    assert serious() == []
    browser.find_element("id", "accept").click()
    page.until("accepted", "^Accepted")
    page.until("days", "^Compared with the week that you accepted on")
    page.until("notices", "^$")
    assert page["accept"] is None and page["week"] == "your week"


STATE = {
    "schema": "edgecnn.state/1", "source": "hall", "camera": "open", "camera_message": "a camera", "state": "dog", "reason": None,
    "top": [{"label": label, "score": score} for label, score in (("dog", 0.625), ("cat", 0.25), ("owl", 0.115), ("fox", 0.01))],
    "region": None, "counts": {"frames": 12345, "dropped": 67, "damaged": 8, "reconnects": 9, "decisions": {}},
    "model": {
        "name": "pets", "serial": 1234, "sha256": "0f" * 32, "labels": ["cat", "dog", "owl"], "engine": "litert 2", "precision": "int8",
        "accuracy": 0.8662, "interval": [0.857, 0.8754], "images": 5000,
    },
    "board": {
        "temperature_c": 79.6, "throttled": ["under-voltage"], "memory_mib": 61.4, "uptime_s": 90061.0,
        "update": {"reason": "the server is gone", "last_good": None, "age_s": 7260},
    },
}  # fmt: skip
"""A board's state whose numbers all differ; `recent` adds its times."""


def recent(now):
    """Return the state at a time: cat for 30 minutes, abstain for 19, none for 7, and dog for 2; today's scores and validation's."""
    hour = [[now - 3600, "cat"], [now - 1785, "abstain"], [now - 600, None], [now - 125, "dog"]]
    unsure = [("hall/b &.jpg", "owl", 0.375, "below_margin", 60), ("a.jpg", "cat", None, None, 7200)]
    frame = {"seq": 4321, "ts": now - 0.5, "width": 320, "height": 200, "inference_ms": 12.34}
    today = {"n": 1440, "histogram": [0.2, 0.3, 0.4, 0.1], "abstain": 0.125, "stranger": 0.0625, "since": 0}
    validation = {"n": 385, "histogram": [0.05, 0.15, 0.25, 0.55], "abstain": None, "stranger": 0.03, "since": None}
    drift = {
        "bins": [0, 0.5, 0.9, 0.99, 1],
        "today": today,
        "validation": validation,
        "accepted": None,
        "accepted_at": None,
    }
    return STATE | {
        "time": now, "camera_since": now - 9, "frame": frame, "since": now - 125, "hour": hour,
        "unsure": [dict(zip(("name", "guess", "score", "reason", "ts"), (*of, now - ago), strict=True)) for *of, ago in unsure],
        "drift": {**drift, "days": 5, "can_accept": False, "alarm": {"since": now - 3600, "message": "the scores differ"}},
    }  # fmt: skip


@chromium
def test_every_number_on_the_page_is_the_boards(serve_here, browser, page):
    """The board's clock is days ahead. Then with little that is known, and a week that was accepted."""
    changed = {}

    def state(request):
        return JSONResponse({**recent(time.time() + 1e6), **changed})

    with serve_here(*pages.document("page.html", "/", "/login"), Route("/v1/state", state)) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        page.until("state", "^dog$")
        text = {
            name: " ".join(page[name].split())
            for name in ("since", "top", "legend", "changes-title", "accuracy", "proof", "model", "labels-title", "temperature",
                         "throttled", "board", "rate", "age", "unsure", "days", "drift", "notices")
        }  # fmt: skip
        ask = browser.execute_script
        strip = ask(
            "return [...document.querySelectorAll('#strip i')].map(i => [i.className, i.style.left, i.style.width])"
        )
        widths = ask("return [...document.querySelectorAll('#top i')].map(i => i.style.width)")
        changes = ask("return [...document.querySelectorAll('#changes bdi')].map(i => i.textContent)")
        bars = ask("return [...document.querySelectorAll('#chart rect')].map(i => Number(i.getAttribute('height')))")
        line = ask("return document.querySelector('#chart path').getAttribute('d')")
        label = ask("return document.getElementById('strip').ariaLabel")
        assert browser.title == "dog \u00b7 pets \u00b7 edgecnn" and page["where"] == "127.0.0.1 \u00b7 hall"
        pictures = ask("return [...document.querySelectorAll('#unsure img')].map(item => item.getAttribute('src'))")
        assert (
            pictures == ["v1/unsure/hall/b%20%26.jpg", "v1/unsure/a.jpg"] and page["veil"] is page["outlined"] is None
        )
        hot = ask("return document.getElementById('temperature').classList.contains('hot')")
        now = time.time() + 1e6
        drift = recent(now)["drift"]
        week = {"n": 10080, "histogram": [0.0, 0.25, 0.375, 0.375], "abstain": 0.5, "stranger": 0.25, "since": 0}
        changed.update(
            state="stranger", reason="unfamiliar", since=now - 3725, hour=[], unsure=[], region=[0.25, 0.125, 0.5, 0.75],
            model=STATE["model"] | {"serial": 0, "accuracy": None, "interval": None, "labels": ["cat"]},
            board={"temperature_c": 80.4, "throttled": [], "memory_mib": 61.6, "uptime_s": 59.4, "update": None},
            drift=drift | {"validation": None, "accepted": week, "accepted_at": now - 60, "alarm": None, "can_accept": True},
        )  # fmt: skip
        browser.get(f"http://127.0.0.1:{port}/")
        page.until("state", "^stranger$")
        names = (
            "since",
            "why",
            "accuracy",
            "proof",
            "model",
            "labels-title",
            "temperature",
            "throttled",
            "board",
            "days",
            "drift",
        )
        less = {name: " ".join(page[name].split()) for name in names}
        less_label = ask("return document.getElementById('strip').ariaLabel")
        less_hot = ask("return document.getElementById('temperature').classList.contains('hot')")
        place = ask(
            "const {left, top, width, height} = document.getElementById('region').style; return [left, top, width, height]"
        )
        assert page["accept"] == "Accept the last week as normal" and page["unsure"] is None and page["outlined"]
        assert page["notices"] == "", "the page that was open before is another one"
        without = {name: {**drift[name], "stranger": None} for name in ("today", "validation")}
        changed.update(drift=drift | without)
        ask("refresh()")
        page.until("days", "5 so far")
        off = page["drift"]
    assert (
        re.fullmatch(r"since .*, for 1 h 2 min", less["since"])
        and less["why"] == "The picture shows none of the classes."
    )
    assert (less["accuracy"], less["proof"]) == ("not verified", "This bundle has no verified accuracy.")
    assert "Serial number none" in less["model"] and less["labels-title"] == "1 class"
    assert (less["temperature"], less_hot) == ("80 °C", True) and less["throttled"].endswith("; not throttled.")
    assert less["board"].startswith("Running for 59 s Memory 62 MiB") and "release check" not in less["board"]
    assert less["days"].startswith("Compared with the week that you accepted on ")
    assert "above 0.9 50.0 % 75.0 % abstain 12.5 % 50.0 % stranger 6.3 % 25.0 % images 1,440 10,080" in less["drift"]
    assert less_label == "The last hour: nothing yet; 0 changes." and place == ["25%", "12.5%", "50%", "75%"]
    assert re.fullmatch(r"since .*, for 2 min", text["since"])
    assert text["top"] == "dog 62.5 % cat 25.0 % owl 11.5 %" and widths == ["62.5%", "25%", "11.5%"]
    assert (
        text["legend"] == "cat 30 min abstain 19 min no state 7 min dog 2 min" and text["changes-title"] == "3 changes"
    )
    assert label == "The last hour: cat 30 min, abstain 19 min, no state 7 min, dog 2 min; 3 changes."
    assert changes == ["dog", "no state", "abstain"], "the newest first"
    shares = [(name.split()[0], float(left[:-1]), float(width[:-1])) for name, left, width in strip]
    assert [name for name, *_ in shares] == ["k0", "abstain", "nothing", "k1"]
    expected = [(0, 1815 / 36), (1815 / 36, 1185 / 36), (3000 / 36, 475 / 36), (3475 / 36, 125 / 36)]
    assert [share[1:] for share in shares] == [pytest.approx(of, abs=0.5) for of in expected]
    assert text["accuracy"] == "86.62 %" and text["labels-title"] == "3 classes"
    assert text["proof"] == (
        "of 5,000 test images classified correctly, none of them seen in training (95 % interval 85.70 % to 87.54 %)."
    )
    assert text["model"].startswith("Name pets Serial number 1,234 Runs on litert 2, int8 SHA-256 0f0f")
    assert text["temperature"] == "80 °C" and not hot and text["throttled"].endswith("throttled: under-voltage.")
    assert text["board"] == (
        "Running for 1 d 1 h Memory 61 MiB Frames classified 12,345 Dropped for newer ones 67 Damaged 8 Camera reopened 9 "
        "Last successful release check 2 h 1 min ago Last check failed the server is gone"
    )
    assert text["rate"] == "320 \u00d7 200, classified in 12.3 ms" and text["age"].startswith("Frame 4,321, taken ")
    assert re.search(r"owl\? 37.5 %, .* The two best scores are too close together. cat\? ", text["unsure"])
    assert re.search(r"Drift: the scores differ, since .* The board is throttled: under-voltage\.", text["notices"])
    assert text["days"] == "After seven days you can accept their scores as normal; 5 so far."
    assert "stranger" not in off
    table = "above 0.9 50.0 % 80.0 % abstain 12.5 % \u2013 stranger 6.3 % 3.0 % images 1,440 385"
    assert table in text["drift"] and len(bars) == 4
    highest = 0.55
    assert bars == pytest.approx([96 * share / highest for share in (0.2, 0.3, 0.4, 0.1)])
    ends = [float(part.partition("H")[0].split()[1]) for part in re.split("[ML]", line)[1:]]
    assert ends == pytest.approx([100 - 96 * share / highest for share in (0.05, 0.15, 0.25, 0.55)])


ROWS = """
    const range = document.createRange();
    return [...document.querySelectorAll(arguments[0])].map(item => {
        range.selectNodeContents(item);
        return [item.textContent, new Set([...range.getClientRects()].map(box => Math.round(box.top))).size];
    });
"""


@chromium
@pytest.mark.parametrize("label", ["automobile", "greenhouse-door", "a wheelbarrow"])
def test_a_class_name_breaks_only_between_its_words(serve_here, browser, page, label):
    state = {**recent(time.time()), "state": label}
    words = len(re.split("[ -]", label))
    with serve_here(
        *pages.document("page.html", "/", "/login"), Route("/v1/state", lambda request: JSONResponse(state))
    ) as port:
        for width in (320, 390, 900, 960, 1280):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(f"http://127.0.0.1:{port}/")
            page.until("state", f"^{label}$")
            ((text, rows),) = browser.execute_script(ROWS, "#state bdi")
            assert text == label and rows <= words, (label, width)
            height = browser.execute_script(
                "return parseFloat(getComputedStyle(document.getElementById('state')).fontSize)"
            )
            assert height > 24, (label, width, height)


@chromium
def test_without_a_camera_an_image_can_be_tried(guarded, browser, page, serious, photo, tmp_path):
    label = json.loads(guarded.ask("/v1/classify", photo.read_bytes(), **guarded.token)[2])["decision"]
    browser.get(f"{guarded.url}/login#token={TOKEN}")  # as in an address that a terminal shows
    page.until("try", "Classify an image")
    assert page["lead"] is None and page["hour"] is None and TOKEN not in browser.current_url
    browser.find_element("id", "file").send_keys(str(photo))
    page.until("answer", f"^{label}$")
    assert re.match(rf"{label}\s+\d\d", page["answer-top"])
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    browser.find_element("id", "file").send_keys(str(tmp_path / "broken.png"))
    page.until("answer-why", r"\w")
    assert page["answer"] == "no answer" and serious() == []
