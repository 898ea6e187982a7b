"""The types of the values of a config: what each takes, in pydantic's terms and in words."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt
from pydantic.types import Strict

STRIDE = 32
SHAPES = "shapes"


@dataclass(frozen=True)
class Says:
    """What a field takes, in the words of its error and of the documentation, where its type does not say it."""

    text: str
    item: str | None = None  # of a list's item, where an item is worth an error of its own


@dataclass(frozen=True)
class PathRule(Says):
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


def _check_rising(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if list(numbers) != sorted(set(numbers)):
        raise ValueError("not rising")
    return numbers


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
    Text | None, PathRule(f"an existing file or folder, the word {SHAPES}, or null", must_be="anything", word=SHAPES)
]
ExistingFile = Annotated[Text | None, PathRule("an existing file, or null", must_be="file")]
InputSize = Annotated[
    tuple[StrictInt, StrictInt],
    AfterValidator(_check_input_size),
    Says(f"[height, width] in pixels, each a multiple of {STRIDE} and at least {2 * STRIDE}"),
]
Steps = Annotated[
    tuple[Annotated[dict[str, Any], AfterValidator(_check_step)], ...],
    Says(
        "a list of {name: an Albumentations class, and its arguments}",
        item="{name: an Albumentations class, and its arguments}",
    ),
]
Callbacks = Annotated[
    tuple[Annotated[dict[str, Any], AfterValidator(_check_step)], ...],
    Says(
        "a list of {name: the import path of a Keras callback, and its arguments}",
        item="{name: the import path of a Keras callback, and its arguments}",
    ),
]
Epochs = Annotated[
    Annotated[tuple[Annotated[StrictInt, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_check_rising)] | None,
    Says("a rising list of epochs >= 1, or null"),
]
Multipliers = Annotated[
    dict[Text, Annotated[Number, Field(ge=0)]],
    Says("{name of a block: number >= 0, ...}", item="a number >= 0"),
]
Frozen = Annotated[
    Literal["none", "backbone", "all-but-head"] | Annotated[tuple[Text, ...], Field(min_length=1)],
    Says('"none", "backbone", "all-but-head", or a list of names of blocks'),
]
MultiScale = Annotated[
    Annotated[tuple[Number, Number], AfterValidator(_check_low_high)] | None,
    Says("[low, high] with 0.5 <= low <= high <= 2, or null"),
]
Scales = Annotated[
    tuple[Annotated[Number, Field(ge=0.25, le=4)], ...],
    Field(min_length=1),
    Says("a list of numbers from 0.25 to 4", item="a number from 0.25 to 4"),
]
Normalization = Annotated[
    tuple[Literal["batch", "positives", "grid"], ...],
    Field(min_length=1),
    BeforeValidator(_as_list),
    AfterValidator(_check_no_repeats),
    Says('"batch", "positives" or "grid", or a list of them without repeats'),
]
ClassWeights = Annotated[
    Literal["balanced", "inverse", "sqrt_inverse"]
    | Annotated[tuple[Annotated[Number, Field(ge=0)], ...], Field(min_length=1)]
    | None,
    BeforeValidator(_without_auto),
    Says('a list of numbers >= 0, {auto: "balanced", "inverse" or "sqrt_inverse"}, such a word alone, or null'),
]
