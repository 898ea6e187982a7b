"""The report: one page that holds all it needs, says what the files say, and fits a phone."""

import dataclasses
import html
import json
import re

import cv2
import numpy as np
import pytest
from browser import open_browser
from everywhere import SIZE, everywhere, scenes
from labelled_boxes import results_of, truth_of

from multigrid.detection.records import to_records
from multigrid.evaluation import html_parts
from multigrid.evaluation.errors import FALSE_POSITIVES, KINDS, find_errors
from multigrid.evaluation.evaluator import coco_metrics, to_coco_ground_truth
from multigrid.evaluation.html_report import PLOTS, write_report
from multigrid.evaluation.matching import match
from multigrid.evaluation.run import Evaluation, evaluate
from multigrid.evaluation.sheets import worst_examples
from multigrid.prediction.predictor import Predictor

NAMES = ('<b>"x"&', "a class whose name is longer than a telephone is wide, " * 2, "blue")
UPPER, LOWER, SPOT = (28, 2, 68, 30), (28, 34, 68, 62), (79, 49, 82, 51)
SCENES = [(1, UPPER), (0, LOWER), (2, SPOT)], [(2, LOWER), (1, (20, 30, 60, 58))], [(1, (3, 2, 12, 9))]


@pytest.fixture(scope="module")
def detector():
    return everywhere()


def evaluated(detector, samples, least=0.3, names=NAMES, **options):
    predictor = Predictor(detector, names, SIZE, score_threshold=least, max_detections=60, **options)
    return evaluate(predictor, samples, names, predict_threshold=0.6, trace=True)


def evaluated_nothing(samples):
    """An evaluation that found nothing."""
    return evaluated(everywhere(stride_32=-9.0, stride_16=-9.0, stride_8=-9.0), samples)


@pytest.fixture(scope="module")
def written(detector, tmp_path_factory):
    """(folder, evaluation) with a report in the folder."""
    folder = tmp_path_factory.mktemp("evaluation")
    samples = scenes(tmp_path_factory.mktemp("images"), *SCENES)
    evaluation = evaluated(detector, samples)
    for name in PLOTS:
        cv2.imwrite(str(folder / name), np.full((450, 600, 3), 200, np.uint8))
    assert write_report(folder, evaluation, samples, NAMES, {"weights": "a <file>.h5"}) == folder / "report.html"
    return folder, evaluation


def page_of(folder) -> str:
    return (folder / "report.html").read_text("utf-8")


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]))


def test_the_page_needs_no_network_and_no_file_beside_it(written):
    page = page_of(written[0])
    sources = re.findall(r'(?:src|href|srcset|data)\s*=\s*"([^"]*)"', page)
    assert len(sources) > len(PLOTS) + 10
    assert {source.split(";")[0] for source in sources} == {"data:image/png", "data:image/jpeg"}
    assert not re.search(r"https?://|url\(|@import|<script|<link|<iframe", page)
    assert page.count("<img") == len(sources) and len(page) < 2e6


def test_names_are_text_whatever_they_hold(written):
    page = page_of(written[0])
    assert NAMES[0] not in page and "<file>" not in page
    assert html.escape(NAMES[0]) in page and "a &lt;file&gt;.h5" in page
    assert NAMES[0] in text_of(page) and "<b>" not in page.replace('"><b>', "").replace("</span><b>", "")


def test_the_page_says_what_the_files_say(written):
    folder, evaluation = written
    funnel, errors = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("funnel", "errors"))
    said = " ".join(text_of(page_of(folder)).split())
    assert " ".join(funnel["verdict"].split()) in said
    counts = funnel["thresholds"][-1]["all"]
    for step, meaning in funnel["steps"].items():
        shown = f"{counts[step]:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        assert " ".join(f"{step}: {meaning} {shown}".split()) in said
    for kind in KINDS:
        points, number = 100 * errors["cost"][kind], errors["counts_at_threshold"]["all"][kind]
        assert f"{kind}: {errors['kinds'][kind]} {points:.1f} points, {number} times" in said
    for row in funnel["at_confidence"]:
        assert f"{row['confidence']:g} {row['detections']} {row['per_image']:.1f}" in said
    assert f"{evaluation.metrics['mAP']:.3f} mAP" in said
    agnostic = evaluation.full_metrics["class_agnostic"]
    assert f"all classes as one, mAP is {agnostic['mAP']:.3f} and AP50 {agnostic['mAP50']:.3f}." in said


