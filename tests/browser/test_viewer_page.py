"""The viewer as a whole: by keyboard, with a token, on a tablet, and what it leaves alone."""

import json

import pytest
from playwright.sync_api import Error, expect

from serve.problems import ProblemError, problem_response
from tests.browser.chromium import drop, serving, wait_for_answers, wait_for_pictures
from tests.browser.visit import Visit, needs_chromium

pytestmark = needs_chromium


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


@pytest.mark.parametrize(("width", "height"), [(1180, 820), (820, 1180), (768, 1024)])
def test_a_tablet_shows_everything_within_its_screen(browser, url, studies, width, height):
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
    held = []
    visit.page.route("**/v1/studies/predict*", lambda route: held.append(route))

    def check():
        colors, animations = visit.page.evaluate(
            """() => {
                const all = [...document.querySelectorAll("body, body *")].map((element) => getComputedStyle(element));
                return [[...new Set(all.flatMap((style) => [style.color, style.backgroundColor]))],
                        [...new Set(all.map((style) => style.animationName))]];
            }"""
        )
        assert "rgb(255, 255, 255)" not in colors
        assert animations == ["none"]

    drop(visit.page, [studies / "wrist"])
    expect(visit.page.locator('[data-state="predicting"]')).to_have_count(1)  # what moves else
    check()
    held[0].continue_()
    wait_for_answers(visit.page, 1)
    wait_for_pictures(visit.page)
    check()
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
