"""Every key and every default of the project: the sections of a config, and Config, which holds them."""

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from multigrid.config.values import (
    SHAPES,
    Callbacks,
    ClassWeights,
    Epochs,
    ExistingFile,
    Frozen,
    InputSize,
    Multipliers,
    MultiScale,
    Normalization,
    Number,
    PathRule,
    Says,
    Scales,
    SourcePath,
    Steps,
    Text,
)
from multigrid.config.yaml_text import YamlDumper, plain, value_at

# The parts of the loss, by the name they have in logs, results and the probe, and the key that multiplies each.
LOSS_PARTS = {
    "localization": "coord_scale",
    "object": "object_scale",
    "no_object": "no_object_scale",
    "anchor": "anchor_scale",
    "classification": "class_scale",
}
# Those that are there only where their key is above 0.
OPTIONAL_LOSS_PARTS = {"consensus": "consensus_scale", "suppression": "suppression_scale"}


def with_objectness(values: dict) -> dict:
    """Values by part, and beside them "objectness", the sum of those of cells with and without an object."""
    return {**values, "objectness": values["object"] + values["no_object"]}


def _default_steps() -> tuple[dict[str, Any], ...]:
    """What is done to training images besides mosaic and mixup; the steps run in this order."""
    return (
        {"name": "HorizontalFlip", "p": 0.5},
        {
            "name": "Affine",
            "scale": [0.7, 1.3],
            "translate_percent": {"x": [-0.1, 0.1], "y": [-0.1, 0.1]},
            "balanced_scale": True,
            "keep_ratio": True,
            "fill": 114,
            "p": 0.7,
        },
        {
            "name": "HueSaturationValue",
            "hue_shift_limit": 5,
            "sat_shift_limit": 40,
            "val_shift_limit": 40,
            "p": 0.7,
        },
        {"name": "RandomBrightnessContrast", "brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.3},
        {"name": "ToGray", "p": 0.01},
        {"name": "Blur", "blur_limit": 3, "p": 0.01},
    )


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShapesConfig(_Section):
    """The embedded data set of drawn scenes."""

    folder: Annotated[Text, PathRule("a path")] = Field(
        "datasets/shapes",
        description="Where scenes are drawn to and reused from; the default lies in the working directory.",
    )
    train: StrictInt = Field(640, ge=1, description="Scenes to train on.")
    val: StrictInt = Field(160, ge=1, description="Scenes to validate on.")
    test: StrictInt = Field(160, ge=1, description="Scenes to test on.")
    seed: StrictInt = Field(7, ge=0, description="Decides what is drawn.")


class DataConfig(_Section):
    """Images and labels."""

    train: SourcePath = Field(
        None,
        description="Labels to train on: keras-yolo3 lines, Pascal VOC, COCO, or YOLO's data.yaml; "
        f"`{SHAPES}` is the drawn data set.",
    )
    val: SourcePath = Field(None, description="Labels to validate on after an epoch; the same kinds.")
    test: SourcePath = Field(None, description="Labels for the last word on a trained detector; the same kinds.")
    classes: ExistingFile = Field(None, description="Class names, one a line; their order gives the class numbers.")
    anchors: ExistingFile = Field(None, description="Anchors, `width,height` in pixels of the network's input.")
    strict: StrictBool = Field(False, description="A defective label is an error, not dropped and counted.")
    cache: StrictBool = Field(False, description="Keep the decoded images in memory.")
    workers: StrictInt = Field(2, ge=0, description="Threads that prepare batches; 0 prepares them in between steps.")
    shapes: ShapesConfig = ShapesConfig()


class ModelConfig(_Section):
    """The network."""

    width: Number = Field(0.25, gt=0, le=2, description="Multiplies the channels of Darknet53; 1 is YOLOv3's backbone.")
    depth: Number = Field(1.0, gt=0, le=2, description="Multiplies the residual blocks of Darknet53.")
    input_size: InputSize = Field((416, 416), description="Size of the images that the network sees.")
    neck: Literal["slim", "full"] = Field("slim", description="Neck of the multi-grid paper, or as large as YOLOv3's.")
    offset_activation: Literal["tanh", "sigmoid"] = Field(
        "sigmoid", description="Maps offset logits t onto (-1, 2): tanh(0.15 t) + sigmoid(0.15 t), or 3 sigmoid(t) - 1."
    )
    objectness_prior: Number = Field(
        0.01, gt=0, lt=1, description="Objectness that every cell starts with, set as the bias of a new head."
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "float32", description="Keras' dtype policy; heads and loss stay float32."
    )


class AugmentationConfig(_Section):
    """What training images go through; validation and test images are only letterboxed."""

    steps: Steps = Field(
        default_factory=_default_steps, description="Albumentations pipeline, in order; an empty list turns it off."
    )
    mosaic: Number = Field(0.5, ge=0, le=1, description="Probability that an image becomes a mosaic of four.")
    mixup: Number = Field(0.0, ge=0, le=1, description="Probability that an image is blended with another.")
    mosaic_off_epochs: StrictInt = Field(5, ge=0, description="Last epochs without mosaic and mixup.")
    multi_scale: MultiScale = Field(
        None, description="Span of factors of the input size, drawn anew for each batch and rounded to multiples of 32."
    )
    min_visibility: Number = Field(
        0.1, ge=0, le=1, description="A box that keeps less than this share of its area in the image is dropped."
    )


class StageConfig(_Section):
    """A stretch of a training with its own frozen blocks and learning rate."""

    epochs: StrictInt = Field(ge=1, description="Passes over the training images.")
    freeze: Frozen = Field("none", description="What stays as it is.")
    learning_rate: Number | None = Field(None, gt=0, description="Highest of the stage; null is training's.")
    gradual: StrictBool = Field(False, description="Free the frozen blocks one by one, from the head's side.")


_STAGE = "{epochs: an integer >= 1, freeze: what stays, learning_rate: a number > 0 or null, gradual: true or false}"
Stages = Annotated[tuple[StageConfig, ...], Says(f"a list of {_STAGE}", item=_STAGE)]


class TrainingConfig(_Section):
    """Optimization."""

    epochs: StrictInt = Field(100, ge=1, description="Passes over the training images.")
    batch_size: StrictInt = Field(8, ge=1, description="Images a step.")
    learning_rate: Number = Field(2e-3, gt=0, description="Highest learning rate, reached at the end of the warm-up.")
    final_learning_rate_fraction: Number = Field(
        0.05, ge=0, le=1, description="Share of the learning rate that cosine and exponential end at."
    )
    schedule: Literal["cosine", "step", "exponential", "constant", "plateau"] = Field(
        "cosine", description="How the learning rate goes on after the warm-up."
    )
    step_epochs: Epochs = Field(
        None, description="Epochs after which schedule step drops; null is two thirds and eight ninths of its stage."
    )
    step_factor: Number = Field(0.1, gt=0, lt=1, description="What each drop of schedule step multiplies by.")
    plateau_patience: StrictInt = Field(
        5, ge=1, description="Validations without a better one before schedule plateau drops."
    )
    plateau_factor: Number = Field(0.5, gt=0, lt=1, description="What each drop of schedule plateau multiplies by.")
    head_lr_multiplier: Number = Field(
        1.0, gt=0, description="Multiplies the learning rate of the head: the blocks head_* and grid_*."
    )
    lr_multipliers: Multipliers = Field(
        default_factory=dict, description="Multiplies the learning rate of a block, as in {stage1: 0.1}."
    )
    gradient_accumulation: StrictInt = Field(1, ge=1, description="Batches whose gradients make one update.")
    freeze: Frozen = Field(
        "none", description="What stays as it is, BatchNorm statistics included; a stage has its own."
    )
    stages: Stages = Field(
        (), description="The training in stages, one after the other; their epochs are then those of the training."
    )
    seed: StrictInt = Field(1, ge=0, description="Decides first weights, order and augmentation.")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="How gradients move weights.")
    momentum: Number = Field(0.9, ge=0, lt=1, description="Momentum of sgd, beta 1 of adam and adamw.")
    weight_decay: Number = Field(5e-4, ge=0, description="Decay of kernels; biases and normalization have none.")
    warmup_epochs: Number = Field(1.0, ge=0, description="Epochs of linear warm-up; fractions count.")
    max_grad_norm: Number | None = Field(
        1000.0, gt=0, description="Gradients of a larger global norm are scaled to it."
    )
    ema: Number | None = Field(
        0.99, gt=0, lt=1, description="Momentum of the moving average of weights that is evaluated and saved."
    )
    monitor: Literal["auto", "val_mAP", "val_mAP50", "val_loss", "loss"] = Field(
        "auto",
        description="What chooses the best weights, stops early and finds a plateau; auto is val_mAP, or the loss "
        "where there are no labelled objects to validate on.",
    )
    early_stopping: StrictInt | None = Field(
        None, ge=1, description="Validations without a better one before training, or its stage, stops."
    )
    time_budget: Number | None = Field(None, gt=0, description="Minutes after which no further epoch begins.")
    save_every: StrictInt | None = Field(
        None, ge=1, description="Epochs from one file weights/epoch-N.weights.h5 to the next."
    )
    keep_last: StrictInt = Field(3, ge=1, description="How many of those files stay.")
    pictures_every: StrictInt | None = Field(
        10, ge=1, description="Epochs from one picture of predictions in TensorBoard to the next; the last has one."
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="A batch whose loss or gradient is not finite ends the training, or is dropped and counted; either "
        "way it moves no weight, and the first one is kept for multigrid replay.",
    )
    strategy: Literal["none", "mirrored"] = Field(
        "none", description="mirrored shares each batch among all GPUs of this machine (TensorFlow)."
    )
    jit_compile: Literal["auto"] | StrictBool = Field(
        "auto", description="XLA; auto is on with JAX, and with TensorFlow on for GPUs, off for CPUs and for mirrored."
    )
    validate_every: StrictInt = Field(1, ge=1, description="Epochs from one validation mAP to the next.")

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole training: those of its stages, where it has stages."""
        return sum(stage.epochs for stage in self.stages) or self.epochs


class LossConfig(_Section):
    """What the network is trained towards: coefficient, kind and divisor of each part of the loss."""

    coord_scale: Number = Field(5.0, ge=0, description="Multiplies the localization loss.")
    object_scale: Number = Field(1.0, ge=0, description="Multiplies the objectness loss of positive cells.")
    no_object_scale: Number = Field(1.0, ge=0, description="Multiplies the objectness loss of negative cells.")
    anchor_scale: Number = Field(1.0, ge=0, description="Multiplies the anchor loss.")
    class_scale: Number = Field(1.0, ge=0, description="Multiplies the classification loss.")
    consensus_scale: Number = Field(
        0.0, ge=0, description="Multiplies the variance of what the cells of one object say; 0 leaves it out."
    )
    suppression_scale: Number = Field(
        0.0, ge=0, description="Multiplies the objectness loss of ignored cells worse than the best; 0 leaves it out."
    )
    loss_normalization: Normalization = Field(
        ("batch",),
        description="Divides every part: by images of the batch, positive cells, or all cells; a list multiplies them.",
    )
    assignment: Literal["inside", "paper", "single", "best", "across"] = Field(
        "across",
        description="Which of the 3×3 cells around a centre answer for the object (are positive). paper: all; single: "
        "the centre's own; inside: that one and those whose centre lies in the box; best: the two that predict it best "
        "at the moment; across: these, and in the grid beside up to two of those that inside takes there.",
    )
    localization: Literal["ciou", "giou", "diou", "mse"] = Field("ciou", description="Loss of a positive cell's box.")
    classification: Literal["bce", "softmax", "focal"] = Field("bce", description="Loss of a positive cell's class.")
    anchor: Literal["softmax", "bce"] = Field("softmax", description="Loss of a positive cell's choice of anchor.")
    label_smoothing: Number = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share e of the class target that is spread evenly: over the C classes, e / C each (softmax), or "
        "over yes and no of every class, e / 2 each (bce, focal).",
    )
    class_weights: ClassWeights = Field(
        None, description="Weight of each class in the classification loss, given or counted from the training labels."
    )
    focal_gamma: Number = Field(2.0, ge=0, description="Exponent of the focal loss.")
    focal_alpha: Number = Field(0.25, ge=0, le=1, description="Weight of the true class in the focal loss.")
    iou_power: Number = Field(
        1.0, ge=0, description="A positive cell's objectness target is its box's IoU to this power; 0 makes it 1."
    )
    iou_blend: Number = Field(1.0, ge=0, le=1, description="Share of the IoU in that target; the rest is 1.")
    ignore_threshold: Number = Field(
        0.5, ge=0, le=1, description="A negative cell whose box overlaps a true box by more has no objectness loss."
    )


class DetectionConfig(_Section):
    """From raw grids to boxes."""

    score_threshold: Number = Field(0.001, ge=0, le=1, description="Lowest score that evaluation counts.")
    rescore: StrictBool = Field(
        False, description="Multiply scores by the probability of the anchor that the cell prefers."
    )
    suppression: Literal["nms", "soft_nms", "diou_nms", "iol_nms", "wbf", "consensus", "vote"] = Field(
        "consensus",
        description="What becomes of boxes that say the same: the best stays and moves to their mean (consensus), and "
        "its score follows how many agree (vote); or it stays where it is, overlap being IoU (nms), distance IoU or "
        "intersection over the larger area; or the others lose score (soft_nms); or all are fused one by one (wbf).",
    )
    nms_threshold: Number = Field(0.5, ge=0, le=1, description="Above this overlap two boxes of a class say the same.")
    soft_sigma: Number = Field(
        0.5, gt=0, description="With soft_nms: exp(-IoU² / soft_sigma) of the weaker box's score is left."
    )
    max_detections: StrictInt = Field(300, ge=1, description="Most boxes of an image.")
    predict_threshold: Number = Field(0.25, ge=0, le=1, description="Lowest score that prediction draws and writes.")
    flip: StrictBool = Field(False, description="Look at every image a second time, mirrored left to right.")
    scales: Scales = Field((1.0,), description="Sizes at which every image is looked at, as multiples of input_size.")


class OutputConfig(_Section):
    """What a run leaves behind."""

    dir: Annotated[Text | None, PathRule("a path, or null")] = Field(
        None, description="The run folder; null makes a new `runs/<config>-N`."
    )


class Config(_Section):
    """All that a run depends on."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    training: TrainingConfig = TrainingConfig()
    loss: LossConfig = LossConfig()
    detection: DetectionConfig = DetectionConfig()
    output: OutputConfig = OutputConfig()
    weights: ExistingFile = Field(None, description="Weights of the whole detector to start from.")
    backbone_weights: ExistingFile = Field(None, description="Weights of the backbone alone to start from.")
    allow_partial: StrictBool = Field(
        False, description="Accept weights that fill only part of the backbone; the rest starts at random."
    )
    diagnosis: Literal["none", "watch"] = Field(
        "none", description="watch: the doctor looks on while it trains, and names the cause when something goes wrong."
    )
    callbacks: Callbacks = Field(
        (), description="More Keras callbacks, as in {name: keras.callbacks.TerminateOnNaN}; arguments stand beside."
    )

    def save(self, path: str | os.PathLike) -> None:
        """Writes every key, with absolute paths, as a file that loads back to an equal Config."""
        text = self.text(path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def text(self, path: str | os.PathLike) -> str:
        """What `save` writes into a file of this name."""
        values = self.model_dump()
        for keys, rule in path_rules():
            *sections, last = keys
            holder = value_at(values, tuple(sections))
            if holder[last] not in (None, rule.word):
                holder[last] = os.path.abspath(holder[last])
        path = os.path.abspath(path)
        body = yaml.dump(plain(values), Dumper=YamlDumper, sort_keys=False, default_flow_style=None, allow_unicode=True)
        # a run folder takes one run: whoever repeats it gets a new one
        return f"# multigrid train --config {shlex.quote(path)} output.dir=null\n{body}"


MODEL_FILE_KEY = "model_config"
MODEL_FILE_RULE = PathRule("an existing YAML file with the keys of `model`, or null", must_be="file")
MODEL_FILE_DESCRIPTION = "A file with the keys of `model`; keys under `model` win over it, the command line over both."


def fields(section: type[BaseModel] = Config, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every (path, pydantic field) of the config that holds a value, sections left out."""
    for name, info in section.model_fields.items():
        if is_section(info.annotation):
            yield from fields(info.annotation, (*prefix, name))
        else:
            yield (*prefix, name), info


def is_section(annotation: Any) -> bool:
    """Whether a field's type is a section of keys and not a value."""
    # A generic such as tuple[int, int] passes for a type on Python 3.10.
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel)


def path_rules() -> list[tuple[tuple[str, ...], PathRule]]:
    """The keys that hold paths, and the rule of each."""
    return [(path, rule) for path, info in fields() for rule in info.metadata if isinstance(rule, PathRule)]


def schema(path: Sequence[Any]) -> tuple[tuple[str, ...], Any]:
    """The longest start of the path that names a section or a field, and its section class or pydantic field."""
    known, found = (), Config
    for part in path:
        if not is_section(found) or part not in found.model_fields:
            break
        info = found.model_fields[part]
        known, found = (*known, part), info.annotation if is_section(info.annotation) else info
    return known, found