@pytest.mark.parametrize("names", [["die"], ["die", "card"]])
def test_one_class_is_not_told_twice(tmp_path, names):
    samples = scenes(tmp_path, [(0, UPPER)])
    truth, records = to_coco_ground_truth(samples, names), to_records(4, [UPPER], [0.9], [0])
    evaluation = Evaluation(coco_metrics(truth, records), records, truth, 0.25, None, {})
    write_report(tmp_path, evaluation, samples, names)
    assert ("With all classes as one, mAP is 1.000" in text_of(page_of(tmp_path))) == (len(names) > 1)


def test_the_files_add_up(written):
    folder, evaluation = written
    funnel, errors = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("funnel", "errors"))
    for row, threshold in enumerate((0.3, 0.6)):
        steps = list(funnel["thresholds"][row]["all"].values())
        assert steps == sorted(steps, reverse=True)
        assert steps[-1] == evaluation.matches.above(threshold).true_positive.sum() > 0
    counts = errors["counts_of_all"]["all"]
    assert counts["true"] + sum(counts[kind] for kind in FALSE_POSITIVES) == len(evaluation.matches.score)
    sheets = sorted(path.name for path in folder.glob("errors_*.jpg"))
    occurring = [kind for kind in sorted(KINDS) if counts[kind] or errors["counts_at_threshold"]["all"][kind]]
    assert sheets == [f"errors_{kind}.jpg" for kind in occurring] and len(sheets) >= 3
    assert all(cv2.imread(str(folder / name)) is not None for name in sheets)


def test_every_error_names_its_image_and_box_on_the_page_and_in_the_file(written):
    folder, evaluation = written
    examples = json.loads((folder / "errors.json").read_text("utf-8"))["examples"]
    sheets = {path.stem.removeprefix("errors_") for path in folder.glob("errors_*.jpg")}
    assert examples.keys() == sheets > {"missed", "bkg"}
    page = page_of(folder)
    for kind, shown in examples.items():
        assert 0 < len(shown) <= 12
        for one in shown:
            assert one.keys() == {"image", "box_xyxy", "class", "score", "truth_class", "iou"}
            corners = ", ".join(f"{side:.0f}" for side in one["box_xyxy"])
            assert f"<small>{re.split('[/]', one['image'])[-1]}: {corners}</small>" in page
        if kind not in ("missed", "bkg"):
            assert all(one["truth_class"] in NAMES and 0.1 <= one["iou"] <= 1 for one in shown)
        if kind != "missed":
            assert [one["score"] for one in shown] == sorted((one["score"] for one in shown), reverse=True)
    assert {(one["truth_class"], one["iou"]) for one in examples["bkg"]} == {(None, None)}


def test_a_missed_object_says_what_finds_it_at_a_lower_score(tmp_path):
    # The upper object is found at 0.4 by a box that is 4 pixels narrower: IoU 36 / 40; the lower one never.
    found = match(truth_of([(4, 2, UPPER), (4, 0, LOWER)], NAMES, (4,)), results_of([(4, 2, 0.4, (32, 2, 68, 30))]))
    samples = scenes(tmp_path, [(2, UPPER), (0, LOWER)])
    missed = worst_examples(find_errors(found), 0.6, samples, NAMES)["missed"]
    upper, lower = sorted((one.values() for one in missed), key=lambda one: one["box_xyxy"][1])
    image = samples[0].path
    assert upper.pop("iou") == pytest.approx(0.9) and lower.pop("iou") is None
    assert upper == {"image": image, "box_xyxy": [*UPPER], "class": "blue", "score": 0.4, "truth_class": "blue"}
    assert lower == {"image": image, "box_xyxy": [*LOWER], "class": None, "score": None, "truth_class": NAMES[0]}


