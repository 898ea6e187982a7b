"""The page, as a person uses it, in a Chromium."""

import io
import itertools
import re

import numpy as np
import pytest
from browser import open_browser
from PIL import Image
from small_server import BOXES, FOUND, NAMES, SIZE, Watched, served, six_boxes

from multigrid.pictures import class_colour
from multigrid.serving.app import create_app
from multigrid.serving.page import read_page

# How near two colours are, of 255, where a line of several pixels has been drawn.
NEAR = 40


@pytest.fixture(scope="module")
def url():
    predictor = Watched(six_boxes(), NAMES, SIZE, batch_size=2)
    with served(create_app(predictor, name="six boxes", max_upload_bytes=50_000)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser, url):
    """The page in a narrow window; what the browser complained about fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 800})
    made, complaints = context.new_page(), []
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    made.set_default_timeout(10_000)
    made.goto(url)
    made.get_by_text("six boxes: red").wait_for()
    yield made
    context.close()
    # A browser notes every answer of 400 and more, those too that the page explains.
    assert [one for one in complaints if "Failed to load resource" not in one] == []


def picture(width=240, height=160, kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), (30, 60, 20), np.uint8)).save(file, kind)
    return file.getvalue()


def upload(name="cells.png", data=None):
    return {"name": name, "mimeType": "image/png", "buffer": picture() if data is None else data}


def pixel(page, x, y, sides=(240, 160)):
    """The colour of the first canvas at a place of the image of these sides."""
    return page.locator("canvas").first.evaluate(
        "(canvas, [x, y, width, height]) => [...canvas.getContext('2d').getImageData("
        "Math.round(x * canvas.width / width), Math.round(y * canvas.height / height), 1, 1).data].slice(0, 3)",
        [x, y, *sides],
    )


def near(colour, other) -> bool:
    return np.abs(np.subtract(colour, other)).max() < NEAR


def test_a_chosen_image_has_its_boxes_drawn_and_listed(page, tmp_path):
    page.set_input_files("#files", [upload()])
    page.get_by_text("6 detections; 240 × 160 pixels").wait_for()
    assert page.locator("li").count() == 6
    # 240 × 160 is 2.5 times the input; the middle box of the lower row, halfway down.
    x1, y1, x2, y2 = (2.5 * side for side in BOXES[4])
    for x in (x1, x2):
        assert near(pixel(page, x, (y1 + y2) / 2), class_colour(FOUND))
    assert near(pixel(page, (x1 + x2) / 2, (y1 + y2) / 2), (30, 60, 20))
    assert page.locator("i").first.evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(64, 200, 255)"
    assert page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_names_are_shown_as_words_and_never_as_html(page):
    page.set_input_files("#files", [upload("<img src=x onerror=alert(1)>.png")])
    page.get_by_text("6 detections").wait_for()
    assert page.locator("h2").inner_text() == "<img src=x onerror=alert(1)>.png"
    assert page.locator("li").first.inner_text().split("\n")[0] == NAMES[FOUND]
    assert page.locator("main img, main b").count() == 0


def test_images_can_be_dropped_and_pasted(page):
    source = "async ([numbers, kind]) => { const data = new DataTransfer(); data.items.add(new File("
    source += "[new Uint8Array(numbers)], `${kind}.png`, {type: 'image/png'})); return data; }"
    for kind in ("drop", "paste"):
        data = page.evaluate_handle(source, [list(picture()), kind])
        if kind == "drop":
            page.dispatch_event("#drop", "drop", {"dataTransfer": data})
        else:
            page.evaluate("data => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))", data)
        page.locator("article", has_text=f"{kind}.png").get_by_text("6 detections").wait_for()
    page.get_by_role("button", name="Remove all").click()
    assert page.locator("article").count() == 0


def test_what_is_wrong_with_a_file_is_said_and_the_others_are_shown(page):
    page.set_input_files("#files", [upload("torn.png", picture()[:-60]), upload(), upload("big.png", b"x" * 60_000)])
    page.get_by_text("This file could not be read as an image: a damaged").wait_for()
    page.get_by_text("This file is too large: 60,000 bytes, and the server takes 50,000.").wait_for()
    page.get_by_text("6 detections").wait_for()
    assert page.get_by_role("alert").count() == 2


@pytest.mark.parametrize(
    ("code", "detail", "said"),
    [
        (408, "expected the whole image within 60 s, received a part", "The image took too long to arrive."),
        (413, "expected an image of at most 300000 pixels, received 9 × 9", "the server takes at most 300,000 pixels."),
        (413, "image: expected an image, received a decompression bomb", "This image is too large."),
        (422, "image: expected an image, received an empty file", "could not be read as an image: an empty file."),
        (500, "the server failed: MemoryError", "could not answer (code 500): the server failed: MemoryError"),
    ],
)
def test_a_visitor_is_told_in_plain_words(page, code, detail, said):
    page.route("**/predict", lambda route: route.fulfill(status=code, json={"detail": detail}))
    page.set_input_files("#files", [upload()])
    words = page.get_by_role("alert").inner_text()
    assert said in words and "expected" not in words


def test_files_keep_the_order_they_were_chosen_in_and_later_ones_stand_above(page):
    for names in (["b.png", "a.png", "c.png"], ["e.png", "d.png"]):
        page.set_input_files("#files", [upload(name) for name in names])
    assert page.locator("h2").all_inner_texts() == ["e.png", "d.png", "b.png", "a.png", "c.png"]
    page.get_by_text("6 detections").nth(4).wait_for()


def test_labels_cover_neither_each_other_nor_are_crossed_by_boxes(page):
    page.evaluate(
        "window.drawn = []; const prototype = CanvasRenderingContext2D.prototype;"
        "for (const name of ['strokeRect', 'fillRect']) { const draw = prototype[name]; prototype[name] ="
        "function (...sides) { drawn.push([name, ...sides]); return draw.apply(this, sides); }; } null"
    )
    page.set_input_files("#files", [upload()])
    page.get_by_text("6 detections").wait_for()
    drawn = page.evaluate("drawn")
    assert [name for name, *_ in drawn] == ["strokeRect"] * 6 + ["fillRect"] * 6
    # A label is wider than the 160 pixels of the canvas from one box to the next: above its box it would cover another.
    strips = [sides for name, *sides in drawn if name == "fillRect"]
    assert min(width for _, _, width, _ in strips) > 160
    for (x1, y1, width1, height1), (x2, y2, width2, height2) in itertools.combinations(strips, 2):
        assert x1 + width1 <= x2 or x2 + width2 <= x1 or y1 + height1 <= y2 or y2 + height2 <= y1
    assert all(0 <= x <= 480 - width and 0 <= y <= 320 - height for x, y, width, height in strips)


def test_an_image_that_the_browser_cannot_show_is_listed_all_the_same(page):
    page.set_input_files("#files", [upload("old.tif", picture(120, 80, "TIFF"))])
    page.get_by_text("This browser cannot show the image itself.").wait_for()
    assert page.locator("li").count() == 6


def test_the_slider_hides_what_scores_less_and_keys_reach_everything(page):
    page.set_input_files("#files", [upload()])
    page.get_by_text("6 detections").wait_for()
    page.locator("#files").focus()
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached[:3] == ["threshold", "clear", "Remove"] and NAMES[FOUND] in reached[3]
    # While the first box of the list has the focus, the others are pale.
    assert not near(pixel(page, 2.5 * BOXES[4][0], 120), class_colour(FOUND))
    page.locator("#threshold").focus()
    page.keyboard.press("End")
    page.get_by_text("0 detections").wait_for()
    assert near(pixel(page, 2.5 * BOXES[4][0], 120), (30, 60, 20))


def test_nothing_is_wider_than_a_telephone(page):
    page.set_input_files("#files", [upload("a" * 90 + ".png", picture(1_200, 300))])
    page.get_by_text("6 detections").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background_by_day_and_by_night(page, scheme):
    page.emulate_media(color_scheme=scheme)
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert abs(ink - paper) > 500 and (paper > ink) == (scheme == "light")


def test_the_policy_lets_no_other_script_run(browser, url):
    with browser.new_page() as page:
        page.goto(url)
        page.evaluate(
            "const other = document.createElement('script'); other.textContent = 'window.ran = 1';"
            "document.body.append(other)"
        )
        assert page.evaluate("window.ran === undefined")
    assert "unsafe" not in read_page()[1]
