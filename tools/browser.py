"""A headless Chromium that takes pictures of pages, for the tools that make docs/assets."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--lang=en-GB",
)  # fmt: skip


@contextlib.contextmanager
def open_browser() -> "Iterator[Chrome]":
    """Yield the browser; it ends with the block."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def set_view(browser: "Chrome", size: tuple[int, int], theme: str = "light") -> None:
    """Give the page a width, a height and a theme."""
    media = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def save(browser: "Chrome", path: Path | str) -> None:
    """Write what the browser shows as a PNG of at most 255 colours."""
    browser.save_screenshot(str(path))
    picture = Image.open(path).quantize(255, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def show(browser: "Chrome", page: Path, path: Path | str, size: tuple[int, int], theme: str = "light") -> None:
    """Open a file and write a picture of its first screen."""
    set_view(browser, size, theme)
    browser.get(page.resolve().as_uri())
    save(browser, path)
