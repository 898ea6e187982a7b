"""The neck and its three grids: channels, shapes, types, and what a fresh head says."""

import keras
import numpy as np
import pytest

from multigrid.geometry.cells import STRIDES
from multigrid.models.head import detection_grids, grid_name

pytestmark = pytest.mark.backend

CHANNELS = 13
FEATURES = {"stride_8": 10, "stride_16": 14, "stride_32": 18}


def build(neck, width=1 / 16, features=FEATURES, channels=CHANNELS):
    """A head alone, on maps with channels that nothing else has."""
    inputs = {name: keras.Input((None, None, filters), name=name) for name, filters in features.items()}
    return keras.Model(inputs, detection_grids(inputs, channels, width=width, neck=neck))


def feature_maps(height=64, width=96, seed=5):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(2, height // stride, width // stride, FEATURES[name])).astype("float32")
        for name, stride in (("stride_8", 8), ("stride_16", 16), ("stride_32", 32))
    }


def convolutions(model):
    """(filters, kernel) of the convolutions between the maps and the grids, by scale."""
    found = {stride: [] for stride in STRIDES}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and not layer.name.startswith("grid"):
            part, stride, *_ = layer.name.split("_")
            assert part in ("neck", "head")
            found[int(stride)].append((layer.filters, layer.kernel_size[0]))
    return found


@pytest.fixture(scope="module", params=["slim", "full"])
def head(request):
    return build(request.param)


def test_the_grids_come_coarse_to_fine_with_the_maps_proportions(head):
    grids = head.predict_on_batch(feature_maps())
    assert [tuple(grid.shape) for grid in grids] == [(2, 2, 3, 13), (2, 4, 6, 13), (2, 8, 12, 13)]


def test_the_slim_neck_alternates_three_narrow_and_wide_convolutions():
    # width 1/16: 256 / 16 = 16 filters at stride 32, halved at each finer scale; each finer one first takes what is
    # carried over by a 1×1, and a 3×1 wide one stands before every grid.
    assert convolutions(build("slim")) == {
        32: [(16, 1), (32, 3), (16, 1), (32, 3)],
        16: [(8, 1), (8, 1), (16, 3), (8, 1), (16, 3)],
        8: [(4, 1), (4, 1), (8, 3), (4, 1), (8, 3)],
    }


def test_the_full_neck_is_yolov3s():
    # 512, 256 and 128 filters by 1/16, five convolutions before each grid's wide one
    five = {filters: [(filters, 1), (2 * filters, 3)] * 3 for filters in (32, 16, 8)}
    assert convolutions(build("full")) == {32: five[32], 16: [(16, 1), *five[16]], 8: [(8, 1), *five[8]]}


def test_at_full_width_slim_neck_and_head_have_3_8_million_parameters():
    # On Darknet53's 1024, 512 and 256 channels, for 3 anchors and 80 classes: 88 channels. A scale of n filters, handed
    # m channels: m n + 9 n 2n + 2n n + 9 n 2n kernels, 6 n of BatchNorm with 4 numbers each, and 88 (2n + 1) of the
    # grid. The finer scales also have the carrying 2n n + 4 n and n more channels.
    scales = [(256, 1024, 0), (128, 512 + 128, 2 * 128 * 128 + 4 * 128), (64, 256 + 64, 2 * 64 * 64 + 4 * 64)]
    expected = sum(m * n + 38 * n * n + 4 * 6 * n + 88 * (2 * n + 1) + carry for n, m, carry in scales)
    assert expected == 3_764_744
    channels = {"stride_8": 256, "stride_16": 512, "stride_32": 1024}
    assert build("slim", width=1.0, features=channels, channels=88).count_params() == expected


@pytest.mark.parametrize("stride", STRIDES)
def test_a_coarse_map_reaches_the_finer_grids_and_no_coarser_one(head, stride):
    maps = feature_maps()
    before = head.predict_on_batch(maps)
    after = head.predict_on_batch({**maps, f"stride_{stride}": -maps[f"stride_{stride}"]})
    changed = [bool(np.any(new != old)) for new, old in zip(after, before, strict=True)]
    assert changed == [finer <= stride for finer in STRIDES]


def test_what_is_carried_over_keeps_its_place():
    # A change in the last cell of the coarse map of 5 × 6, (row 4, column 5): the one 3×3 convolution before the map is
    # handed on carries it to rows 3.. and columns 4.., which are rows 6.. and columns 8.. of the next map of 10 × 12.
    # Two 3×3 convolutions there carry it two cells further.
    maps = feature_maps(160, 192)
    moved = {name: values.copy() for name, values in maps.items()}
    moved["stride_32"][:, -1, -1] += 1.0
    model = build("slim")
    before, after = (model.predict_on_batch(values)[1] for values in (maps, moved))
    rows, columns = np.nonzero(np.any(before != after, axis=(0, 3)))
    assert (rows.min(), columns.min()) == (6 - 2, 8 - 2)
    assert (rows.max(), columns.max()) == (9, 11)


def test_a_fresh_head_says_next_to_nothing_but_its_bias(head):
    assert max(np.abs(grid).max() for grid in head.predict_on_batch(feature_maps())) < 0.5
    for stride in STRIDES:
        layer = head.get_layer(grid_name(stride))
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        assert 0.005 < kernel.std() < 0.02
        assert not np.any(keras.ops.convert_to_numpy(layer.bias))


def test_grids_are_float32_whatever_the_rest_computes_in():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build("slim")
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("head_32_conv").compute_dtype == "bfloat16"
    assert {grid.dtype.name for grid in model.predict_on_batch(feature_maps())} == {"float32"}


def test_an_unknown_neck_is_an_error():
    with pytest.raises(KeyError, match="wide"):
        build("wide")
