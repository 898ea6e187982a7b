"""Every key and every default of the project, and the loader from YAML plus `key.sub=value` to a checked Config.

A file that names a path names it relative to itself; the command line names it relative to the working directory.
YAML is read by the number rules of YAML 1.2 (`1e-4` is a number, `010` is ten) and everything that is wrong is
reported together, each with its place, its key, what was expected and what came.
"""

import difflib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
)
from pydantic.types import Strict

from multigrid.errors import InputError

__all__ = [
    "AugmentationConfig",
    "Config",
    "ConfigLoader",
    "DataConfig",
    "DetectionConfig",
    "LOSS_PARTS",
    "LossConfig",
    "ModelConfig",
    "OutputConfig",
    "ShapesConfig",
    "TrainingConfig",
    "describe",
]

STRIDE = 32
SHAPES = "shapes"

# The parts of the loss, by the name they have in logs, results and the probe, and the key that multiplies each.
LOSS_PARTS = {
    "localization": "coord_scale",
    "object": "object_scale",
    "no_object": "no_object_scale",
    "anchor": "anchor_scale",
    "classification": "class_scale",
}

# ---------------------------------------------------------------------------------------------- types of values


@dataclass(frozen=True)
class _Says:
    """What a field takes, in the words of its error and of the documentation, where its type does not say it."""

    text: str
    item: str | None = None  # of a list's item, where an item is worth an error of its own


@dataclass(frozen=True)
class _PathRule(_Says):
    """A path: resolved against the file that names it, and looked for if it `must_be` there."""

    must_be: Literal["file", "anything"] | None = None
    word: str | None = None  # a value that is no path


def _check_input_size(size: tuple[int, int]) -> tuple[int, int]:
    if any(side < 2 * STRIDE or side % STRIDE for side in size):
        raise ValueError("not on the grid")
    return size


def _check_low_high(span: tuple[float, float]) -> tuple[float, float]:
    if not 0.5 <= span[0] <= span[1] <= 2:
        raise ValueError("out of order or range")
    return span


