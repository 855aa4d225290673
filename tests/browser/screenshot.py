"""Takes the picture of the viewer in docs/: phantom radiographs, answered by the ensemble that `make demo` leaves.

    python -m tests.browser.screenshot --ensemble demo/runs/demo/ensemble --open elbow --out docs/viewer.jpg

No radiograph of anyone is in it: mura_ray.data.phantom draws them. Other studies, each a folder, by --studies.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from mura_ray.model.ensemble import Ensemble
from serve.api import build_api
from tests.browser.chromium import (
    browsing,
    drop,
    find_chromium,
    serving,
    wait_for_answers,
    wait_for_pictures,
    write_study,
)

PHANTOMS = (
    ("wrist, Monday", "wrist", 1, 2),
    ("shoulder, Monday", "shoulder", 0, 1),
    ("elbow, Tuesday", "elbow", 1, 2),
    ("hand, Tuesday", "hand", 0, 3),
)


def main() -> int:
    """Takes the picture; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.browser.screenshot", description="Takes the picture of the viewer in docs/."
    )
    parser.add_argument("--ensemble", required=True, help="folder of an ensemble.json")
    parser.add_argument("--out", type=Path, required=True, help="PNG or JPEG file to write")
    parser.add_argument("--studies", type=Path, nargs="*", help="folders to drop (default: phantom studies)")
    parser.add_argument("--open", help="study to open (default: the first of the worklist)")
    parser.add_argument("--size", default="1280x800", help="of the screen in pixels (default %(default)s)")
    options = parser.parse_args()
    executable = find_chromium()
    if executable is None:
        print("no chromium or google-chrome that starts is on the PATH: install one", file=sys.stderr)
        return 1
    width, height = (int(side) for side in options.size.split("x"))
    app = build_api(Ensemble.load(options.ensemble))
    with tempfile.TemporaryDirectory() as folder, serving(app) as url, browsing(executable) as browser:
        studies = options.studies or write_phantoms(Path(folder))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(url)
        page.locator("body[data-ready]").wait_for(state="attached")
        drop(page, studies)
        wait_for_answers(page, len(studies))
        page.locator(".study .open", has_text=options.open).first.click()
        wait_for_pictures(page)
        page.mouse.move(0, 0)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=options.out, quality=88 if options.out.suffix in (".jpg", ".jpeg") else None)
    num_bytes = options.out.stat().st_size
    print(f"wrote {options.out}, {num_bytes:,} bytes")
    return 0


def write_phantoms(root: Path) -> list[Path]:
    """The folders of the studies in `PHANTOMS`."""
    for number, (name, study_type, label, num_views) in enumerate(PHANTOMS):
        write_study(root / name, study_type, label, num_views, seed=number)
    return sorted(root.iterdir())


if __name__ == "__main__":
    sys.exit(main())
