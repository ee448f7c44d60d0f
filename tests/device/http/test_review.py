"""The review page in Chromium, and its routes: one key, one label on disk, and the next picture."""

import contextlib
import csv
import http.client
import io
import json
import os
import random
import signal
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="the page needs the http extra")

from edgecnn.device.http import routes as reviews
from edgecnn.labels import SOURCES_CSV

chromium = pytest.mark.needs("chromium", "chromedriver", package="chromium chromium-driver")

HOSTILE = "<img src=x onerror=hacked=1> \u05e9"
MANY = (*(f"class {number:02}" for number in range(10)), HOSTILE)
SHOWN = "return [...document.querySelectorAll('#pictures img')].map(item => [item.naturalWidth, item.src.slice(-64)])"


@pytest.fixture
def review(serve, tmp_path):
    """Start `edgecnn review kept --into photos`; its `ask` sends requests as the page of a given reviewer."""

    def start(*arguments):
        serving = serve("kept", "--into", "photos", "--http", "0", *arguments, cwd=tmp_path, name="review")
        token = {"Authorization": f"Bearer {serving.page.partition('#token=')[2]}"}

        def ask(path="", reviewer="1", **body):
            data = json.dumps({"reviewer": reviewer, **body}).encode() if path in ("", "/answer", "/undo") else None
            status, heads, answer = serving.ask(f"/v1/review{path}", data, **token)
            return status, json.loads(answer) if heads["content-type"] == "application/json" else answer

        serving.review = ask
        return serving

    return start


def lines(tmp_path):
    return list(csv.DictReader(io.StringIO((tmp_path / "photos" / SOURCES_CSV).read_text())))


def press(browser, key):
    browser.find_element("tag name", "body").send_keys(key)


@chromium
def test_a_key_writes_a_label_and_the_next_picture_is_already_there(review, keep_pictures, browser, page, tmp_path):
    kept = keep_pictures(tmp_path / "kept", scenes=7, sample=2)
    serving = review("--json")
    browser.get(serving.page)
    page.until("left", "^7 pictures left")
    assert "token" not in browser.current_url and "guess is not shown" in page["taken"] and page["guess"] == ""
    for count, key in enumerate("12013", 1):
        serving.until(lambda: browser.execute_script(SHOWN) and browser.execute_script("return seen"))
        browser.get_log("performance")
        shown = browser.execute_script(SHOWN)
        assert shown == [[160, kept[count - 1].picture.sha256]]
        press(browser, key)
        page.until("left", f"^{7 - count} pictures? left")
        serving.until(
            lambda shown=shown: browser.execute_script("return seen") and browser.execute_script(SHOWN) != shown
        )
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [item["params"]["request"] for item in messages if item["method"] == "Network.requestWillBeSent"]
        assert asked[0]["url"] == f"{serving.url}/v1/review/answer"
        now = browser.execute_script(SHOWN)[0][1]
        assert not [request["url"] for request in asked if request["url"].endswith(now)], "it was loaded before"
    assert [line["path"].partition("/")[0] for line in lines(tmp_path)] == ["cat", "dog", "cat", "fox"]
    assert (
        page["counts"] == "4 labelled, 1 none of these, 0 skipped" and page["guess"] == "The model's guess: fox, 50.0 %"
    )
    assert page["field"].startswith("in the field 100.0 %"), "the sample is decided"
    for key, counts in (
        ("u", "3 labelled"),
        ("s", "3 labelled, 1 none of these, 1 skipped"),
        ("1", "4 labelled"),
        ("2", "5 labelled"),
    ):
        serving.until(lambda: browser.execute_script("return seen && !busy"))
        press(browser, key)
        page.until("counts", f"^{counts}")
    page.until("over", "The labels are in photos")
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(10) == 0
    serving.until(lambda: serving.lines and serving.lines[-1] == "}\n")
    summary = json.loads("".join(serving.lines))
    assert (summary["labelled"], summary["none"], summary["skipped"], summary["left"], summary["field"]["n"]) == (
        5,
        1,
        1,
        0,
        2,
    )
    assert len(lines(tmp_path)) == len(list((tmp_path / "photos").glob("*/*.jpg"))) == 5


