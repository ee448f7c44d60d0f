"""Every command line in the README and the documents uses existing options, and is run, or listed with the reason why not."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
import yaml

from edgecnn.cli import COMMANDS, app

UsageError = typer.BadParameter.__base__  # typer carries its own click
ROOT = Path(__file__).parent.parent.parent
FIRST = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "tutorial.md"]
PAGES = [*FIRST, *sorted(set((ROOT / "docs").glob("*.md")) - set(FIRST))]
LANGUAGES = {"sh", "text", "toml", "yaml", "ini", "python", ""}
"""Languages of a fenced block. Only `sh` holds commands; the README has one picture without a language."""

TRAINING = "minutes of training; the run of the session's fixture is a real one"
CAMERA = "needs a camera, a network stream or a video; tests/device/cameras has fakes of each"
QEMU = "needs QEMU and Debian's packages; tests/emulate/test_machine.py runs it"
INSTALL = "installs from a network; make test and make release do"
BENCH = "minutes of measuring"
REPOSITORY = "writes into the repository, or is what runs these tests"
NOT_RUN = {
    r"pip install .*": INSTALL,
    r"make .*|\.venv/bin/python -m pytest .*": REPOSITORY,
    r"python tools/(readme|ship|terminal|pictures|live)\.py.*|edgecnn run models/digits/recipe\.toml": REPOSITORY,
    r"python tools/bench/.*": BENCH,
    r"python tools/data/.*": "downloads CIFAR-10; tests/tools/test_tools.py writes small images",
    r"python tools/deb\.py .*": INSTALL + "; tests/tools/test_tools.py and tests/emulated have packages",
    r"edgecnn benchmark.*": BENCH + "; tests/device/test_benchmark.py measures less",
    r"edgecnn train (?!.*--(dry-run|keys)).*": TRAINING,
    r"edgecnn networks --data photos/": "photos choose in minutes; tests/train/test_candidates.py has a small choice",
    r"edgecnn inspect photos/ --run runs/photos": "needs a run by folds; tests/stages/test_folds.py has one",
    r"edgecnn train --data photos/ --dry-run": "times a large network; tests/cli/test_commands.py times a small one",
    r"edgecnn (classify|capture) .*--camera.*": CAMERA,
    r"edgecnn classify (/dev/video2|rtsp:|clip\.mp4|'exec:rpicam).*": CAMERA,
    r"edgecnn classify --mqtt .* --mqtt-forget": "needs a broker; tests/device/mqtt/test_mosquitto.py has one",
    r"edgecnn classify watch:inbox --json": "runs until it is stopped; tests/device/cameras/test_folder.py stops it",
    r"edgecnn classify .*--provider cuda": "needs an NVIDIA GPU",
    r"edgecnn verify --on .*": QEMU,
    r"python tools/write_images\.py .*|edgecnn explain digits/.*": "of the repository's own model; tests/cli/test_commands.py has it",
    r"edgecnn report runs/small runs/large .*": "needs two runs; tests/report/test_page.py has them",
    r"edgecnn run door\.toml": TRAINING + "; tests/docs/test_examples.py runs the page",
    r"edgecnn (verify|run) .*--against .*": "needs an older bundle; tests/stages/test_against.py has one",
    r"edgecnn bundle runs/door-1 .*": "follows such a verify; tests/stages/test_second_day.py runs the line",
    r"edgecnn verify .*--tflite-python .*": "needs an environment with tflite-runtime; tests/verify/test_golden.py has one",
    r"edgecnn export --for .*": "needs a run of 224x224 RGB images; tests/interop/test_programs.py has one",
    r"edgecnn slot (?!list).*": "changes the releases of this machine; tests/cli/test_commands.py has a folder of its own",
    r"edgecnn update.*": "needs a repository, and changes this machine; tests/device/update has boards in folders",
    r"edgecnn release .*|(cp|mv|rsync) .*": "needs keys and bundles; tests/release/test_page.py runs the page",
    r"edgecnn classify 'folder:more-photos.*": "needs a run; tests/device/cameras/test_folder.py plays folders",
    r"edgecnn review .*": "serves until it is stopped; tests/device/http/test_review.py stops it",
    r"edgecnn deploy .*|edgecnn release .*--hosts .*": "needs boards with ssh servers; tests/fleet has some",
    r"edgecnn service .*": "needs systemd and its options; tests/cli/test_commands.py and tests/device/service have fakes of both",
    r"edgecnn import .*|edgecnn compare .*": "needs models of other programs; tests/export and tests/verify make them",
    r"edgecnn .* onnx\.edgecnn.*": "follows such an import; tests/docs/test_examples.py runs the page",
}  # fmt: skip
"""Lines that no test here runs, as regular expressions for whole lines, with the reasons."""

GITHUB = ("gh", "test")
"""Programs in workflows that no page mentions."""

OTHER_CODES = {
    "edgecnn inspect photos/": (32,),  # earlier pages have put frames into it
    "edgecnn doctor": (26,),  # a machine may have a problem that doctor calls an error
    "edgecnn verify --target-error": (23,),  # the tiny model is not good enough
    "edgecnn verify --max-drop 0.5 --confident": (14,),
    "edgecnn bundle --out": (14,),  # after that line
    "edgecnn stress --split test --at-least": (33,),
}
"""The beginnings of lines that may end with an exit code other than 0."""


class Line(NamedTuple):
    """A command line from a page."""

    page: str
    number: int
    text: str


def lines_of(page: str, text: str) -> list[Line]:
    """Return a page's command lines: those in its sh blocks, without comments."""
    lines, language = [], None
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r" *```(.*)$", line)
        if fence:
            assert language is not None or fence[1] in LANGUAGES, (
                f"{page}:{number}: a block of unknown language {fence[1]!r}"
            )
            language = fence[1] if language is None else None
        elif language == "sh" and line.strip():
            lines.append(Line(page, number, line.strip()))
    return lines