def test_pictures_of_an_earlier_evaluation_go_and_files_of_others_stay(written, tmp_path):
    _, evaluation = written
    samples = scenes(tmp_path, *SCENES)
    for name in ("errors_both.jpg", "errors_mine.jpg", "errors_loc.png"):
        (tmp_path / name).write_bytes(b"old")
    write_report(tmp_path, evaluated_nothing(samples), samples, NAMES)
    left = {path.name for path in tmp_path.glob("errors_*")}
    assert left == {"errors_mine.jpg", "errors_loc.png", "errors_missed.jpg"}


def test_the_heading_says_what_was_evaluated_and_settings_are_lists(written, tmp_path):
    _, evaluation = written
    samples = scenes(tmp_path, *SCENES)
    settings = {"run": "mine-1", "weights": "runs/mine-1/weights/best.weights.h5", "split": "test", "scales": (0.5, 1)}
    write_report(tmp_path, evaluation, samples, NAMES, settings)
    page = page_of(tmp_path)
    for tag in ("title", "h1"):
        assert f"<{tag}>Evaluation: mine-1, best.weights.h5, test</{tag}>" in page
    assert "<dd>[0.5, 1]</dd>" in page
    write_report(tmp_path, evaluation, samples, NAMES)
    assert "<h1>Evaluation</h1>" in page_of(tmp_path)


def test_all_of_the_page_is_at_one_confidence(detector, tmp_path):
    samples = scenes(tmp_path, *SCENES)
    evaluation = evaluated(detector, samples, least=0.7)  # more than the 0.6 from which people see a detection
    write_report(tmp_path, evaluation, samples, NAMES)
    said = " ".join(text_of(page_of(tmp_path)).split())
    assert evaluation.full_metrics["confusion"]["threshold"] == 0.7
    assert "The funnel at confidence 0.7" in said and "it occurs at confidence 0.7." in said
    assert "confidence 0.6" not in said


def test_it_fits_a_phone_and_a_desk_in_light_and_dark(written):
    folder, _ = written
    asked = []
    with open_browser() as browser:
        for width in (390, 1280):
            grounds = set()
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                page.on("request", lambda request: asked.append(request.url))
                page.goto((folder / "report.html").as_uri())
                for one in page.query_selector_all("summary"):
                    one.click()
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
                grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                page.close()
            assert len(grounds) == 2
    assert {url for url in asked if not url.startswith("data:")} == {(folder / "report.html").as_uri()}
    assert len(asked) >= 4


def test_without_a_trace_or_plots_the_rest_is_told(written, tmp_path):
    _, evaluation = written
    samples = scenes(tmp_path, *SCENES)
    folder = tmp_path / "report"
    write_report(folder, dataclasses.replace(evaluation, trace=None), samples, NAMES)
    page = page_of(folder)
    assert "The funnel" not in page and "data:image/png" not in page and "Errors</h2>" in page
    assert not (folder / "funnel.json").exists() and (folder / "errors.json").exists()


@pytest.mark.parametrize(
    "objects, least, said",
    [
        ([[], []], 0.5, "No object is labelled, so nothing can be said about what errors cost."),
        (SCENES, 0.999, "objectness: no cell reaches 0.999; the highest objectness is 0.993"),
        ([], 0.5, "No image was looked at."),
    ],
)
def test_no_objects_no_detections_and_no_images_are_reported_too(detector, tmp_path, objects, least, said):
    samples = scenes(tmp_path, *objects)
    folder = tmp_path / "report"
    write_report(folder, evaluated(detector, samples, least), samples, NAMES)
    assert said in text_of(page_of(folder))


def test_figures_are_written_for_people():
    assert [html_parts.text(value) for value in (None, 0.12345, np.float32(2), float("nan"), 1234567, "<", True)] == [
        "–", "0.123", "2.000", "–", "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567", "&lt;", "True",
    ]  # fmt: skip
    # A share outside 0 to 1 does not leave its track.
    assert "width:100.0%" in html_parts.bars([("name", "1", 1.7, False)])
