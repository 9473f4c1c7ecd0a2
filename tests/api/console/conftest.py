"""The console in a real browser, in front of a service whose engine is scripted."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, ViewportSize, expect, sync_playwright

from kvblend.store import CPUTier, DiskTier, TieredStore
from tests.api.console.scripted_blends import ScriptedBlends
from tests.api.scripted_service import INFO, ScriptedService, scripted_service
from tests.core.calibrations import FINGERPRINT

DESKTOP: ViewportSize = {"width": 1280, "height": 900}
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium: Playwright's own where it is installed, else the machine's.

    Of one module: while Playwright runs, the thread has a running event loop, and no other test can have its own.
    """
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"no browser: install Debian's chromium, or run `playwright install chromium`: {error}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def console_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the service's home and its CPU tier."""
    return tmp_path_factory.mktemp("console")


@pytest.fixture(scope="session")
def blends(console_folder: Path) -> Iterator[ScriptedBlends]:
    """What the engine keeps and reports, over two tiers."""
    info = INFO.model_copy(update={"model_fingerprint": FINGERPRINT, "max_raw_logprobs": 20})
    cpu = CPUTier(console_folder / "cpu", budget_bytes=1 << 24)
    with TieredStore([cpu, DiskTier(console_folder / "home" / "kv", budget_bytes=1 << 30)]) as store:
        yield ScriptedBlends(store, info)


@pytest.fixture(scope="session")
def console(
    blends: ScriptedBlends, console_folder: Path, demo_model_path: Path, embedding_model_path: Path
) -> Iterator[ScriptedService]:
    """A service that keeps KV of zeros and reports blends."""
    with scripted_service(
        console_folder,
        model=demo_model_path,
        embedding_model=embedding_model_path,
        info=blends.info,
        blend=blends.blend,
        encode=blends.encode,
        cpu_path=console_folder / "cpu",
        cpu_bytes=1 << 24,
    ) as service:
        yield service


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages of a size and theme; whatever they log as an error, or throw, fails the test."""
    faults: list[str] = []
    contexts = []

    def opened(url: str, *, viewport: ViewportSize = DESKTOP, theme: str = "light", strict: bool = True) -> Page:
        context = browser.new_context(viewport=viewport, color_scheme="dark" if theme == "dark" else "light")
        contexts.append(context)
        page = context.new_page()
        if strict:
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults, faults
