"""The viewer in a real browser, before a server with a small random ensemble."""

import base64
import hashlib
import json
import re
import struct

import httpx
import numpy as np
import pytest
from playwright.sync_api import Error, expect

from mura_ray.images import read_gray
from mura_ray.model.ensemble import Ensemble, write_ensemble
from mura_ray.render.overlay import encode_png, overlay
from serve.api import build_api
from serve.problems import ProblemError, problem_response
from tests.browser.chromium import (
    browsing,
    drop,
    find_chromium,
    serving,
    settle,
    wait_for_answers,
    wait_for_pictures,
    write_study,
)
from tests.unit.tiny_ensemble import DATA_ID, MANIFEST_SHA256, member_source

CHROMIUM = find_chromium()
TIMEOUT_MS = 30_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome that starts is on the PATH")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    sources = [member_source(folder, seed, 0.3 + seed / 10, image_size=96) for seed in range(2)]  # maps of 3 x 3
    write_ensemble(str(folder / "ensemble"), sources, data_id=DATA_ID, data_manifest_sha256=MANIFEST_SHA256)
    return Ensemble.load(str(folder / "ensemble"))


@pytest.fixture(scope="module")
def api(ensemble):
    return build_api(ensemble)


@pytest.fixture(scope="module")
def url(api):
    with serving(api) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM is not None
    with browsing(CHROMIUM) as browser:
        yield browser


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A wrist of two views, a shoulder of one, and a hand whose second view is cut off."""
    root = tmp_path_factory.mktemp("studies")
    write_study(root / "wrist", "wrist", 1, 2)
    write_study(root / "shoulder", "shoulder", 0, 1)
    _, cut = write_study(root / "hand", "hand", 1, 2)
    cut.write_bytes(cut.read_bytes()[:-2000])
    return root


class Visit:
    """One visit of the page. Notes what a page must not do: errors in its console, requests to anywhere else."""

    def __init__(self, browser, url, expected_statuses=(), **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.context.set_default_timeout(TIMEOUT_MS)
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


@pytest.fixture
def visit(browser, url):
    visit = Visit(browser, url)
    yield visit
    visit.end()


def answer_of(url, folder, **query):
    files = [("views", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]
    return httpx.post(f"{url}v1/studies/predict", files=files, params=query, timeout=60).json()


def numbers_in(locator):
    """The probabilities shown: the text, and the number that it stands for."""
    return [
        (text, float(value)) for text, value in locator.evaluate_all("all => all.map(e => [e.textContent, e.value])")
    ]


def test_dropped_studies_are_listed_by_probability_as_the_api_gives_it(visit, url, studies):
    visit.drop(studies / "wrist", studies / "shoulder")
    expected = {name: answer_of(url, studies / name)["probability"] for name in ("wrist", "shoulder")}
    ordered = sorted(expected, key=lambda name: -expected[name])
    assert abs(expected["wrist"] - expected["shoulder"]) > 1e-4
    assert visit.page.locator(".study .name").all_text_contents() == ordered
    shown = numbers_in(visit.page.locator(".study .probability"))
    assert shown == [(f"{expected[name]:.4f}", pytest.approx(expected[name], abs=1e-6)) for name in ordered]
    expect(visit.page.locator("#progress")).to_have_text("2 of 2 studies")
    expect(visit.row("wrist").locator(".count")).to_have_text("2 views")


def test_an_open_study_shows_every_number_of_the_answer(visit, url, studies):
    visit.drop(studies / "wrist")  # the only one opens by itself
    wait_for_pictures(visit.page)
    answer = answer_of(url, studies / "wrist")
    probabilities = [part["probability"] for part in (answer, *answer["views"], *answer["members"])]
    shown = numbers_in(visit.page.locator("#numbers data"))
    assert shown == [(f"{number:.4f}", pytest.approx(number, abs=1e-6)) for number in probabilities]
    text = visit.page.locator("#numbers").text_content()
    for number in probabilities:
        assert f"{100 * float(f'{number:.4f}'):.2f} %" in text
    assert ("Abnormal" if answer["abnormal"] else "Normal") in text
    assert answer["ensemble"]["id"] in text
    above = numbers_in(visit.page.locator(".view .probability"))
    assert [number for _, number in above] == pytest.approx([view["probability"] for view in answer["views"]], abs=1e-6)


def test_the_map_goes_and_comes_back_without_asking_the_server(visit, studies):
    visit.drop(studies / "wrist")
    wait_for_pictures(visit.page)
    with_map, num_requests = [visit.pixels(place) for place in range(2)], len(visit.requests)
    visit.page.locator("#cam").click()
    expect(visit.page.locator("#cam")).to_have_attribute("aria-pressed", "false")
    without = [visit.pixels(place) for place in range(2)]
    visit.page.locator("#cam").click()
    assert [visit.pixels(place) for place in range(2)] == with_map
    visit.page.locator("#opacity").fill("90")
    strong = visit.pixels()
    visit.page.locator("#opacity").fill("0")
    assert [visit.pixels(place) for place in range(2)] == without
    assert len({*with_map, *without, strong}) == 5
    assert len(visit.requests) == num_requests


def test_a_window_is_moved_by_drag_slider_and_key_and_comes_back(visit, studies):
    visit.drop(studies / "shoulder")
    wait_for_pictures(visit.page)
    canvas, first = visit.page.locator(".view canvas"), visit.pixels()
    box, seen = canvas.bounding_box(), {first}

    def reset():
        visit.page.locator("#reset").click()
        assert visit.pixels() == first

    for button, key in (("right", None), ("left", "Shift")):
        if key:
            visit.page.keyboard.down(key)
        visit.page.mouse.move(box["x"] + 100, box["y"] + 100)
        visit.page.mouse.down(button=button)
        visit.page.mouse.move(box["x"] + 20, box["y"] + 150 + 20 * len(seen), steps=3)
        visit.page.mouse.up(button=button)
        if key:
            visit.page.keyboard.up(key)
        seen.add(visit.pixels())
        assert float(visit.page.locator("#width").input_value()) < 256
        assert float(visit.page.locator("#level").input_value()) > 128
        reset()
    for slider in ("level", "width"):
        visit.page.locator(f"#{slider}").fill("77")
        seen.add(visit.pixels())
        reset()
    canvas.focus()
    for keys in ("Shift+ArrowUp", "Shift+ArrowRight", "i"):
        visit.page.keyboard.press(keys)
        seen.add(visit.pixels())
        visit.page.keyboard.press("r")
        assert visit.pixels() == first
    visit.page.keyboard.press("i")
    canvas.dblclick()
    assert visit.pixels() == first
    assert len(seen) == 8


def test_zoom_and_pan_by_wheel_drag_keys_and_fingers(visit, studies):
    visit.drop(studies / "shoulder")
    wait_for_pictures(visit.page)
    canvas, corner = visit.page.locator(".view canvas"), visit.page.locator(".corner")

    def zoom():
        settle(visit.page)
        return float(corner.text_content().split(" %")[0])

    first, fitted = visit.pixels(), zoom()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(x, y)
    visit.page.mouse.wheel(0, -300)
    larger = visit.pixels()
    assert zoom() > 1.3 * fitted
    visit.page.mouse.down()
    visit.page.mouse.move(x + 60, y + 30, steps=3)
    visit.page.mouse.up()
    moved = visit.pixels()
    visit.page.keyboard.press("r")
    assert visit.pixels() == first
    visit.page.keyboard.press("+")
    visit.page.keyboard.press("ArrowLeft")
    assert zoom() == pytest.approx(1.25 * fitted, abs=1)
    assert len({first, larger, moved, visit.pixels()}) == 4
    visit.page.keyboard.press("-")
    assert zoom() == pytest.approx(fitted, abs=1)
    visit.page.keyboard.press("r")
    session = visit.context.new_cdp_session(visit.page)
    for kind, apart in (("touchStart", 50), ("touchMove", 75), ("touchMove", 100), ("touchEnd", None)):
        points = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert zoom() == pytest.approx(2 * fitted, rel=0.03)


def test_a_damaged_file_is_told_at_its_study_which_can_go_on_without_it(visit, url, studies):
    visit.expected_statuses = {422}
    visit.drop(studies / "hand", studies / "shoulder")
    row = visit.row("hand")
    expect(row.locator(".problem")).to_contain_text("view2.png: unreadable image")
    expect(visit.row("shoulder").locator(".problem")).to_be_hidden()
    expect(visit.page.locator("#progress")).to_have_text("1 of 2 studies, 1 failed")
    visit.open("hand")
    expect(visit.page.locator("#numbers .problem")).to_contain_text("view2.png")
    expect(visit.page.locator(".view .message").nth(1)).to_contain_text("unreadable image")
    row.get_by_role("button", name="Try again").click()
    wait_for_answers(visit.page, 2)
    expect(row.locator(".problem")).to_be_visible()
    row.get_by_role("button", name="Predict without this view").click()
    expect(row).to_have_attribute("data-state", "answered")
    expect(row.locator(".count")).to_have_text("1 view, 1 left out")
    expect(visit.page.locator("#numbers")).to_contain_text("Left out, could not be read: view2.png.")
    file = studies / "hand" / "view1.png"
    alone = httpx.post(f"{url}v1/studies/predict", files=[("views", (file.name, file.read_bytes()))], timeout=60).json()
    assert numbers_in(row.locator(".probability"))[0][1] == pytest.approx(alone["probability"], abs=1e-6)


@pytest.mark.parametrize("mean", [3, 30])  # some of the map against an abnormality, and all of it for one
def test_the_page_paints_as_the_server_does(visit, studies, mean):
    gray = read_gray((studies / "wrist" / "view1.png").read_bytes())[100:230, 90:190]
    cam = np.random.default_rng(0).normal(mean, 5, (7, 5)).astype(np.float32)
    painted = visit.page.evaluate(
        """async ([png, cam, height, width]) => {
            const { FULL_WINDOW, paint, paintLevels, readMap, windowTable } = await import("/viewer/paint.js");
            const scale = await (await fetch("/viewer/overlay.json")).json();
            const bitmap = await createImageBitmap(new Blob([Uint8Array.from(atob(png), (c) => c.charCodeAt(0))]));
            const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
            context.drawImage(bitmap, 0, 0);
            const pixels = context.getImageData(0, 0, width, height).data;
            const part = { width, height, left: 0, top: 0, stepX: 1 / width, stepY: 1 / height };
            const levels = paintLevels(readMap(cam), part, scale.full_logit);
            const painted = new Uint8ClampedArray(pixels.length);
            paint(pixels, windowTable(FULL_WINDOW), levels, scale.colors, scale.full_opacity, painted);
            return [...painted];
        }""",
        [
            base64.b64encode(encode_png(gray)).decode(),
            {"shape": cam.shape, "float32_base64": base64.b64encode(cam.tobytes()).decode()},
            *gray.shape,
        ],
    )
    rgba = np.array(painted, np.uint8).reshape(*gray.shape, 4)
    expected = overlay(gray, cam)
    difference = np.abs(rgba[..., :3].astype(int) - expected)
    assert (expected != gray[..., None]).mean() > 0.3
    assert difference.max() <= 2  # a paint level apart: the order of adding in 32 bits
    assert (difference == 0).mean() > 0.99
    assert (rgba[..., 3] == 255).all()


def element(tag, vr, value, *, explicit=True):
    value += b"\0" * (len(value) % 2)
    group, number = tag
    if not explicit:
        return struct.pack("<HHI", group, number, len(value)) + value
    if vr in (b"SQ", b"OB", b"UN"):
        return struct.pack("<HH2s2xI", group, number, vr, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def dicom(uid, syntax=b"1.2.840.10008.1.2.1", *, explicit=True):
    """The head of a file: names, sequences of both kinds of length with the very tag inside them, and then the tag."""
    inner = element((0x20, 0xD), b"UI", b"9.9.9", explicit=explicit)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    open_item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    head = (
        struct.pack("<HH2s2xI", 8, 0x1140, b"SQ", 0xFFFFFFFF)
        if explicit
        else struct.pack("<HHI", 8, 0x1140, 0xFFFFFFFF)
    )
    parts = (
        element((8, 0x60), b"CS", b"DX", explicit=explicit),
        element((8, 0x1115), b"SQ", item, explicit=explicit),
        head + open_item + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        element((0x10, 0x10), b"PN", b"MILLER^ANNA", explicit=explicit),
        element((0x20, 0xD), b"UI", uid, explicit=explicit),
        element((0x7FE0, 0x10), b"OB", bytes(100), explicit=explicit),
    )
    meta = element((2, 0x10), b"UI", syntax)
    return bytes(128) + b"DICM" + element((2, 0), b"UL", struct.pack("<I", len(meta))) + meta + b"".join(parts)


def grouped(page, files):
    """What the page makes of files, each (folder, name, content): {study: names of its files}, and the ignored ones."""
    encoded = [(folder, name, base64.b64encode(content).decode()) for folder, name, content in files]
    studies, ignored = page.evaluate(
        """async (files) => {
            const { groupStudies } = await import("/viewer/intake.js");
            const found = files.map(([folder, name, content]) => (
                { folder, file: new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name) }));
            const { studies, ignored } = await groupStudies(found);
            return [studies.map((study) => [study.name, study.files.map((file) => file.name)]), ignored];
        }""",
        encoded,
    )
    return dict(studies), ignored


def test_files_become_studies_by_folder_and_dicom_files_by_their_study(visit):
    png = b"\x89PNG..."
    implicit = dicom(b"1.2.4", b"1.2.840.10008.1.2", explicit=False)
    files = [
        ("a/study1", "view10.png", png), ("a/study1", "view2.png", png), ("a/study2", "view1.jpg", png),
        ("", "x.png", png), ("", "y.jpeg", png),
        ("disc/series1", "1.2.3.1", dicom(b"1.2.3")), ("disc/series2", "1.2.3.1", dicom(b"1.2.3")),
        ("disc/series2", "IM3", implicit), ("", "loose.dcm", implicit), ("", "cut.dcm", dicom(b"1.2.5")[:200]),
        ("disc", "DICOMDIR", dicom(b"1.2.3")), ("a/study1", "._view2.png", png), ("a/study1", "notes.txt", b"fell"),
        ("", "packed", b"PK\x03\x04..."),
    ]  # fmt: skip
    studies, ignored = grouped(visit.page, files)
    assert studies == {
        "a/study1": ["view2.png", "view10.png"],
        "a/study2": ["view1.jpg"],
        "cut.dcm and 2 more": ["cut.dcm", "x.png", "y.jpeg"],
        "disc/series1": ["1.2.3.1", "1.2.3.1 (2)"],
        "disc/series2": ["IM3", "loose.dcm"],
    }
    assert ignored == ["DICOMDIR", "notes.txt", "packed"]
    assert "MILLER" not in visit.page.content()


def test_folders_and_files_can_be_chosen_too(visit, studies, tmp_path):
    (study,) = write_study(tmp_path / "export" / "elbow" / "study1", "elbow", 0, 1)
    (tmp_path / "export" / "readme.txt").write_text("nothing to see")
    visit.page.locator("#folder").set_input_files(tmp_path / "export")
    wait_for_answers(visit.page, 1)
    expect(visit.page.locator("#intake")).to_have_text("1 file ignored, no radiograph: readme.txt")
    visit.page.locator("#files").set_input_files([studies / "wrist" / "view1.png", study.with_name("view1.png")])
    wait_for_answers(visit.page, 2)
    names = set(visit.page.locator(".study .name").all_text_contents())
    assert names == {"export/elbow/study1", "view1.png and 1 more"}
    visit.page.locator("#clear").click()
    expect(visit.page.locator(".study")).to_have_count(0)
    expect(visit.page.locator("#empty")).to_be_visible()


def test_everything_can_be_done_by_keyboard(visit, studies):
    page, keys = visit.page, visit.page.keyboard
    focused = lambda: page.evaluate("document.activeElement.id || document.activeElement.className")  # noqa: E731

    def tab_to(wanted):
        for _ in range(30):
            keys.press("Tab")
            if focused() == wanted:
                return
        raise AssertionError(f"Tab does not lead to {wanted}")

    page.on("filechooser", lambda _: None)  # choosers are caught from now on: one that a key opens at once else is not
    tab_to("choose-files")
    with page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files(sorted((studies / "wrist").iterdir()))
    wait_for_answers(page, 1)
    with page.expect_file_chooser() as chooser:
        keys.press("Space")
    chooser.value.set_files(studies / "shoulder" / "view1.png")
    wait_for_answers(page, 2)
    tab_to("open")
    keys.press("ArrowDown")
    names = page.locator(".study .name").all_text_contents()
    keys.press("Enter")
    wait_for_pictures(page)
    assert page.locator("#numbers h2").text_content() == names[1]
    for step, place in (("p", 0), ("n", 1), ("n", 1)):
        keys.press(step)
        wait_for_pictures(page)
        assert page.locator("#numbers h2").text_content() == names[place]
    if page.locator(".view").count() == 1:
        keys.press("p")
        wait_for_pictures(page)
    assert page.locator(".view").count() == 2
    keys.press("2")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("view2.png, probability 0.")
    first = visit.pixels(1)
    for key in ("+", "ArrowUp", "Shift+ArrowLeft", "]", "i", "c"):
        before = visit.pixels(1)
        keys.press(key)
        assert visit.pixels(1) != before, key
    for key in ("c", "[", "r"):
        keys.press(key)
    assert visit.pixels(1) == first
    keys.press("m")
    expect(page.locator(".view").first).to_be_hidden()
    keys.press("m")
    expect(page.locator(".view").first).to_be_visible()
    keys.press("?")
    expect(page.locator("#keys")).to_be_visible()
    assert page.locator("#keys td", has_text="class activation map on or off").is_visible()
    before = visit.pixels(1)
    keys.press("c")
    assert visit.pixels(1) == before, "keys act on the page behind a dialog"
    keys.press("Enter")  # its button has the focus
    expect(page.locator("#keys")).to_be_hidden()
    tab_to("numbers")


class Guarded:
    """ASGI middleware: lets nobody in without the token, but to the pages."""

    def __init__(self, app):
        self._app = app
        self.token = "right"

    async def __call__(self, scope, receive, send):
        headers = dict(scope.get("headers", []))
        known = headers.get(b"authorization") == f"Bearer {self.token}".encode()
        if known or not scope["path"].startswith("/v1/"):
            return await self._app(scope, receive, send)
        challenge = {"WWW-Authenticate": "Bearer"}
        error = ProblemError(401, "no-token", "a token is needed", "ask the operator", headers=challenge)
        return await problem_response(error)(scope, receive, send)


def test_a_token_is_asked_for_kept_for_the_tab_and_asked_for_again_once_revoked(browser, api, studies):
    guarded = Guarded(api)
    with serving(guarded) as url:
        visit = Visit(browser, url, expected_statuses={401})
        page, dialog = visit.page, visit.page.locator("#token")
        expect(dialog).to_be_visible()
        assert page.locator("#token-value").get_attribute("type") == "password"
        page.keyboard.press("Escape")
        expect(page.locator("#served")).to_contain_text("a token is needed")
        drop(page, [studies / "wrist", studies / "shoulder"])
        expect(dialog).to_be_visible()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-problem")).to_have_text("The server did not accept this token.")
        page.keyboard.type("right")
        page.keyboard.press("Enter")
        wait_for_answers(page, 2)
        assert page.locator('[data-state="answered"]').count() == 2
        expect(page.locator("#served")).to_contain_text("Ensemble")
        page.reload()
        expect(page.locator("#served")).to_contain_text("Ensemble")
        expect(dialog).to_be_hidden()
        guarded.token = "new"
        drop(page, [studies / "wrist"])
        expect(page.locator("#token-problem")).to_have_text("The server did not accept this token.")
        page.locator("#token-cancel").click()
        expect(visit.row("wrist").locator(".problem")).to_have_text("a token is needed: ask the operator")
        stored = page.evaluate("JSON.stringify([Object.entries(localStorage), document.cookie])")
        assert json.loads(stored) == [[], ""]
        visit.end()


def test_a_busy_server_is_asked_again_when_it_said_and_a_lost_one_on_request(visit, studies):
    visit.expected_statuses = {429}
    num_refused = 0

    def refuse_twice(route):
        nonlocal num_refused
        num_refused += 1
        if num_refused > 2:
            return route.fallback()
        return route.fulfill(
            status=429, headers={"Retry-After": "1"}, json={"title": "busy", "status": 429, "detail": ""}
        )

    visit.page.route("**/v1/studies/predict*", refuse_twice)
    drop(visit.page, [studies / "wrist"])
    expect(visit.row("wrist").locator(".state")).to_contain_text("busy")
    wait_for_answers(visit.page, 1)
    assert num_refused == 3
    visit.page.route("**/v1/studies/predict*", lambda route: route.abort())
    visit.drop(studies / "shoulder", number=2)
    expect(visit.row("shoulder").locator(".problem")).to_contain_text("the server cannot be reached")
    assert all("ERR_FAILED" in error for error in visit.errors)
    visit.errors.clear()
    visit.page.unroute("**/v1/studies/predict*")
    visit.row("shoulder").get_by_role("button", name="Try again").click()
    expect(visit.row("shoulder")).to_have_attribute("data-state", "answered")


def test_at_most_two_studies_are_sent_at_a_time(visit, tmp_path):
    held = []
    visit.page.route("**/v1/studies/predict*", lambda route: held.append(route))
    for number in range(4):
        write_study(tmp_path / f"finger{number}", "finger", 0, 1, seed=number)
    drop(visit.page, sorted(tmp_path.iterdir()))
    expect(visit.page.locator('[data-state="predicting"]')).to_have_count(2)
    expect(visit.page.locator('[data-state="waiting"]')).to_have_count(2)
    for number in range(4):
        visit.page.wait_for_timeout(100)
        assert len(held) == min(4, number + 2)
        held[number].continue_()
        expect(visit.page.locator("#progress")).to_have_text(f"{number + 1} of 4 studies")


@pytest.mark.parametrize(("width", "height"), [(1180, 820), (820, 1180), (768, 1024)])
def test_a_tablet_shows_everything_within_its_screen(browser, url, studies, width, height, tmp_path):
    visit = Visit(browser, url, has_touch=True)
    page = visit.page
    page.set_viewport_size({"width": width, "height": height})
    visit.drop(studies / "wrist", studies / "shoulder")
    visit.row("wrist").locator(".open").tap()
    wait_for_pictures(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in (".notice", "#cam", "#opacity", "#level", "#reset", "#numbers", "#files-help"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0, part
        assert box["y"] >= 0, part
        assert box["x"] + box["width"] <= width, part
        assert box["y"] + box["height"] <= height, part
    for place in range(2):
        box = page.locator(".view canvas").nth(place).bounding_box()
        assert min(box["width"], box["height"]) >= 200
    page.locator("#cam").tap()
    expect(page.locator("#cam")).to_have_attribute("aria-pressed", "false")
    visit.end()


def test_nothing_on_the_page_is_pure_white_or_moves_for_who_wants_no_motion(browser, url, studies):
    visit = Visit(browser, url, reduced_motion="reduce")
    visit.drop(studies / "wrist")
    wait_for_pictures(visit.page)
    colors, animations = visit.page.evaluate(
        """() => {
            const all = [...document.querySelectorAll("body, body *")].map((element) => getComputedStyle(element));
            return [[...new Set(all.flatMap((style) => [style.color, style.backgroundColor]))],
                    [...new Set(all.map((style) => style.animationName))]];
        }"""
    )
    assert "rgb(255, 255, 255)" not in colors
    assert animations == ["none"]
    visit.end()


def test_the_description_of_the_interface_names_what_the_viewer_uses(visit):
    visit.page.locator("a", has_text="HTTP interface").click()
    expect(visit.page.locator("h2", has_text="POST /v1/views/picture")).to_be_visible()
    expect(visit.page.locator(".notice")).to_be_visible()


def test_what_it_would_say_of_a_request_to_elsewhere(visit):
    """The page's own policy stops it: nothing that a file's name or an answer could smuggle in is fetched."""
    with pytest.raises(Error, match="Failed to fetch"):
        visit.page.evaluate("fetch('http://localhost:9/')")
    assert any("Content Security Policy" in error for error in visit.errors)
    visit.errors.clear()
