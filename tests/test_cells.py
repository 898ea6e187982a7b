"""What cells mean: channels, offsets, sizes, and the way from grids to a list of cells and back."""

import math

import numpy as np
import pytest
from backends import compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from multigrid.geometry import cells

pytestmark = pytest.mark.backend

STRIDES = (32, 16, 8)
SHAPES = ((2, 3), (4, 6), (8, 12))  # rows, columns of a 64 × 96 input (height × width)
ANCHORS = np.array([[[60, 45], [33, 80]], [[28, 19], [15, 34]], [[7, 12], [13, 5]]], "float32")
ACTIVATIONS = ("sigmoid", "tanh")


def grids(channels=9, batch=2):
    """Random outputs for a 64 × 96 input."""
    rng = np.random.default_rng(5)
    return [rng.normal(size=(batch, *shape, channels)).astype("float32") for shape in SHAPES]


def test_channels_are_named_in_the_order_of_the_design():
    channels = cells.split_channels(np.arange(12.0), anchors_per_scale=3)
    assert [np.asarray(field).tolist() for field in channels] == [[0, 1], [2, 3], 4, [5, 6, 7], [8, 9, 10, 11]]


def test_the_layout_lists_cells_coarse_to_fine_and_row_by_row():
    layout = cells.layout_of(grids(), STRIDES)
    assert tuple(layout.shapes) == SHAPES and layout.strides == STRIDES
    # 2·3 + 4·6 + 8·12 cells
    assert layout.first_cells == [0, 6, 30, 126]
    expected = [(column, row) for rows, columns in SHAPES for row in range(rows) for column in range(columns)]
    np.testing.assert_array_equal(np.asarray(layout.xy), expected)
    np.testing.assert_array_equal(np.asarray(layout.stride), [32] * 6 + [16] * 24 + [8] * 96)
    np.testing.assert_array_equal(np.asarray(layout.scale), [0] * 6 + [1] * 24 + [2] * 96)


def test_flattened_cells_are_where_the_layout_says():
    outputs = grids()
    layout = cells.layout_of(outputs, STRIDES)
    flat = np.asarray(cells.flatten(outputs))
    assert flat.shape == (2, 126, 9)
    positions, scales = np.asarray(layout.xy).astype(int), np.asarray(layout.scale)
    for index, ((x, y), scale) in enumerate(zip(positions, scales, strict=True)):
        np.testing.assert_array_equal(flat[:, index], outputs[scale][:, y, x])


def test_unflatten_is_the_inverse_of_flatten():
    outputs = grids()
    back = cells.unflatten(cells.flatten(outputs), cells.layout_of(outputs, STRIDES))
    assert len(back) == 3
    for grid, original in zip(back, outputs, strict=True):
        np.testing.assert_array_equal(np.asarray(grid), original)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_flatten_makes_float32_of_a_lower_precision(dtype):
    flat = cells.flatten([ops.cast(grid, dtype) for grid in grids()])
    assert ops.dtype(flat) == "float32"


@pytest.mark.parametrize(
    "activation, logit, expected",
    [
        ("sigmoid", 0.0, 0.5),
        ("sigmoid", math.log(2), 1.0),  # 3 · 2/3 - 1
        ("sigmoid", -math.log(2), 0.0),  # 3 · 1/3 - 1
        ("tanh", 0.0, 0.5),
        # s = sigmoid(0.15 t) = 3/4, e^(0.15 t) = 3, tanh = (9 - 1) / (9 + 1) = 0.8
        ("tanh", math.log(3) / 0.15, 1.55),
        ("tanh", -math.log(3) / 0.15, -0.55),
    ],
)
def test_offsets_at_known_logits(activation, logit, expected):
    measured = cells.offset(ops.convert_to_tensor(np.float32(logit)), activation)
    assert float(measured) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_offsets_grow_with_the_logit_and_span_minus_one_to_two(activation):
    logits = np.linspace(-60.0, 60.0, 481, dtype="float32")
    offsets = np.asarray(cells.offset(ops.convert_to_tensor(logits), activation))
    assert offsets.min() >= -1.0 and offsets.max() <= 2.0
    assert offsets[0] == pytest.approx(-1.0, abs=1e-3) and offsets[-1] == pytest.approx(2.0, abs=1e-3)
    assert (np.diff(offsets) >= 0.0).all()
    inner = np.abs(logits) <= 12.0
    assert (np.diff(offsets[inner]) > 0.0).all() and (np.abs(offsets[inner] - 0.5) < 1.5).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_offset_logits_invert_the_offset(activation):
    # Unequal in x and y, close to both ends, and the ends themselves, which no finite logit reaches.
    wanted = np.array([[-1.0, 2.0], [-0.9999, 1.9999], [-0.37, 1.62], [0.0, 1.0], [0.73, -0.25]], "float32")
    logits = cells.offset_logits(ops.convert_to_tensor(wanted), activation)
    assert np.isfinite(np.asarray(logits)).all()
    np.testing.assert_allclose(np.asarray(cells.offset(logits, activation)), wanted, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(-999, 1999), st.integers(-999, 1999), st.sampled_from(ACTIVATIONS))
