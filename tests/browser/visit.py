"""One visit of the page, and what it shows."""

import hashlib
import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.chromium import drop, find_chromium, settle, wait_for_answers, wait_for_pictures

_TIMEOUT_MS = 30_000

CHROMIUM = find_chromium()
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome that starts is on the PATH")


class Visit:
    """One visit of the page. Notes what a page must not do: errors in its console, requests to anywhere else."""

    def __init__(self, browser, url, expected_statuses=(), **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.context.set_default_timeout(_TIMEOUT_MS)
        self.page = self.context.new_page()
        self.requests, self.errors, self.expected_statuses = [], [], set(expected_statuses)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._hear)
        self._url = url
        self.page.goto(url)
        expect(self.page.locator("body[data-ready]")).to_be_attached()

    def _hear(self, message):
        refused = re.search(r"the server responded with a status of (\d+)", message.text)
        if refused and int(refused[1]) in self.expected_statuses:
            return
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def end(self):
        self.context.close()
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith((self._url, "blob:", "data:"))] == []

    def row(self, name):
        return self.page.locator(".study", has=self.page.locator(".name", has_text=re.compile(f"^{re.escape(name)}$")))

    def open(self, name):
        self.row(name).locator(".open").click()
        wait_for_pictures(self.page)

    def drop(self, *paths, number=None):
        drop(self.page, paths)
        wait_for_answers(self.page, number or len(paths))

    def pixels(self, place=0):
        """What is on a view's canvas, as a hash."""
        settle(self.page)
        return hashlib.sha256(
            self.page.locator(".view canvas").nth(place).evaluate("canvas => canvas.toDataURL()").encode()
        ).hexdigest()


def answer_of(url, files):
    """What the API answers to the study of these files."""
    views = [("views", (file.name, file.read_bytes())) for file in sorted(files)]
    return httpx.post(f"{url}v1/studies/predict", files=views, timeout=60).json()


def numbers_in(locator):
    """The probabilities shown: the text, and the number that it stands for."""
    return [
        (text, float(value)) for text, value in locator.evaluate_all("all => all.map(e => [e.textContent, e.value])")
    ]
