"""Debian's Chromium on the viewer's page, a server for it in a thread of this process, and phantom studies to drop."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright
from starlette.types import ASGIApp

from mura_ray.data.phantom_view import DIFFICULTIES, render_view
from mura_ray.ports import free_port

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


def find_chromium() -> str | None:
    """A Chromium or Chrome that starts: Ubuntu's `chromium-browser` only says to install a snap."""
    for name in NAMES:
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    return None


@contextmanager
def browsing(executable: str) -> Iterator[Browser]:
    """A browser without windows, which asks nobody but this machine for anything."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root it does not start with it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*_QUIET, *sandbox])
        yield browser
        browser.close()


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The URL of an application while it is served."""
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def write_study(folder: Path, study_type: str, label: int, num_views: int, seed: int = 0) -> list[Path]:
    """A phantom study in a folder of its own: the files of its views."""
    folder.mkdir(parents=True)
    files = [folder / f"view{number + 1}.png" for number in range(num_views)]
    for number, file in enumerate(files):
        gray, _ = render_view(study_type, label, DIFFICULTIES["easy"], (seed, 0, 0), number)
        assert cv2.imwrite(str(file), gray)
    return files


def drop(page: Page, paths: Sequence[Path]) -> None:
    """Drops files and folders of this machine on the page, as a file manager does."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 400, "data": data})
    session.detach()


def wait_for_answers(page: Page, num_studies: int) -> None:
    """Until so many studies are in the list, and each is answered or failed."""
    page.wait_for_function(
        """number => {
            const states = [...document.querySelectorAll(".study")].map((study) => study.dataset.state);
            return states.length === number && states.every((state) => ["answered", "failed"].includes(state));
        }""",
        arg=num_studies,
    )


def wait_for_pictures(page: Page) -> None:
    """Until each view of the open study is drawn or says why not, and nothing waits to be drawn."""
    page.wait_for_function(
        """() => [...document.querySelectorAll(".view")].every(
            (view) => view.querySelector(".corner").textContent || view.querySelector(".message.problem"))"""
    )
    settle(page)


def settle(page: Page) -> None:
    """Until what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
