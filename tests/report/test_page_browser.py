"""The pages in a real browser: hover, search, click, themes, widths, and no network request."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from facerec.report import pages
from tests.helpers.pages import EVIL, HISTORY, curve, faces

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = next((path for path in map(shutil.which, BROWSERS) if path), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card, for the 3-D map
]
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason=f"no browser on PATH: none of {', '.join(BROWSERS)}"
)
POINTS = "#map .scatterlayer .point"


def in_a_network_of_its_own() -> list[str]:
    """Words before a command that let it reach nothing, not even this machine; none where that is not allowed."""
    words = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    allowed = shutil.which("unshare") and not subprocess.run([*words, "true"]).returncode
    return words if allowed else []


ALONE = in_a_network_of_its_own() if EXECUTABLE else []


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    """Chromium in a network of its own, which has no way out, where the system lets us make one."""
    command = tmp_path_factory.mktemp("browser") / "chromium"
    command.write_text(f'#!/bin/sh\nexec {" ".join(ALONE)} {shlex.quote(EXECUTABLE)} "$@"\n')
    command.chmod(0o755)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=command, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    embeddings, labels, names, images = faces(people=12, each=4, size=32)
    names = [EVIL, "Zoë_Müller", *names[2:]]
    # The first face of person 5 is somebody else's: its neighbours must be told wrong.
    labels = labels.copy()
    embeddings[20] = embeddings[0] + 0.01
    text = pages.report_page(
        embeddings,
        labels,
        names,
        images,
        title="Report",
        notice="2 people were met in training.",
        metrics={"model": {"Recall@1": pages.Metric(0.5, 0.4, 0.6)}},
        curve=curve([0.5, 0.9], [0.1, 0.6]),
        thresholds={"FAR 0.5": 0.6},
        occlusions=[pages.Occlusion(images[0], np.eye(4, dtype=np.float32), EVIL)],
    ).page
    return pages.write_html(text, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def open_page(browser):
    """Opens a file, and fails the test for any script error or network request."""
    trouble: list[str] = []
    contexts = []

    def open_file(path, width: int = 1280, theme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, offline=True
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: trouble.append(f"script error: {error}"))
        tab.on("dialog", lambda dialog: (trouble.append("a dialog opened"), dialog.dismiss()))
        tab.on("request", lambda request: _note_request(request.url, trouble))
        tab.on(
            "console",
            lambda message: trouble.append(message.text) if message.type == "error" else None,
        )
        tab.goto(path.as_uri())
        return tab

    yield open_file
    for context in contexts:
        context.close()
    assert trouble == []


def _note_request(url: str, trouble: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        trouble.append(f"request to {url[:100]}")


def hover_face(tab, face: int):
    """Moves the mouse onto a face's point on the 2-D map and returns the place."""
    tab.wait_for_selector(POINTS)
    place = tab.evaluate(
        """async (face) => {
          const map = document.getElementById("map");
          map.scrollIntoView({block: "center"});
          // The scroll event, which hides the tip, comes with the next frame.
          for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
          const {left, top} = map.getBoundingClientRect();
          const {xaxis, yaxis} = map._fullLayout;
          const points = view().points;
          return [left + xaxis._offset + xaxis.l2p(points[0][face]),
                  top + yaxis._offset + yaxis.l2p(points[1][face])];
        }""",
        face,
    )
    tab.mouse.move(place[0] - 3, place[1])
    tab.mouse.move(*place, steps=3)
    return place


def test_hover_shows_the_face_and_its_name(open_page, report):
    tab = open_page(report)
    hover_face(tab, 7)
    tip = tab.locator("#tip")
    tip.wait_for(state="visible")
    face = int(tip.get_attribute("data-face"))
    people = tab.evaluate("MAP.labels.map((person) => MAP.people[person])")
    assert tip.locator("strong").inner_text() == people[face]
    assert people[7] == "Zoë Müller"
    picture = tip.locator(".face").evaluate("(node) => getComputedStyle(node).backgroundImage")
    assert picture.startswith('url("data:image/webp')
    tab.mouse.move(2, 2)
    tip.wait_for(state="hidden")