@chromium
def test_a_class_name_on_a_button_is_not_broken(review, keep_pictures, browser, page, looks, tmp_path):
    keep_pictures(tmp_path / "kept", scenes=1, labels=("automobile", "wheelbarrow", "cat"))
    serving = review()
    rows = """
        const range = document.createRange();
        return [...document.querySelectorAll("#classes bdi")].map(item => {
            range.selectNodeContents(item);
            return [item.textContent, new Set([...range.getClientRects()].map(box => Math.round(box.top))).size];
        });
    """
    for width, _ in looks():
        browser.get(serving.page)
        page.until("left", "^1 picture left")
        assert browser.execute_script(rows) == [["automobile", 1], ["cat", 1], ["wheelbarrow", 1]], width


@chromium
def test_similar_pictures_many_and_hostile_classes_and_each_size(
    review, keep_pictures, browser, page, looks, serious, tmp_path
):
    kept = keep_pictures(tmp_path / "kept", scenes=3, group=3, labels=MANY)
    kept[8].path.write_bytes(b"\xff\xd8\xff<script>hacked=1</script>")
    evil = tmp_path / "kept" / "2026-11-28" / "'><script>hacked=1.json"
    evil.write_bytes(kept[0].path.with_suffix(".json").read_bytes())
    (tmp_path / "photos" / "<b onclick=hacked=1>").mkdir(parents=True)
    serving = review()
    for width, theme in looks():
        browser.get_log("browser")
        browser.get(serving.page)
        page.until("left", "^8 pictures left")
        serving.until(lambda: [width for width, _ in browser.execute_script(SHOWN)] == [160] * 3)
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
        overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{overflow} px wider than {width}"
        if (width < 500) == (theme == "light"):
            assert serious() == [], (width, theme)
    assert "<b onclick" in page["classes"] and "<img src=x onerror" in page["classes"]
    box = browser.find_element("id", "say").rect
    assert max(box["width"], box["height"]) <= 1, "text for screen readers is not visible"
    assert (
        page["together"].startswith("These look alike: your answer applies to all 3.") and "damaged" in page["counts"]
    )
    browser.find_elements("css selector", "#pictures button")[1].click()
    assert page["together"].startswith("These look alike: your answer applies to 2 of 3.")
    browser.find_element("id", "name").send_keys("09\n")
    page.until("left", "^6 pictures left")
    browser.find_element("id", "name").send_keys("a/b\n")
    page.until("problem", "cannot be the name of a class: it contains a slash")
    browser.find_element("id", "name").clear()
    browser.find_element("id", "name").send_keys("an owl\n")
    page.until("counts", "^3 labelled")
    assert sorted(line["path"].partition("/")[0] for line in lines(tmp_path)) == ["an owl", "class 09", "class 09"]
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelectorAll('img[src=x], [onclick]').length") == 0


def test_a_folder_of_plain_photos_is_reviewed_without_guesses_and_keeps_its_formats(
    serve, edgecnn, tmp_path, monkeypatch
):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("new/b.png", "new/walk/a.JPG", "new/photos/cat/known.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (90 * number, 0, 0)).save(tmp_path / name)
        os.utime(tmp_path / name, (1795860902.5 + number, 1795860902.5 + number))
    (tmp_path / "new/broken.jpg").write_bytes(b"no image")
    (tmp_path / "new/notes.txt").write_text("no photo")
    empty = edgecnn("review", "new/photos/cat", "--into", "new/photos")
    assert empty.code == 5 and "no photos" in empty.err
    for left in (2, 1):
        serving = serve("new", "--into", "new/photos", "--http-open", cwd=tmp_path, name="review")

        def ask(path, serving=serving, **body):
            status, _, answer = serving.ask(f"/v1/review{path}", json.dumps({"reviewer": "1", **body}).encode())
            assert status == 200, answer
            return json.loads(answer)

        shown = ask("")
        assert (shown["left"], shown["unreadable"], shown["classes"]) == (left, 1, ["cat"])
        question = shown["next"][0]
        assert (question["why"], question["guess"], question["score"]) == ("unsure", None, None)
        assert serving.ask(f"/v1/review/pictures/{question['pictures'][0]}")[2].startswith(b"\xff\xd8\xff")
        ask("/answer", pictures=question["pictures"], decision="label", label="cat")
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(10) == 0
    files = sorted((tmp_path / "new/photos/cat").iterdir())
    copies = [(path.name[:23], path.suffix) for path in files[:2]]
    assert (
        copies == [("20261128T101502.500000Z", ".png"), ("20261128T101503.500000Z", ".jpg")]
        and files[2].name == "known.png"
    )
    assert [path.read_bytes() for path in files[:2]] == [
        (tmp_path / name).read_bytes() for name in ("new/b.png", "new/walk/a.JPG")
    ]
    with open(tmp_path / "new/photos" / SOURCES_CSV, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["board"], row["guess"]) for row in rows] == [
        (f"cat/{path.name}", "new", "") for path in files[:2]
    ]


