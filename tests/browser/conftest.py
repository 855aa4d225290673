"""A browser, a server with a small random ensemble, and studies to drop on its page."""

import pytest

from mura_ray.model.ensemble import Ensemble, write_ensemble
from serve.api import build_api
from tests.browser.chromium import browsing, serving, write_study
from tests.browser.visit import CHROMIUM, Visit
from tests.unit.tiny_ensemble import DATA_ID, MANIFEST_SHA256, member_source


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


@pytest.fixture
def visit(browser, url):
    visit = Visit(browser, url)
    yield visit
    visit.end()
