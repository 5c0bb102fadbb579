"""The report in a real browser: nothing loaded, nothing run, everything fits, both themes can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dat_ray.reporting.collect import read_suite
from dat_ray.reporting.stage import report
from dat_ray.reporting.sweep import SweepRow, write_front
from tests.unit.reporting.browser import Tab, browser, chromium
from tests.unit.reporting.synthetic_run import HOSTILE, THREE, evaluate, finished_run, new_run, recipe

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium on the PATH (Debian: apt-get install chromium)")

# Elements that stick out of the window without a scrolling box around them.
STICKING_OUT = """
[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll, pre, details:not([open])')) return false;
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.tagName + ' ' + e.textContent.slice(0, 60))
"""
# Texts of a figure that lie on one another, or leave it.
COLLISIONS = """
[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const outer = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const found = texts.filter(([, b]) => b.left < outer.left - 2 || b.right > outer.right + 2 || b.bottom > outer.bottom + 2)
    .map(([t]) => 'outside: ' + t);
  texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (wide > 1 && high > 4) found.push(a + ' on ' + b);
  }));
  return found;
})
"""
# Lowest contrast of a text against the body's background, by the formula of WCAG 2.
CONTRAST = """
(() => {
  const numbers = text => text.match(/[0-9.]+/g).map(Number);
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const page = numbers(getComputedStyle(document.body).backgroundColor);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const rgba = numbers(getComputedStyle(e).backgroundColor);
      if (rgba.length < 4 || rgba[3] > 0) return rgba;
    }
    return page;
  };
  return Math.min(...[...document.querySelectorAll('h1, h2, h3, p, th, td, figcaption, summary, dd, dt, svg text')].map(e =>
    ratio(light(numbers(e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color)), light(behind(e)))));
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: two suites, one of them of four models, and hostile text."""
    run = finished_run(tmp_path_factory.mktemp("browser") / "run")
    evaluate(run, "comparison", THREE)
    return Path(report(recipe(), run))


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as found:
        yield found


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_reads_and_asks_for_nothing(page: Path, tab: Tab, width: int, scheme: str) -> None:
    tab.open(page, width, scheme=scheme)
    requests = [event["request"]["url"] for event in tab.of("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert tab.of("Runtime.exceptionThrown") == []
    assert [event["entry"]["text"] for event in tab.of("Log.entryAdded")] == []
    assert tab.of("Page.javascriptDialogOpening") == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(STICKING_OUT) == []
    assert tab.value(COLLISIONS) == []
    # 4.5 is WCAG's level AA for running text.
    assert tab.value(CONTRAST) >= 4.5


def test_hostile_text_is_shown_and_does_nothing(page: Path, tab: Tab) -> None:
    tab.open(page)
    tab.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert tab.value("document.querySelectorAll('script, img, iframe').length") == 0
    shown = tab.value("document.querySelector('.example').innerText")
    assert HOSTILE in shown
    assert tab.value(STICKING_OUT) == []


def test_the_finding_is_on_the_first_screen(page: Path, tab: Tab) -> None:
    for width, height, seen in ((1280, 900, 3), (390, 844, 2)):
        tab.open(page, width, height)
        below = "[...document.querySelectorAll('.answer')].filter(e => e.getBoundingClientRect().bottom <= innerHeight).length"
        assert tab.value("document.querySelector('h1').getBoundingClientRect().bottom") < height / 2
        assert tab.value(below) >= seen


def test_examples_are_behind_a_click_and_the_page_prints(page: Path, tab: Tab) -> None:
    tab.open(page)
    assert tab.value("document.querySelector('.example').checkVisibility()") is False
    warning = "document.querySelector('.example').closest('details').querySelector('summary')"
    assert "Content warning" in tab.value(f"{warning}.innerText")
    tab.value(f"{warning}.click()")
    assert tab.value("document.querySelector('.example').checkVisibility()") is True
    assert tab.pdf().startswith(b"%PDF")


def test_the_page_of_a_sweep_fits_and_reads(tab: Tab, tmp_path: Path) -> None:
    rows = []
    for index, adapted in enumerate(((0.02, 0.5, -5.0), (0.1, 0.2, -4.0), (0.3, 0.4, -3.0))):
        run = new_run(tmp_path / f"p{index}")
        evaluate(run, "default", {"base": (0.8, 0.05, -1.8), "adapted": adapted})
        label = f"retain_weight = {index}, attack.steps = 20, learning_rate = 0.0001"
        rows.append(SweepRow(label, f"points/p{index}", read_suite(run.evaluation("default")).metrics, None))
    rows.append(SweepRow("retain_weight = 9", "points/p9", None, HOSTILE))
    page = Path(write_front(recipe(), {"training.retain_weight": [0, 1, 2, 9]}, rows, str(tmp_path)))
    for width in (1280, 390):
        tab.open(page, width, scheme="dark")
        assert tab.value(STICKING_OUT) == []
        assert tab.value(COLLISIONS) == []
        assert tab.value(CONTRAST) >= 4.5
    requests = [event["request"]["url"] for event in tab.of("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert HOSTILE in tab.value("document.body.innerText")