def test_a_plain_photo_is_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    from PIL import Image

    from edgecnn.device import review

    read, reader = [], review.read_file
    monkeypatch.setattr(review, "read_file", lambda path: read.append(path.name) or reader(path))
    for name, colour in (("a.png", 10), ("b.png", 20)):
        Image.new("L", (4, 4), colour).save(tmp_path / name)
    listed = review.Plain(tmp_path / "photos")
    first = [kept.picture.sha256 for kept in listed(tmp_path)]
    Image.new("L", (5, 5), 30).save(tmp_path / "b.png")
    assert len(set(first) & {kept.picture.sha256 for kept in listed(tmp_path)}) == 1
    assert read == ["a.png", "b.png", "b.png"]


def test_a_second_reviewer_and_an_answer_that_cannot_be_written_get_a_clear_error(
    review, keep_pictures, edgecnn, tmp_path, monkeypatch
):
    kept = keep_pictures(tmp_path / "kept", scenes=3)
    names = [one.picture.sha256 for one in kept]
    serving = review()
    monkeypatch.chdir(tmp_path)
    other = edgecnn("review", "kept", "--into", "photos")
    assert other.code == 19 and "review into photos is running" in other.err
    assert serving.ask("/v1/review", b"{}")[0] == 401 and serving.ask("/review", Accept="text/html")[2].startswith(
        b"<!doctype"
    )
    assert serving.review()[1]["next"][0]["pictures"] == names[:1]
    for ask in (serving.review, lambda **who: serving.review("/answer", pictures=names[:1], decision="skip", **who)):
        status, answer = ask(reviewer="2")
        assert status == 409 and answer["code"] == "Reviewing" and "another page is reviewing" in answer["error"]
    label = {"pictures": names[:1], "decision": "label", "label": "cat"}
    assert serving.review("/answer", **label)[0] == 200
    assert serving.review("/v1", reviewer="2")[0] == 404
    token = {"Authorization": f"Bearer {serving.page.partition('#token=')[2]}"}
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert serving.ask("/v1/review?reviewer=2&take", **link, **token)[0] == 405, "a link on another site takes nothing"
    assert serving.ask("/v1/review", b'{"reviewer": "2", "take": true}', Origin="http://evil", **token)[0] == 403
    assert serving.review()[0] == 200
    assert serving.review(reviewer="2", take=True)[0] == 200 and serving.review()[0] == 409
    assert serving.review("/answer", "2", **label)[0] == 200, "the same answer again"
    assert serving.review("/answer", "2", **label | {"label": "dog"})[1]["code"] == "Decided"
    for wrong in (
        {"pictures": ["../x"], "decision": "skip"},
        {"pictures": names, "decision": "maybe"},
        {"pictures": 3},
        {"take": 1},
    ):
        assert serving.review("/answer", "2", **wrong)[0] == 400
    assert serving.review(f"/pictures/{names[1]}")[1].startswith(b"\xff\xd8\xff")
    assert serving.review("/pictures/..%2fx")[0] == 404
    assert [line["sha256"] for line in lines(tmp_path)] == names[:1]
    assert serving.review("/undo", "2")[1]["undo"] == 0 and lines(tmp_path) == []

    kept[1].path.write_bytes(kept[2].path.read_bytes())
    status, answer = serving.review("/answer", "2", **label | {"pictures": names[1:2]})
    assert status == 400 and answer["code"] == "ImageError", "the picture has changed since it was shown"
    shown = serving.review(reviewer="2")[1]
    assert [question["pictures"] for question in shown["next"]] == [names[:1], names[2:]] and shown["unreadable"] == 1

    (tmp_path / "photos" / "fox").write_text("a file, where the class's folder would be")
    status, answer = serving.review("/answer", "2", **label | {"label": "fox"})
    assert status == 500 and answer["code"] == "OutputError" and "photos/fox" in answer["error"]
    assert serving.review(reviewer="2")[1]["left"] == 2 and lines(tmp_path) == []