def documented() -> list[Line]:
    return [line for page in PAGES for line in lines_of(page.name, page.read_text(encoding="utf-8"))]


def examples_in_help() -> list[Line]:
    pages = sorted((ROOT / "docs" / "commands").glob("*.md"))
    return [line for page in pages for line in lines_of(f"commands/{page.name}", page.read_text(encoding="utf-8"))]


def in_workflows() -> list[Line]:
    """Return the workflows' command lines, except those that exist only on GitHub's machines."""
    found = []
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            for number, step in enumerate(job["steps"], 1):
                lines = step.get("run", "").splitlines()
                found += [Line(f"{path.name}:{name}", number, line) for line in lines if line.split()[0] not in GITHUB]
    return found


def reason_not_to_run(text: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.fullmatch(pattern, text)), None)


def built(name: str):
    return typer.main.get_command(app).get_command(None, name)


def parse(words: list[str]) -> None:
    """Parse a program's command line as the program would, without running it."""
    program, *arguments = words
    if program == "edgecnn":
        name, *arguments = arguments
        assert name in COMMANDS, f"there is no command {name}"
        built(name).make_context(f"edgecnn {name}", arguments)
    elif program in ("python", ".venv/bin/python"):
        script = ROOT / arguments[0]
        if arguments[0] == "-m":
            assert arguments[1] == "pytest"
            script = ROOT / arguments[-1]
            arguments = []
        assert script.is_file(), f"there is no {script}"
        source = script.read_text(encoding="utf-8")
        for option in [item for item in arguments if item.startswith("--")]:
            assert f'"{option}"' in source, f"{script.name} has no {option}"
    elif program == "make":
        for target in arguments:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
    elif program == "pip":
        for name in ",".join(re.findall(r"\.\[([a-z,]+)\]", " ".join(arguments))).split(","):
            assert not name or f"\n{name} = [" in (ROOT / "pyproject.toml").read_text(), f"there is no extra {name}"
    elif program == "bash":
        assert (ROOT / arguments[0]).is_file(), f"there is no {arguments[0]}"
    else:
        assert program in ("find", "cp", "mv", "rsync"), f"{program} is a program unknown to this test"


def programs(text: str) -> list[list[str]]:
    return [shlex.split(part) for part in text.split(" | ")]


@pytest.mark.parametrize(
    "line", documented() + examples_in_help() + in_workflows(), ids=lambda line: f"{line.page}:{line.number}"
)
def test_every_command_line_is_valid(line):
    for words in programs(line.text):
        try:
            parse(words)
        except UsageError as error:
            pytest.fail(f"{line.page}:{line.number}: {line.text}: {error.format_message()}")


def test_the_readmes_recorded_commands_match_its_block_to_copy():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    recorded = re.findall(r"^\$ (.+)$", text, re.MULTILINE)
    for line in recorded:
        parse(shlex.split(line))
    typed = [line.text for line in lines_of("README.md", text) if line.text.startswith("edgecnn")]
    assert [line.removesuffix(" --quick") for line in recorded] == typed


def test_an_option_that_does_not_exist_is_noticed():
    for wrong in ("edgecnn verify --max-dorp 1", "edgecnn train --epochs many", "edgecnn capture --camera"):
        with pytest.raises(UsageError):
            parse(wrong.split())
    for wrong in ("edgecnn verfy", "python tools/readme.py --chek", "make tset", "pip install .[trian]"):
        with pytest.raises(AssertionError):
            parse(wrong.split())