def test_the_face_shown_is_the_right_part_of_the_sheet(open_page, report):
    tab = open_page(report)
    images = faces(people=12, each=4, size=32)[3]
    for face in (0, 7, 47):
        colour = tab.evaluate(
            """async (face) => {
              const node = thumbnail(face);
              Object.assign(node.style, {position: "fixed", left: 0, top: 0, width: "32px"});
              document.body.append(node);
              const style = getComputedStyle(node);
              const sheet = new Image();
              sheet.src = style.backgroundImage.slice(5, -2);
              await sheet.decode();
              const [x, y] = style.backgroundPosition.split(" ").map((v) => parseFloat(v) / 100);
              const canvas = document.createElement("canvas");
              const {columns, rows} = MAP.faces;
              const [w, h] = [sheet.width / columns, sheet.height / rows];
              const context = canvas.getContext("2d");
              context.drawImage(sheet, -x * (sheet.width - w), -y * (sheet.height - h));
              node.remove();
              return [...context.getImageData(w / 2, h / 2, 1, 1).data].slice(0, 3);
            }""",
            face,
        )
        assert colour == pytest.approx(images[face, 0, 0].tolist(), abs=24)


def test_click_shows_neighbours_and_which_are_wrong(open_page, report):
    tab = open_page(report)
    place = hover_face(tab, 20)
    tab.mouse.click(*place)
    detail = tab.locator("#detail")
    clicked = tab.evaluate("state.face")
    assert clicked in (20, 0)  # the two lie on one another
    tab.evaluate("selectFace(20)")
    assert detail.locator("h3").first.inner_text() == "Person 5"
    items = detail.locator(".near li")
    assert items.count() == 12
    first = items.first.locator("button").get_attribute("aria-label")
    assert first.startswith(EVIL.strip())
    assert first.endswith("wrong")
    scores = [float(text.split()[0]) for text in detail.locator(".score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert tab.locator("#map .scatterlayer .trace").count() > 2
    items.nth(1).locator("button").click()
    assert tab.evaluate("state.face") != 20
    tab.keyboard.press("Escape")
    assert tab.evaluate("state.face") is None


def test_search_by_keyboard_highlights_people(open_page, report):
    tab = open_page(report)
    tab.wait_for_selector(POINTS)
    tab.focus("#search")
    tab.keyboard.type("muller zoe")  # neither order nor accents matter
    assert tab.locator("#matches [role=option]").all_inner_texts() == ["Zoë Müller\n4 faces"]
    assert tab.get_attribute("#search", "aria-expanded") == "true"
    tab.keyboard.press("Enter")
    assert tab.evaluate("state.chosen.map((person) => MAP.people[person])") == ["Zoë Müller"]
    assert tab.locator("#people-faces button").count() == 4
    tab.keyboard.type("person")
    tab.keyboard.press("ArrowDown")
    active = tab.get_attribute("#search", "aria-activedescendant")
    assert active == "match-1"
    tab.keyboard.press("Enter")
    assert tab.locator("#chosen button").count() == 2
    tab.keyboard.type("nobody at all")
    assert "Nobody" in tab.locator("#matches").inner_text()
    tab.keyboard.press("Escape")
    assert tab.input_value("#search") == ""
    tab.locator("#people-faces button").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#detail h3").first.inner_text() == "Zoë Müller"
    tab.locator("#chosen button").first.click()
    assert tab.locator("#chosen button").count() == 1


def test_a_name_that_is_html_stays_text(open_page, report):
    tab = open_page(report)
    tab.wait_for_selector(POINTS)
    tab.fill("#search", "script")
    assert tab.locator("#matches [role=option] span").first.inner_text().startswith("Eve </script>")
    tab.keyboard.press("Enter")
    tab.press("#search", "Enter")
    tab.evaluate("toggle(0), selectFace(0), showTip(0)")
    for place in ("#detail h3", "#tip strong", "#map-legend"):
        assert "</script><script>alert(1)" in tab.locator(place).first.inner_text()


@pytest.mark.parametrize("method", ["t-SNE", "PCA"])
def test_views_in_two_and_three_dimensions(open_page, report, method):
    tab = open_page(report)
    tab.wait_for_selector(POINTS)
    tab.check(f"input[name=method][value='{method}']", force=True)
    tab.check("input[name=tint][value=verdict]", force=True)
    assert "nearest is wrong" in tab.locator("#map-legend").inner_text()
    if tab.locator("input[name=dimensions][value='3']").is_disabled():
        pytest.skip("this browser has no WebGL")
    tab.check("input[name=dimensions][value='3']", force=True)
    tab.wait_for_selector("#map canvas")
    tab.evaluate("selectFace(3)")
    tab.check("input[name=dimensions][value='2']", force=True)
    tab.wait_for_selector(POINTS)
    hover_face(tab, 7)
    tab.locator("#tip").wait_for(state="visible")


def test_theme_follows_the_system_and_the_button(open_page, report):
    tab = open_page(report, theme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = tab.evaluate(ground)
    line = "document.getElementById('roc').data[0].line.color"
    tab.wait_for_selector("#roc .scatterlayer")
    assert tab.evaluate(line) == "#5cb8f0"
    tab.click("#theme")
    assert tab.evaluate(ground) != dark
    tab.wait_for_function(f"{line} === '#0069a8'")
    tab.reload()
    assert tab.evaluate(ground) != dark  # remembered


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_nothing_sticks_out_at_any_width(open_page, report, width):
    tab = open_page(report, width=width)
    tab.wait_for_selector(POINTS)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_no_button_sends_anything_anywhere(open_page, report):
    tab = open_page(report)
    tab.wait_for_selector("#map .modebar-btn")
    titles = tab.locator(".modebar-btn").evaluate_all("nodes => nodes.map(n => n.dataset.title)")
    assert titles
    assert not [title for title in titles if any(w in title for w in ("Share", "Cloud", "Edit"))]


@pytest.mark.skipif(not ALONE, reason="the system lets us make no network namespace")
def test_the_browser_of_these_tests_reaches_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ask = (
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 9)"
        )
        for words, code in (([], 0), (ALONE, 1)):
            assert (
                subprocess.run([*words, sys.executable, "-c", ask], capture_output=True).returncode
                == code
            )


def test_the_page_forbids_requests(browser, report):
    tab = browser.new_page()
    refused: list[str] = []
    tab.on("console", lambda message: refused.append(message.text))
    tab.goto(report.as_uri())
    assert tab.evaluate("fetch('https://facerec.invalid').then(() => false, () => true)")
    tab.close()
    assert any("Content Security Policy" in text for text in refused)


def test_page_works_in_the_sandboxed_frame_of_mlflow(open_page, report, tmp_path):
    outer = tmp_path / "frame.html"
    source = report.as_uri()
    outer.write_text(f'<iframe sandbox="allow-scripts" width=1000 height=800 src="{source}">')
    tab = open_page(outer)
    frame = tab.frame_locator("iframe")
    frame.locator(POINTS).first.wait_for()
    frame.locator("#theme").click()


@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (500, 1)])
def test_training_curves_flow_into_columns(open_page, tmp_path, width, columns):
    path = pages.write_html(pages.training_curves(HISTORY), tmp_path / "curves.html", "Curves")
    tab = open_page(path, width=width)
    tab.wait_for_selector(".scatterlayer")
    lefts = tab.evaluate(
        """["xaxis2", "xaxis3"].map(
          (name) => document.querySelector(".figure").layout[name].domain[0])"""
    )
    assert len(set(lefts)) == columns