def test_every_offset_inside_the_range_comes_back(x, y, activation):
    wanted = np.array([x, y], "float32") / 1000.0
    back = cells.offset(cells.offset_logits(ops.convert_to_tensor(wanted), activation), activation)
    np.testing.assert_allclose(np.asarray(back), wanted, atol=1e-5)


def test_a_hand_made_cell_decodes_to_the_box_it_speaks_of():
    # Stride 16, row 1, column 4. Logits ln 2 and -ln 2 are offsets 1 and 0: centre ((4 + 1)·16, (1 + 0)·16) = (80, 16).
    # It prefers the scale's second anchor, 15 × 34, at 1.5 and 0.5 of its sides: 22.5 × 17.
    outputs = [np.zeros((2, *shape, 5 + 2 + 3), "float32") for shape in SHAPES]
    outputs[1][1, 1, 4, :7] = [math.log(2), -math.log(2), math.log(1.5), math.log(0.5), 3.0, -1.0, 2.0]

    def decode(*outputs):
        layout = cells.layout_of(outputs, STRIDES)
        channels = cells.split_channels(cells.flatten(outputs), 2)
        return cells.unflatten(cells.decode_boxes(channels, layout, ANCHORS, "sigmoid"), layout)

    boxes = compiled(decode)(*outputs)
    np.testing.assert_allclose(np.asarray(boxes[1])[1, 1, 4], [68.75, 7.5, 91.25, 24.5], atol=1e-4)
    # A cell of zeros: its own middle, the first anchor. Stride 8, row 6, column 2: (20, 52), 7 × 12.
    np.testing.assert_allclose(np.asarray(boxes[2])[0, 6, 2], [16.5, 46, 23.5, 58], atol=1e-4)
    # Stride 32, row 1, column 0: (16, 48), 60 × 45; boxes are not clipped to the image.
    np.testing.assert_allclose(np.asarray(boxes[0])[1, 1, 0], [-14, 25.5, 46, 70.5], atol=1e-4)


@pytest.mark.parametrize("log_width, log_height", [(1e4, -1e4), (7.0, -50.0)])
def test_sizes_are_clipped_before_the_exponential(log_width, log_height):
    # ln(1000 / 16) is the limit: 28·62.5 wide, 19 / 62.5 high, around (2 + 0.5, 3 + 0.5)·16.
    box = cells.cell_boxes(
        ops.convert_to_tensor([0.5, 0.5]),
        ops.convert_to_tensor([log_width, log_height]),
        ops.convert_to_tensor([2.0, 3.0]),
        ops.convert_to_tensor(16.0),
        ops.convert_to_tensor([28.0, 19.0]),
    )
    np.testing.assert_allclose(np.asarray(box), [40 - 875, 56 - 0.152, 40 + 875, 56 + 0.152], rtol=1e-5)


def test_the_neighbourhood_holds_each_of_nine_steps_once_with_the_own_cell_in_the_middle():
    assert sorted(cells.NEIGHBOURHOOD) == [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    assert cells.NEIGHBOURHOOD[cells.OWN_CELL] == (0, 0)
    assert cells.NEIGHBOURHOOD[1] == (0, -1)  # (x, y): the cell above


def test_the_nine_cells_around_a_point_go_row_by_row_and_know_where_the_grid_ends():
    layout = cells.layout_of(grids(), STRIDES)
    # x = 2.9, y = 3.2 in cells of the middle scale: column 2, row 3, the last of its 4 rows of 6 columns. The scale
    # begins after 6 cells, so column 1 of row 2 is cell 6 + 2 · 6 + 1 = 19, and column 1 of row 3 is cell 25.
    xy, index, exists = (np.asarray(part)[0, 0] for part in nine([[[2.9, 3.2]]], [[1]], layout))
    assert xy.tolist() == [[x, y] for y in (2, 3, 4) for x in (1, 2, 3)]
    assert index[:6].tolist() == [19, 20, 21, 25, 26, 27]
    assert exists.tolist() == [True] * 6 + [False] * 3
    assert index.min() >= 0 and index.max() < 126


def nine(center, scale, layout):
    return cells.nine_cells(np.array(center, "float32"), np.array(scale, "int32"), layout)


def test_another_activation_is_refused():
    with pytest.raises(ValueError, match="expected tanh or sigmoid, received 'relu'"):
        cells.offset(np.zeros((1, 2), "float32"), "relu")