def _check_step(step: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(step.get("name"), str) or not step["name"]:
        raise ValueError("no name")
    return step


def _as_list(words: Any) -> Any:
    return [words] if isinstance(words, str) else words


def _check_no_repeats(words: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(words)) != len(words):
        raise ValueError("repeats")
    return words


def _without_auto(weights: Any) -> Any:
    """The word of `{auto: word}`; anything else as it is."""
    if isinstance(weights, dict) and list(weights) == ["auto"] and isinstance(weights["auto"], str):
        return weights["auto"]
    return weights


Number = Annotated[float, Strict()]
Text = Annotated[str, Field(min_length=1)]
SourcePath = Annotated[
    Text | None, _PathRule(f"an existing file or folder, the word {SHAPES}, or null", must_be="anything", word=SHAPES)
]
ExistingFile = Annotated[Text | None, _PathRule("an existing file, or null", must_be="file")]
InputSize = Annotated[
    tuple[StrictInt, StrictInt],
    AfterValidator(_check_input_size),
    _Says(f"[height, width] in pixels, each a multiple of {STRIDE} and at least {2 * STRIDE}"),
]
Steps = Annotated[
    tuple[Annotated[dict[str, Any], AfterValidator(_check_step)], ...],
    _Says(
        "a list of {name: an Albumentations class, and its arguments}",
        item="{name: an Albumentations class, and its arguments}",
    ),
]
MultiScale = Annotated[
    Annotated[tuple[Number, Number], AfterValidator(_check_low_high)] | None,
    _Says("[low, high] with 0.5 <= low <= high <= 2, or null"),
]
Normalization = Annotated[
    tuple[Literal["batch", "positives", "grid"], ...],
    Field(min_length=1),
    BeforeValidator(_as_list),
    AfterValidator(_check_no_repeats),
    _Says('"batch", "positives" or "grid", or a list of them without repeats'),
]
ClassWeights = Annotated[
    Literal["balanced", "inverse", "sqrt_inverse"]
    | Annotated[tuple[Annotated[Number, Field(ge=0)], ...], Field(min_length=1)]
    | None,
    BeforeValidator(_without_auto),
    _Says('a list of numbers >= 0, {auto: "balanced", "inverse" or "sqrt_inverse"}, such a word alone, or null'),
]


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


# ---------------------------------------------------------------------------------------------- sections


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShapesConfig(_Section):
    """The embedded data set of drawn scenes."""

    folder: Annotated[Text, _PathRule("a path")] = Field(
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


class TrainingConfig(_Section):
    """Optimization."""

    epochs: StrictInt = Field(100, ge=1, description="Passes over the training images.")
    batch_size: StrictInt = Field(8, ge=1, description="Images a step.")
    learning_rate: Number = Field(2e-3, gt=0, description="Highest learning rate, reached at the end of the warm-up.")
    final_learning_rate_fraction: Number = Field(
        0.05, ge=0, le=1, description="Share of the learning rate that the cosine ends at."
    )
    seed: StrictInt = Field(1, ge=0, description="Decides first weights, order and augmentation.")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="How gradients move weights.")
    momentum: Number = Field(0.9, ge=0, lt=1, description="Momentum of sgd, beta 1 of adam and adamw.")
    weight_decay: Number = Field(5e-4, ge=0, description="Decay of kernels; biases and normalization have none.")
    warmup_epochs: Number = Field(1.0, ge=0, description="Epochs of linear warm-up; fractions count.")
    max_grad_norm: Number | None = Field(10.0, gt=0, description="Gradients of a larger global norm are scaled to it.")
    ema: Number | None = Field(
        0.99, gt=0, lt=1, description="Momentum of the moving average of weights that is evaluated and saved."
    )
    early_stopping: StrictInt | None = Field(
        None, ge=1, description="Epochs without a better validation before training stops."
    )
    jit_compile: Literal["auto"] | StrictBool = Field("auto", description="XLA; auto is on for GPUs and off for CPUs.")
    validate_every: StrictInt = Field(1, ge=1, description="Epochs from one validation mAP to the next.")


class LossConfig(_Section):
    """What the network is trained towards: coefficient, kind and divisor of each part of the loss."""

    coord_scale: Number = Field(5.0, ge=0, description="Multiplies the localization loss.")
    object_scale: Number = Field(1.0, ge=0, description="Multiplies the objectness loss of positive cells.")
    no_object_scale: Number = Field(1.0, ge=0, description="Multiplies the objectness loss of negative cells.")
    anchor_scale: Number = Field(1.0, ge=0, description="Multiplies the anchor loss.")
    class_scale: Number = Field(1.0, ge=0, description="Multiplies the classification loss.")
    loss_normalization: Normalization = Field(
        ("positives",),
        description="Divides every part: by images of the batch, positive cells, or all cells; a list multiplies them.",
    )
    assignment: Literal["inside", "paper", "single", "best"] = Field(
        "best",
        description="Which of the 3×3 cells around a centre answer for the object (are positive): those whose centre "
        "lies in its box, all, only the centre's own, or the four that predict it best at the moment.",
    )
    localization: Literal["ciou", "giou", "diou", "mse"] = Field("ciou", description="Loss of a positive cell's box.")
    classification: Literal["bce", "softmax", "focal"] = Field("bce", description="Loss of a positive cell's class.")
    anchor: Literal["softmax", "bce"] = Field("softmax", description="Loss of a positive cell's choice of anchor.")
    label_smoothing: Number = Field(0.0, ge=0, lt=0.5, description="Share of the class target spread over all classes.")
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
    nms_threshold: Number = Field(
        0.5, ge=0, le=1, description="Above this IoU the weaker of two boxes of a class goes."
    )
    max_detections: StrictInt = Field(300, ge=1, description="Most boxes of an image.")
    predict_threshold: Number = Field(0.25, ge=0, le=1, description="Lowest score that prediction draws and writes.")


class OutputConfig(_Section):
    """What a run leaves behind."""

    dir: Annotated[Text | None, _PathRule("a path, or null")] = Field(
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

    def save(self, path: str | os.PathLike) -> None:
        """Writes every key, with absolute paths, as a file that loads back to an equal Config."""
        values = self.model_dump()
        for keys, rule in _path_rules():
            *sections, last = keys
            holder = _get(values, tuple(sections))
            if holder[last] not in (None, rule.word):
                holder[last] = os.path.abspath(holder[last])
        path = os.path.abspath(path)
        body = yaml.dump(_plain(values), Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"# multigrid train --config {shlex.quote(path)}\n{body}")


MODEL_FILE_KEY = "model_config"
MODEL_FILE_RULE = _PathRule("an existing YAML file with the keys of `model`, or null", must_be="file")
MODEL_FILE_DESCRIPTION = "A file with the keys of `model`; keys under `model` win over it, the command line over both."


def _fields(section: type[BaseModel] = Config, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every (path, pydantic field) of the config that holds a value, sections left out."""
    for name, info in section.model_fields.items():
        if _is_section(info.annotation):
            yield from _fields(info.annotation, (*prefix, name))
        else:
            yield (*prefix, name), info


def _is_section(annotation: Any) -> bool:
    # A generic such as tuple[int, int] passes for a type on Python 3.10.
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _path_rules() -> list[tuple[tuple[str, ...], _PathRule]]:
    return [(path, rule) for path, info in _fields() for rule in info.metadata if isinstance(rule, _PathRule)]


def _schema(path: Sequence[Any]) -> tuple[tuple[str, ...], Any]:
    """The longest start of the path that names a section or a field, and its section class or pydantic field."""
    known, found = (), Config
    for part in path:
        if not _is_section(found) or part not in found.model_fields:
            break
        info = found.model_fields[part]
        known, found = (*known, part), info.annotation if _is_section(info.annotation) else info
    return known, found


# ---------------------------------------------------------------------------------------------- words


def _says(info: Any) -> _Says:
    """What a field takes, in words."""
    for mark in info.metadata:
        if isinstance(mark, _Says):
            return mark
    limits = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{word} {getattr(mark, name):g}"
        for mark in info.metadata
        for name, word in limits.items()
        if getattr(mark, name, None) is not None
    ]
    first, *others = _kinds(info.annotation)
    if bounds:
        first = f"{first} {' and '.join(bounds)}" + ("," if others else "")
    return _Says(_alternatives([first, *others]))


def _kinds(annotation: Any) -> list[str]:
    """The kinds of value that a type takes, in words."""
    simple = {bool: "true or false", int: "an integer", float: "a number", type(None): "null"}
    if annotation in simple:
        return [simple[annotation]]
    if getattr(annotation, "__metadata__", None):
        return _kinds(annotation.__origin__)
    arguments = annotation.__args__
    if all(isinstance(word, str) for word in arguments):
        return [_shown(word) for word in arguments]
    return [kind for argument in arguments for kind in _kinds(argument)]


def _alternatives(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _shown(value: Any, limit: int = 80) -> str:
    """The value on one line, much as YAML would write it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _nearest(path: tuple[str, ...]) -> str:
    """The known key that an unknown one most likely means: beside it, else of that name elsewhere, else in spelling."""
    known, section = _schema(path)
    beside = list(section.model_fields) if _is_section(section) else []
    everywhere = [keys for keys, _ in _fields()]
    if not known:
        beside.append(MODEL_FILE_KEY)
    close = difflib.get_close_matches(path[len(known)], beside, n=1)
    if close:
        mended = (*known, close[0], *path[len(known) + 1 :])
        return ".".join(mended) if _schema(mended)[0] == mended or len(mended) == 1 else _nearest(mended)
    close = difflib.get_close_matches(path[-1], [keys[-1] for keys in everywhere], n=1, cutoff=0.8)
    if close:
        return next(".".join(keys) for keys in everywhere if keys[-1] == close[0])
    return difflib.get_close_matches(".".join(path), [".".join(keys) for keys in everywhere], n=1, cutoff=0.0)[0]


def describe() -> str:
    """The reference of all keys: a Markdown table a section."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for path, info in _fields():
        row = (".".join(path), _says(info).text, _shown(_plain(info.get_default(call_default_factory=True)), 10_000))
        tables.setdefault(path[:-1], []).append(_row(f"`{row[0]}`", row[1], f"`{row[2]}`", info.description))
    tables[()].append(_row(f"`{MODEL_FILE_KEY}`", MODEL_FILE_RULE.text, "`null`", MODEL_FILE_DESCRIPTION))
    parts = []
    for path, rows in tables.items():
        title = f"`{'.'.join(path)}`: {_schema(path)[1].__doc__}" if path else "Top level"
        head = [_row("key", "takes", "default", "meaning"), _row(*["---"] * 4)]
        parts.append("\n".join([f"## {title}", "", *head, *rows]))
    return "\n\n".join(parts) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# ---------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Plain scalars by the rules of YAML 1.2, except that yes, no, on and off stay booleans."""

    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as a string; writes lists of plain values on one line."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.lstrip("+-").lower()
    size = int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    return -size if node.value.startswith("-") else size


_TAG = "tag:yaml.org,2002:"
_RESOLVERS = (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)
for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), list(_first))
_Loader.add_constructor(_TAG + "int", _integer)


def _plain(value: Any) -> Any:
    """The same values in lists and dicts."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class _Origin:
    """Where a value was written, and the folder that its relative paths start from."""

    folder: str
    file: str | None = None  # None: on the command line
    line: int | None = None

    @property
    def order(self) -> tuple:
        return self.file is None, self.file or "", self.line or 0

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        return self.file if self.line is None else f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class _Problem:
    origin: _Origin
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


@dataclass
class _Document:
    """One YAML text as plain values, with the origin of every key and list item.

    What is wrong with it is added to `problems`; `readable` is False if it is no YAML at all.
    """

    text: str
    origin: _Origin
    problems: list[_Problem]
    prefix: tuple = ()
    value: Any = None
    origins: dict[tuple, _Origin] = field(default_factory=dict)
    readable: bool = True

    def __post_init__(self) -> None:
        try:
            self._loader = _Loader(self.text)
            node = self._loader.get_single_node()
            self.origins[self.prefix] = self.origin
            self.value = None if node is None else self._build(node, self.prefix, ())
        except yaml.YAMLError as error:
            self.readable = False
            line, reason = _yaml_reason(error, self.text)
            path = () if self.origin.file else self.prefix
            self._report(line, path, f"expected YAML, received text that is not ({reason})")

    def _report(self, line: int, path: tuple, text: str) -> None:
        self.problems.append(_Problem(self._at(line), f"{_dotted(path)}: {text}" if path else text))

    def _at(self, line: int) -> _Origin:
        return self.origin if self.origin.file is None else replace(self.origin, line=line)

    def _build(self, node: yaml.Node, path: tuple, ancestors: tuple) -> Any:
        line = node.start_mark.line + 1
        if any(node is ancestor for ancestor in ancestors):
            self._report(line, path, "expected a value, received an alias of what it stands in")
        elif isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line, path)
        elif node.tag == _TAG + "map":
            return self._mapping(node, path, (*ancestors, node))
        elif node.tag == _TAG + "seq":
            items = list(enumerate(node.value))
            self.origins.update({(*path, i): self._at(item.start_mark.line + 1) for i, item in items})
            return [self._build(item, (*path, i), (*ancestors, node)) for i, item in items]
        else:
            self._report(line, path, f"expected plain YAML, received the tag {_shown(node.tag)}")
        return None

    def _scalar(self, node: yaml.ScalarNode, line: int, path: tuple) -> Any:
        try:
            if node.tag in {_TAG + kind for kind in ("null", "bool", "int", "float", "str")}:
                return self._loader.construct_object(node)
        except (ValueError, KeyError):  # as in `!!int word`
            pass
        self._report(line, path, f"expected plain YAML, received {_shown(node.value)} with the tag {_shown(node.tag)}")
        return None

    def _mapping(self, node: yaml.MappingNode, path: tuple, ancestors: tuple) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, item in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(line, path, "expected words as keys, received a list or a mapping")
                continue
            # The text as it is written: the key `on` is a word, whatever the value `on` is.
            key = key_node.value
            if key in lines:
                self._report(line, (*path, key), f"expected the key once, received twice (line {lines[key]})")
            lines.setdefault(key, line)
            self.origins[(*path, key)] = self._at(line)
            values[key] = self._build(item, (*path, key), ancestors)
        return values


def _yaml_reason(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line and reason of PyYAML's complaint."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return mark.line + 1, " ".join(filter(None, [error.context, error.problem]))
    return text.count("\n", 0, error.position) + 1, error.reason  # a character that YAML does not allow


def _dotted(path: Iterable[Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _get(values: Any, path: Iterable[Any]) -> Any:
    """The value at the path, or None."""
    for part in path:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


# ---------------------------------------------------------------------------------------------- loading


class ConfigLoader:
    """Lays default paths, model file, config file and overrides on one another, and checks the result whole."""

    def __init__(self) -> None:
        here = _Origin(os.getcwd())
        self.problems: list[_Problem] = []
        self.values: dict[str, Any] = {}
        self.origins: dict[tuple, _Origin] = {}
        # The one default that is a path: the working directory makes it absolute, as it would an override.
        folder = ("data", "shapes", "folder")
        self._lay(folder, ShapesConfig().folder, {folder: here})

    @classmethod
    def load(cls, path: str | os.PathLike, overrides: Iterable[str] = ()) -> Config:
        """The config of a YAML file with `key.sub=value` overrides.

        Args:
            path: a YAML file.
            overrides: `key.sub=value` each, the value in YAML; a later one wins over an earlier one.

        Returns:
            The checked, frozen Config; its paths are absolute.

        Raises:
            InputError: every problem of file, model file and overrides: one on one line, several on a line each after
                a line that counts them.
        """
        loader = cls()
        settings = [setting for text in overrides if (setting := loader._read_override(text)) is not None]
        document = loader._read_file(os.fspath(path), "the sections of a config")
        if document is not None:
            loader._lay_all(document, settings)
            config = loader._check()
        if loader.problems:
            raise InputError(loader._summary())
        return config

    def _lay_all(self, document: _Document, settings: list[_Document]) -> None:
        """Model file under config file under overrides."""
        named = [(document.value.pop(MODEL_FILE_KEY, None), document.origins.get((MODEL_FILE_KEY,)))]
        named += [(setting.value, setting.origin) for setting in settings if setting.prefix == (MODEL_FILE_KEY,)]
        model_file = self._resolve((MODEL_FILE_KEY,), *named[-1], MODEL_FILE_RULE)
        if model_file is not None:
            model = self._read_file(model_file, "the keys of `model`", prefix=("model",))
            if model is not None:
                self._lay(("model",), model.value, model.origins)
        self._lay((), document.value, document.origins)
        for setting in settings:
            if setting.prefix != (MODEL_FILE_KEY,) and not self._is_inside_a_wrong_section(setting.prefix):
                self._lay(setting.prefix, setting.value, setting.origins)

    def _is_inside_a_wrong_section(self, path: tuple) -> bool:
        """Whether there is, say, `training: 5` under an override of `training.epochs`: that stays, to be reported."""
        above = [path[:length] for length in range(1, len(path))]
        return any(
            _is_section(_schema(part)[1]) and part in self.origins and not isinstance(_get(self.values, part), dict)
            for part in above
            if _schema(part)[0] == part
        )

    def _read_file(self, file: str, contents: str, prefix: tuple = ()) -> _Document | None:
        """The mapping in a YAML file; None after a problem that leaves nothing to go on with."""
        origin = _Origin(os.path.dirname(os.path.abspath(file)), file)
        try:
            with open(file, "rb") as stream:
                raw = stream.read()
            text = raw.decode("utf-8")
        except OSError as error:
            return self._give_up(origin, f"expected a YAML file, received none ({error.strerror})")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            return self._give_up(replace(origin, line=line), "expected UTF-8 text, received other bytes")
        document = _Document(text, origin, self.problems, prefix)
        if not document.readable:
            return None
        if not isinstance(document.value, dict):
            received = "an empty file" if document.value is None else _shown(document.value)
            return self._give_up(replace(origin, line=1), f"expected a mapping of {contents}, received {received}")
        return document

    def _give_up(self, origin: _Origin, text: str) -> None:
        self.problems.append(_Problem(origin, text))

    def _read_override(self, text: str) -> _Document | None:
        origin = _Origin(os.getcwd())
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            return self._give_up(origin, f"expected key.sub=value, received {_shown(text)}")
        document = _Document(value, origin, self.problems, path)
        return document if document.readable else None

    def _lay(self, path: tuple, value: Any, origins: dict[tuple, _Origin]) -> None:
        """Puts the value over what is there: mappings key by key, anything else whole."""
        if isinstance(value, dict) and isinstance(_get(self.values, path), dict):
            for key, item in value.items():
                self._lay((*path, key), item, origins)
            return
        holder, origin = self.values, origins[path]
        for length, part in enumerate(path[:-1], start=1):
            if not isinstance(holder.get(part), dict):
                holder[part] = {}
                self.origins[path[:length]] = origin
            holder = holder[part]
        holder[path[-1]] = value
        depth = len(path)
        self.origins = {at: known for at, known in self.origins.items() if at[:depth] != path}
        self.origins.update({at: known for at, known in origins.items() if at[:depth] == path})

    def _check(self) -> Config | None:
        """The Config of the values; None, and problems, where they do not make one."""
        for path, rule in _path_rules():
            value = _get(self.values, path)
            if isinstance(value, str) and value:
                _get(self.values, path[:-1])[path[-1]] = self._resolve(path, value, self.origins[path], rule)
        try:
            return Config.model_validate(self.values)
        except ValidationError as error:
            found = [self._explain(each["type"], each["loc"]) for each in error.errors(include_url=False)]
        self.problems += dict.fromkeys(found)  # the alternatives of one type complain one by one
        return None

    def _resolve(self, path: tuple, value: Any, origin: _Origin | None, rule: _PathRule) -> str | None:
        """The absolute path; None, and a problem, if it must be there and is not."""
        if value is None or value == rule.word:
            return value
        if not isinstance(value, str) or not value:
            self.problems.append(_Problem(origin, f"{_dotted(path)}: expected {rule.text}, received {_shown(value)}"))
            return None
        full = os.path.abspath(os.path.join(origin.folder, os.path.expanduser(value)))
        there = {None: True, "file": os.path.isfile(full), "anything": os.path.exists(full)}[rule.must_be]
        if not there:
            text = f"{_dotted(path)}: expected {rule.text}, received {_shown(value, 1000)} (looked for {full})"
            self.problems.append(_Problem(origin, text))
        return full if there else None

    def _explain(self, kind: str, location: tuple) -> _Problem:
        """One complaint of pydantic's in our words."""
        known, found = _schema(location)
        if kind == "extra_forbidden":
            path = self._written_key(location)
            text = f"{_dotted(path)}: unknown key; the nearest known key is {_nearest(path)}"
            return _Problem(self.origins[path], text)
        says = _Says("a mapping of keys") if _is_section(found) else _says(found)
        path = location[: len(known)]
        item = location[: len(known) + 1]
        origin = self.origins[item if item in self.origins else path]
        if says.item and item != path:
            path, says = item, _Says(says.item)
        return _Problem(origin, f"{_dotted(path)}: expected {says.text}, received {_shown(_get(self.values, path))}")

    def _written_key(self, location: tuple) -> tuple:
        """The unknown key as it was written: `a.b=1` on the command line made an `a` that nobody wrote."""
        if self.origins[location].file is None:
            return max((path for path in self.origins if path[: len(location)] == location), key=len)
        return location

    def _summary(self) -> str:
        lines = [str(problem) for problem in sorted(self.problems, key=lambda problem: problem.origin.order)]
        return lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} problems in the configuration:", *lines])
