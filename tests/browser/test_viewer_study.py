"""A study open in the viewer: its numbers, its pictures, their window and their map."""

import base64
from copy import copy

import numpy as np
import pytest
from playwright.sync_api import expect

from mura_ray.images import read_gray
from mura_ray.render.overlay import encode_png, overlay
from tests.browser.chromium import settle, wait_for_pictures
from tests.browser.visit import answer_of, needs_chromium, numbers_in
from tests.unit.api_client import CALIBRATION

pytestmark = needs_chromium


def test_an_open_study_shows_every_number_of_the_answer(visit, url, studies):
    visit.drop(studies / "wrist")  # the only one opens by itself
    wait_for_pictures(visit.page)
    answer = answer_of(url, (studies / "wrist").iterdir())
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


def test_a_calibrated_probability_is_shown_beside_the_probability(visit, api, ensemble, url, studies):
    calibrated = copy(ensemble)
    calibrated.description = ensemble.description.model_copy(update={"calibration": CALIBRATION})
    api.state.answers.release(calibrated)
    try:
        visit.drop(studies / "shoulder")
        answer = answer_of(url, (studies / "shoulder").iterdir())
    finally:
        api.state.answers.release(ensemble)
    number = answer["calibrated_probability"]
    assert abs(number - answer["probability"]) > 1e-3
    assert numbers_in(visit.page.locator(".calibrated data")) == [(f"{number:.4f}", pytest.approx(number, abs=1e-6))]
    expect(visit.page.locator("#numbers li").filter(has_text="the study type is not known")).to_be_visible()
    visit.page.locator("#clear").click()
    visit.drop(studies / "shoulder")
    expect(visit.page.locator("#numbers .headline")).to_be_visible()
    expect(visit.page.locator(".calibrated")).to_have_count(0)


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
