"""The top-down neck and the output grids, coarse to fine."""

from keras import initializers, layers

from multigrid.geometry.cells import STRIDES
from multigrid.models.darknet import convolution, scaled

COARSEST_FILTERS = {"slim": 256, "full": 512}  # halved at each finer scale
CONVOLUTIONS = {"slim": 3, "full": 5}  # before a scale's map is handed to the next finer one


def detection_grids(features: dict, channels: int, *, width: float, neck: str) -> list:
    """Three grids of raw numbers from three feature maps.

    Args:
        features: {"stride_32": [B, H/32, W/32, ...], "stride_16": ..., "stride_8": ...}.
        channels: of a cell, 5 + A + C.
        width: multiplies the filters.
        neck: "slim" (three convolutions a scale, as narrow as the authors') or "full" (YOLOv3's five).

    Returns:
        List of [B, H/stride, W/stride, channels] float32, strides 32, 16, 8.
    """
    grids, carried = [], None
    for level, stride in enumerate(STRIDES):
        filters = scaled(COARSEST_FILTERS[neck] // 2**level, width)
        x = features[f"stride_{stride}"]
        if carried is not None:
            x = layers.Concatenate(name=f"neck_{stride}_join")([_upsample(carried, filters, stride), x])
        carried = _squeeze(x, filters, CONVOLUTIONS[neck], stride)
        wide = convolution(carried, 2 * filters, 3, name=f"head_{stride}")
        # small weights: before training a cell says what its bias says, so that every loss has a known start
        start = initializers.RandomNormal(stddev=0.01)
        grid = layers.Conv2D(channels, 1, kernel_initializer=start, dtype="float32", name=grid_name(stride))
        grids.append(grid(wide))
    return grids


def grid_name(stride: int) -> str:
    """Name of the layer that makes a scale's grid."""
    return f"grid_{stride}"


def _upsample(x, filters, stride):
    x = convolution(x, filters, 1, name=f"neck_{stride}_carry")
    return layers.UpSampling2D(2, name=f"neck_{stride}_upsample")(x)


def _squeeze(x, filters, convolutions, stride):
    """Alternates 1×1 and 3×3 convolutions and ends narrow."""
    for index in range(1, convolutions + 1):
        narrow = index % 2 == 1
        size = 1 if narrow else 3
        x = convolution(x, filters if narrow else 2 * filters, size, name=f"neck_{stride}_conv{index}")
    return x