def test_the_workflows_run_each_python_and_the_readmes_commands():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = [item.rsplit(" ", 1)[1] for item in about["classifiers"] if "Python :: 3." in item]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert [jobs[name]["strategy"]["matrix"]["python"] for name in ("workstation", "device")] == [pythons] * 2
    assert {"make demo", "make test", "make docs", "make release", "make deb"} <= {line.text for line in in_workflows()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_running_text_exist(page):
    for span in re.findall(r"`(edgecnn [a-z][^`]*)`", page.read_text(encoding="utf-8")):
        name, *words = span.split()[1:]
        assert name in COMMANDS, span
        known = {option for parameter in built(name).params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, span


def test_the_files_that_tests_name_exist():
    for path in (ROOT / "tests").rglob("*.py"):
        for name in re.findall(r"\btests/[a-z][\w/]*(?:\.py)?", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_every_skipped_line_is_listed_once_and_every_entry_is_used():
    texts = {line.text for line in documented()}
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, text) for text in texts), f"no line is like {pattern!r}: remove it"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, finished_run, tiny_recipe):
    """A folder with what the pages mention: a trained run without exports, photos, a recipe. The pages share it in their order."""
    from PIL import Image

    from edgecnn.data import open_dataset
    from edgecnn.recipe import DataRecipe
    from edgecnn.runs import Run
    from edgecnn.stages.bundle import bundle_path

    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Run(folder / "runs" / finished_run.name)
        shutil.copytree(finished_run.path, run.path)
        run.make_latest()
        for path in (bundle_path(run), *run.path.glob("model-*.*")):
            path.unlink()
        shutil.copy(bundle_path(finished_run), "photos.edgecnn")
        shutil.copy(tiny_recipe, "recipe.toml")
        dataset = open_dataset(DataRecipe(source="digits"))
        split = dataset.load(("validation",), height=8, width=8, channels=1, stage="demo")["validation"]
        pictures = [Image.fromarray(pixels[:, :, 0]).resize((64, 64)) for pixels in split.images[:60]]
        for index, picture in enumerate(pictures):
            place = Path("photos", "cat" if index % 2 else "dog")
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{index}.png")
        Path("images").mkdir()
        for path in ("photo.jpg", "images/one.jpg"):
            pictures[0].save(path)
    return folder


WRITES = {
    "edgecnn bundle": "runs/latest/tiny.edgecnn",
    "edgecnn bundle --out cats.edgecnn --serial 2": "cats.edgecnn",
    "edgecnn bundle --out photos.edgecnn": "photos.edgecnn",
}
"""Outputs that an earlier line has already written. They are removed, since nothing is replaced without --force."""

LIMITS = {"stress": ("--limit", "10")}
"""Options added to a command's lines unless present: with all images it takes long, and tests/stress covers it."""

RUN: set[str] = set()
"""Lines that a page has run and that other pages need not run again."""

FIRST = ("README.md", "tutorial.md")
"""Pages whose lines run by default; the lines of all pages are a slow test."""


@pytest.fixture
def run_lines(edgecnn, request, monkeypatch, blank_plots):
    """Run a page's lines that can run here and have not run yet; return their number."""

    def run(page):
        texts = [line.text for line in lines_of(page.name, page.read_text(encoding="utf-8"))]
        texts = [text for text in texts if reason_not_to_run(text) is None and text not in RUN]
        if not texts:
            return 0
        pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
        monkeypatch.chdir(request.getfixturevalue("workplace"))
        for text in texts:
            if text in WRITES:
                Path(WRITES[text]).unlink(missing_ok=True)
            (_, *arguments), *others = programs(text)
            limit = () if "--limit" in arguments else LIMITS.get(arguments[0], ())
            result = edgecnn(*arguments, *limit)
            allowed = next((codes for start, codes in OTHER_CODES.items() if text.startswith(start)), ())
            assert result.code in (0, *allowed), f"{page.name}: {text}: exit code {result.code}\n{result.err}"
            for _, script, *rest in others:
                command = [sys.executable, ROOT / script, *rest]
                done = subprocess.run(command, input=result.out, capture_output=True, text=True)
                assert done.returncode == 0 and done.stdout, f"{page.name}: {text}: {done.stderr}"
            RUN.add(text)
        return len(texts)

    return run


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in FIRST], ids=lambda page: page.name)
def test_the_lines_of_the_first_pages_run(page, run_lines):
    assert run_lines(page)


@pytest.mark.slow
def test_the_lines_of_all_pages_run(run_lines):
    assert sum(map(run_lines, PAGES)) > 20
