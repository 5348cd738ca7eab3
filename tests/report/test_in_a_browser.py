"""Every kind of page in a real browser: no error, and no request for anything but itself."""

import pytest
from report.browser import found, open_browser
from report.pages import PAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    path = found()
    if path is None:
        pytest.skip("no Chromium on PATH; as root on Debian: make chromium")
    with open_browser(path) as started:
        yield started


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_error_and_asks_for_nothing(browser, tmp_path, name):
    page = PAGES[name](tmp_path / f"{name}.html")
    seen = browser.visit(page)
    assert seen.errors == [] == seen.requests


FAULTS = {
    "an_exception": ("<script>missing.part()</script>", "missing is not defined", None),
    "a_word_of_the_console": ("<script>console.error('broken')</script>", "broken", None),
    "a_picture_from_elsewhere": (
        "<img src='https://example.org/a.png'>",
        "ERR_NAME_NOT_RESOLVED",
        "https://example.org/a.png",
    ),
    "a_style_from_elsewhere": (
        "<style>@import url('https://example.org/a.css');</style>",
        "ERR_NAME_NOT_RESOLVED",
        "https://example.org/a.css",
    ),
    "a_file_beside_it": ("<img src='absent.png'>", "ERR_FILE_NOT_FOUND", "absent.png"),
    "what_a_script_asks_for": (
        "<script>fetch('https://example.org/b')</script>",
        "",
        "https://example.org/b",
    ),
    "what_is_folded": (
        "<details><img loading='lazy' src='https://example.org/c.png'></details>",
        "",
        "https://example.org/c.png",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_be_wrong_is_seen(browser, tmp_path, fault):
    body, error, request = FAULTS[fault]
    page = tmp_path / "faulty.html"
    page.write_text(f"<!doctype html><meta charset='utf-8'><title>x</title>{body}")
    seen = browser.visit(page)
    assert any(error in each for each in seen.errors)
    assert [each.endswith(request) for each in seen.requests] == ([True] if request else [])
