"""Decoding: grids that say a box decode to that box, and scores are objectness times class."""

import json

import keras
import numpy as np
import pytest

from multigrid.detection.decode import DecodeGrids, with_decoder
from multigrid.geometry.cells import NEIGHBOURHOOD, offset_logits
from multigrid.models.detector import MultiGridDetector

pytestmark = pytest.mark.backend

ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
STRIDES = (32, 16, 8)
CLASSES = 3
SHAPES = ((2, 3), (4, 6), (8, 12))  # of 64 × 96 pixels


def empty_grids(batch=1):
    return [np.zeros((batch, *shape, 5 + 2 + CLASSES), "float32") for shape in SHAPES]


def decoder(offset_activation="tanh", class_activation="sigmoid"):
    return DecodeGrids(ANCHORS, STRIDES, offset_activation=offset_activation, class_activation=class_activation)


def decode(grids, **options):
    return {name: keras.ops.convert_to_numpy(values) for name, values in decoder(**options)(grids).items()}


def flat_index(scale, row, column):
    """Place of a cell in the flattened list: scales coarse to fine, each row by row."""
    return sum(rows * columns for rows, columns in SHAPES[:scale]) + row * SHAPES[scale][1] + column


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize(
    # centre (41.3, 22.6) lies in cell (row 0, column 1), (1, 2) and (2, 5) of strides 32, 16 and 8
    ("scale", "anchor", "box"),
    [(0, 1, (11.3, 2.1, 71.3, 43.1)), (1, 0, (29.3, 17.6, 53.3, 27.6)), (2, 1, (36.3, 13.6, 46.3, 31.6))],
)
def test_every_cell_that_answers_for_a_box_decodes_to_it(scale, anchor, box, activation):
    box = np.array(box)
    center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    np.testing.assert_allclose(center, (41.3, 22.6))
    own = np.floor(center / STRIDES[scale]).astype(int)
    grids, places = empty_grids(), []
    for step in NEIGHBOURHOOD:
        column, row = own + step
        if not (0 <= row < SHAPES[scale][0] and 0 <= column < SHAPES[scale][1]):
            continue
        offset = (center / STRIDES[scale] - (column, row)).astype("float32")
        cell = grids[scale][0, row, column]
        cell[0:2] = keras.ops.convert_to_numpy(offset_logits(keras.ops.convert_to_tensor(offset), activation))
        cell[2:4] = np.log(size / ANCHORS[scale][anchor])
        cell[5 + anchor] = 4.0
        places.append(flat_index(scale, row, column))
    assert len(places) >= 6  # the coarsest grid has but two rows
    found = decode(grids, offset_activation=activation)["boxes"][0, places]
    np.testing.assert_allclose(found, np.tile(box, (len(places), 1)), atol=2e-3)


def test_a_silent_cell_decodes_to_the_first_anchor_about_its_middle():
    # sigmoid(0) = 1/2, tanh(0) = 0: the middle of the cell. Row 3, column 10 of stride 8 has its middle at
    # (10.5 · 8, 3.5 · 8) = (84, 28); anchor (8, 6).
    boxes = decode(empty_grids())["boxes"]
    assert boxes.shape == (1, 6 + 24 + 96, 4)
    np.testing.assert_allclose(boxes[0, flat_index(2, 3, 10)], (80.0, 25.0, 88.0, 31.0), atol=1e-5)


def test_boxes_may_leave_the_image():
    # the coarsest grid's first cell, anchor (70, 50) about (16, 16)
    grids = empty_grids()
    grids[0][0, 0, 0, 6] = 1.0
    np.testing.assert_allclose(decode(grids)["boxes"][0, 0], (-19.0, -9.0, 51.0, 41.0), atol=1e-5)


def test_the_score_is_objectness_times_the_sigmoid_of_each_class():
    grids = empty_grids(batch=2)
    grids[1][1, 2, 4, 4] = 2.0
    grids[1][1, 2, 4, 7:] = (1.0, -3.0, 0.5)
    scores = decode(grids)["scores"]
    assert scores.shape == (2, 126, CLASSES) and scores.dtype == np.float32
    # sigmoid(2) = 0.880797; sigmoid of 1, -3, 0.5 = 0.731059, 0.047426, 0.622459
    expected = 0.880797 * np.array([0.731059, 0.047426, 0.622459])
    np.testing.assert_allclose(scores[1, flat_index(1, 2, 4)], expected, atol=1e-5)
    np.testing.assert_allclose(scores[0], 0.25, atol=1e-6)


def test_rescored_it_is_times_the_probability_of_the_preferred_anchor_too():
    grids = empty_grids()
    grids[1][0, 2, 4, 4] = 2.0
    grids[1][0, 2, 4, 5:7] = (np.log(3.0), np.log(1.0))
    layer = DecodeGrids(ANCHORS, STRIDES, offset_activation="tanh", class_activation="sigmoid", rescore=True)
    found = {name: keras.ops.convert_to_numpy(values) for name, values in layer(grids).items()}
    # sigmoid(2) x 3 / 4 x sigmoid(0); elsewhere .5 x 1 / 2 x .5
    np.testing.assert_allclose(found["scores"][0, flat_index(1, 2, 4)], 0.880797 * 0.75 * 0.5, atol=1e-5)
    np.testing.assert_allclose(found["scores"][0, 0], 0.125, atol=1e-6)
    np.testing.assert_allclose(found["objectness"][0, flat_index(1, 2, 4)], 0.880797, atol=1e-5)


def test_with_softmax_the_classes_of_a_cell_share_its_objectness():
    grids = empty_grids()
    grids[2][0, 7, 1, 4] = 2.0
    grids[2][0, 7, 1, 7:] = (np.log(5.0), np.log(2.0), np.log(1.0))
    scores = decode(grids, class_activation="softmax")["scores"]
    # 5, 2 and 1 of 8
    expected = 0.880797 * np.array([5, 2, 1]) / 8
    np.testing.assert_allclose(scores[0, flat_index(2, 7, 1)], expected, atol=1e-5)


def test_the_layers_config_makes_it_again():
    layer = decoder("sigmoid", "softmax")
    layer.rescore = True
    again = DecodeGrids.from_config(json.loads(json.dumps(layer.get_config())))
    grids = [np.random.default_rng(1).normal(size=grid.shape).astype("float32") for grid in empty_grids()]
    for name, values in layer(grids).items():
        np.testing.assert_allclose(again(grids)[name], values, atol=1e-6)


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(4)
    kinds = {"offset_activation": "sigmoid", "class_activation": "softmax"}
    return MultiGridDetector(ANCHORS, CLASSES, width=1 / 16, depth=1 / 8, **kinds)


def test_a_decoder_behind_a_detector_reads_its_grids_and_shares_its_weights(detector):
    images = np.random.default_rng(6).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    model = with_decoder(detector)

    def agree():
        expected = decode(detector.predict_on_batch(images), offset_activation="sigmoid", class_activation="softmax")
        found = model.predict_on_batch(images)
        for name in ("boxes", "scores"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
        return found["scores"].max()

    before = agree()
    layer = detector.get_layer("grid_16")
    layer.bias.assign(np.full(layer.bias.shape, 3.0))
    assert agree() > before
    assert {id(variable) for variable in model.weights} == {id(variable) for variable in detector.weights}


def test_it_knows_its_outputs_before_it_runs(detector):
    boxes, scores = (with_decoder(detector).output[name] for name in ("boxes", "scores"))
    assert (boxes.shape, scores.shape) == ((None, None, 4), (None, None, CLASSES))
    assert (boxes.dtype, scores.dtype) == ("float32", "float32")
