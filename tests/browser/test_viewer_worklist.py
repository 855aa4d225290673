"""The viewer's worklist: which files become studies, and how these are asked for, listed and tried again."""

import base64
import struct

import pytest
from playwright.sync_api import expect

from tests.browser.chromium import drop, wait_for_answers, write_study
from tests.browser.visit import answer_of, needs_chromium, numbers_in

pytestmark = needs_chromium


def test_dropped_studies_are_listed_by_probability_as_the_api_gives_it(visit, url, studies):
    visit.drop(studies / "wrist", studies / "shoulder")
    expected = {name: answer_of(url, (studies / name).iterdir())["probability"] for name in ("wrist", "shoulder")}
    ordered = sorted(expected, key=lambda name: -expected[name])
    assert abs(expected["wrist"] - expected["shoulder"]) > 1e-4
    assert visit.page.locator(".study .name").all_text_contents() == ordered
    shown = numbers_in(visit.page.locator(".study .probability"))
    assert shown == [(f"{expected[name]:.4f}", pytest.approx(expected[name], abs=1e-6)) for name in ordered]
    expect(visit.page.locator("#progress")).to_have_text("2 of 2 studies")
    expect(visit.row("wrist").locator(".count")).to_have_text("2 views")


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
    alone = answer_of(url, [studies / "hand" / "view1.png"])
    assert numbers_in(row.locator(".probability"))[0][1] == pytest.approx(alone["probability"], abs=1e-6)


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