def test_a_page_holds_the_review_for_thirty_seconds_after_its_last_request(monkeypatch):
    now, desk = [100.0], reviews.Desk(lambda: None)
    monkeypatch.setattr(reviews, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def may(reviewer, after_s=0.0, take=False):
        now[0] += after_s
        return desk.claim(reviewer, take) is None

    assert may("first") and not may("second", 29.0) and may("first") and not may("second", 29.0)
    assert may("second", 1.0) and not may("first", 29.0), "a refused request holds nothing"
    assert may("first", take=True) and not may("second") and may("second", 30.0)


@pytest.mark.guard
def test_the_command_is_killed_during_an_answer(review, keep_pictures, tmp_path):
    of = {one.picture.sha256: one.guess for one in keep_pictures(tmp_path / "kept", scenes=60)}
    chance, heard = random.Random(1), set()
    for _ in range(5):
        serving, left = review(), chance.randrange(1, 8)
        with contextlib.suppress(OSError, http.client.HTTPException):
            while questions := serving.review()[1]["next"]:
                names, left = questions[0]["pictures"], left - 1
                if left == 0:
                    threading.Timer(chance.uniform(0, 0.05), serving.process.kill).start()
                if serving.review("/answer", pictures=names, decision="label", label=of[names[0]])[0] == 200:
                    heard |= {*names}
        serving.process.wait()
        files = [path.name[-16:-4] for path in (tmp_path / "photos").glob("*/[!.]*")]
        assert len(set(files)) == len(files) and {name[:12] for name in heard} <= {*files}
    assert 0 < len(heard) < len(of)
    review().review()
    on_disk = {line["sha256"]: line["path"].partition("/")[0] for line in lines(tmp_path)}
    assert heard <= on_disk.keys() and on_disk.items() <= of.items() and len(lines(tmp_path)) == len(on_disk)


def test_the_boards_own_page_takes_labels_too(serve, keep_pictures, tmp_path):
    names = [one.picture.sha256 for one in keep_pictures(tmp_path / "kept", scenes=3, sample=1)]
    arguments = ("--keep", "kept", "--keep-days", "3650", "--keep-unsure", "0", "--keep-random", "0")
    serving = serve("synthetic:64x48?fps=10", *arguments, cwd=tmp_path).ready()
    assert b"Review" in serving.ask("/review")[2]
    shown = json.loads(serving.ask("/v1/review", b'{"reviewer": "1"}')[2])
    assert [question["pictures"] for question in shown["next"]] == [[name] for name in names]
    assert {"cat", "fox", "automobile"} <= {*shown["classes"]} and shown["into"] is None, (
        "the model's classes are there too"
    )
    label = {"reviewer": "1", "pictures": names[:1], "decision": "label", "label": "cat"}
    assert serving.ask("/v1/review/answer", json.dumps(label).encode())[0] == 200
    assert serving.ask(f"/v1/review/pictures/{names[1]}")[0] == 200
    serving.process.kill()
    (line,) = map(json.loads, (tmp_path / "kept" / "labels.jsonl").read_text().splitlines())
    assert (line["sha256"], line["decision"], line["label"]) == (names[0], "label", "cat")
