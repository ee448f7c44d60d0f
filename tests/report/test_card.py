"""The card: whatever the name of a class, file or dataset, Markdown renderers show it and do nothing else with it."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib", reason="the workstation side needs the train extra")

from edgecnn.report.card import card
from edgecnn.report.markdown import plain
from edgecnn.verify.confidence import stored_confidence
from edgecnn.verify.parity import parity_report

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "a | b",
    "[x](javascript:alert(1))",
    "`c`",
    "**&lt;b&gt;**",
    "my_class",
    "\\|",
)


def renderers():
    import markdown
    from markdown_it import MarkdownIt

    yield lambda text: markdown.markdown(text, extensions=["tables"])
    yield MarkdownIt("commonmark").enable("table").render


@pytest.fixture
def text(drawn_run, finished_run):
    run = drawn_run(labels=HOSTILE, n=400, title="</p><script>alert(1)</script>")
    run.write_info(replace(run.info, seconds=1.0))
    return card(run, parity_report(run), stored_confidence(finished_run))


@pytest.mark.parametrize("render", renderers(), ids=("python-markdown", "markdown-it"))
def test_hostile_names_are_shown_and_do_nothing(text, render):
    html = render(text)
    allowed = {"h1", "h2", "p", "ul", "li", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "hr", "strong"}
    assert set(re.findall(r"<([a-z0-9]+)", html)) <= allowed, "no link, picture or script"
    rows = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    cells = [len(re.findall(r"<t[hd]\b", row)) for row in rows]
    assert set(cells) == {9, 8} and len(rows) >= 6, "no more cells than the heading has"
    shown = re.sub(r"&(lt|gt|amp|quot);|&#(\d+);", lambda found: entity(found), html)
    for label in HOSTILE:
        assert label in shown


def entity(found):
    return chr(int(found[2])) if found[2] else {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}[found[1]]


def test_usual_names_stay_as_they_are():
    assert plain("tflite-int8, my_class 5 (at most 1.00)") == "tflite-int8, my_class 5 (at most 1.00)"
