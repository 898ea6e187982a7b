"""Darknet53: images in [0, 1] to three feature maps.

Source: Redmon & Farhadi 2018, table 1, and the layer list of Darknet's own yolov3.cfg. At width and depth 1 the body
has 52 convolutions and 40,620,640 parameters.
"""

import keras
from keras import layers

FILTERS = (64, 128, 256, 512, 1024)  # of the five stages, each of which halves the image
BLOCKS = (1, 2, 8, 8, 4)
LEAKY_SLOPE = 0.1  # Darknet's; Keras' default is 0.3
BATCH_NORM_EPSILON = 1e-5  # Darknet's; Keras' default 1e-3 changes the outputs of published weights
BATCH_NORM_MOMENTUM = 0.97  # a small data set has a few hundred steps in all for the statistics to settle

# Where a residual block's scale starts: with no statistics to normalize by yet, 23 blocks of 1 would blow the signal up
# a thousandfold and a fresh detector's outputs with it; 0.3 learns as fast as 1, and 0 learns slower.
BLOCK_GAMMA = 0.3


def darknet53(width: float = 1.0, depth: float = 1.0, name: str = "darknet53") -> keras.Model:
    """The backbone.

    Args:
        width: multiplies the filters of every convolution (at least 2, even).
        depth: multiplies the residual blocks of every stage (at least 1).
        name: of the model.

    Returns:
        A `keras.Model` from float images [B, H, W, 3] in [0, 1], sides multiples of 32, to
        {"stride_8": [B, H/8, W/8, 256 width], "stride_16": [B, H/16, W/16, 512 width],
        "stride_32": [B, H/32, W/32, 1024 width]}.
    """
    images = keras.Input((None, None, 3), name="images")
    x = convolution(images, scaled(32, width), 3, name="stem")
    maps = {}
    for stage, (filters, blocks) in enumerate(zip(FILTERS, BLOCKS, strict=True), start=1):
        x = _stage(x, scaled(filters, width), max(1, round(blocks * depth)), name=f"stage{stage}")
        maps[f"stride_{2**stage}"] = x
    return keras.Model(images, {key: maps[key] for key in ("stride_8", "stride_16", "stride_32")}, name=name)


def scaled(filters: int, width: float) -> int:
    """Filters times a width multiplier: even, at least 2."""
    return max(2, 2 * round(filters * width / 2))


def convolution(x, filters: int, size: int, *, stride: int = 1, name: str, gamma: float = 1.0):
    """Convolution without bias, BatchNorm, LeakyReLU: Darknet's brick. `gamma` starts the BatchNorm's scale."""
    if stride == 2:  # Darknet pads the upper left of an even-sided map; Keras' "same" would pad the lower right
        x = layers.ZeroPadding2D(((1, 0), (1, 0)), name=f"{name}_pad")(x)
    padding = "same" if stride == 1 else "valid"
    x = layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(
        epsilon=BATCH_NORM_EPSILON,
        momentum=BATCH_NORM_MOMENTUM,
        gamma_initializer=keras.initializers.Constant(gamma),
        name=f"{name}_bn",
    )(x)
    return layers.LeakyReLU(LEAKY_SLOPE, name=f"{name}_leaky")(x)


def _stage(x, filters, blocks, name):
    x = convolution(x, filters, 3, stride=2, name=f"{name}_down")
    for block in range(1, blocks + 1):
        shortcut = x
        x = convolution(x, filters // 2, 1, name=f"{name}_block{block}_reduce")
        x = convolution(x, filters, 3, name=f"{name}_block{block}_expand", gamma=BLOCK_GAMMA)
        x = layers.Add(name=f"{name}_block{block}_add")([shortcut, x])
    return x
