"""Causes in the labels: each is named, and its look-alikes are not."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from small_runs import make_config
from spoilt_data import named, spoilt, with_boxes

from multigrid.data.samples import read_samples, write_samples
from multigrid.diagnosis.case import Case
from multigrid.diagnosis.doctor import diagnose
from multigrid.diagnosis.examinations import placement
from multigrid.diagnosis.examinations.alignment import HYPOTHESES, apply, describe
from multigrid.diagnosis.finding import CERTAIN, LIKELY
from multigrid.diagnosis.rules import augmentation, labels, places
from multigrid.training.trainer import MultiGridTrainer

SIZE = (64, 96)
OURS = [value for module in (labels, places) for value in vars(module).values() if hasattr(value, "explains")]
ALL = [*OURS, *(value for value in vars(augmentation).values() if hasattr(value, "explains"))]


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    made = MultiGridTrainer(make_config(draw_scenes(train=48, val=12), tmp_path_factory.mktemp("labels") / "run"))
    made.build_model()
    return made


def first(trainer, **changes):
    """The id of the likeliest cause by the rules of labels, and the diagnosis."""
    found = diagnose(spoilt(trainer, **changes), rules=OURS)
    assert not found.failed
    return (found.causes[0].id if found.causes else None), found


def test_sound_data_raise_no_alarm(trainer):
    assert diagnose(spoilt(trainer), rules=ALL).healthy
    assert trainer.train_data.epoch == 0  # put back


# --- hypotheses -------------------------------------------------------------------------------------------------------

BOX = np.array([10.0, 20.0, 40.0, 30.0])  # of 96 × 64 pixels


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("identity", [10, 20, 40, 30]),
        ("swap_xy", [20, 10, 30, 40]),
        ("hflip", [56, 20, 86, 30]),  # 96 - 40, 96 - 10
        ("vflip", [10, 34, 40, 44]),  # 64 - 30, 64 - 20
        ("rot180", [56, 34, 86, 44]),
        ("rot90", [30, 64 - 80 / 3, 45, 64 - 20 / 3]),  # x: 96 · y / 64; y: 64 - 64 · x / 96
        ("turn90", [20, 24, 30, 54]),  # x: y; y: 64 - x
        ("xywh", [10, 20, 50, 50]),
        ("cxcywh", [-10, 5, 30, 35]),
        ("corners from xywh", [10, 20, 30, 10]),
        ("corners from cxcywh", [25, 25, 30, 10]),
        ("xywh from cxcywh", [25, 25, 55, 35]),  # half of 30 × 10 further
        ("half", [5, 10, 20, 15]),
        ("relative", [960, 1280, 3840, 1920]),
        ("shift 8 -8", [18, 12, 48, 22]),
        ("sides x 2", [-5, 15, 55, 35]),
        ("sides x 0.5", [17.5, 22.5, 32.5, 27.5]),
    ],
)
def test_a_hypothesis_maps_a_box(name, expected):
    assert apply(name, BOX, SIZE) == pytest.approx(np.array(expected))
    assert apply(name, np.stack([BOX, BOX]), SIZE)[1] == pytest.approx(np.array(expected))
    assert describe(name)


@pytest.mark.parametrize(
    ("name", "inverse"),
    [
        ("swap_xy", "swap_xy"),
        ("rot90", "rot270"),
        ("xywh", "corners from xywh"),
        ("cxcywh", "corners from cxcywh"),
        ("xywh from cxcywh", "cxcywh from xywh"),
        ("half", "double"),
        ("stretch", "unstretch"),
        ("shift 8 -8", "shift -8 8"),
    ],
)
def test_what_one_hypothesis_does_another_undoes(name, inverse):
    assert apply(inverse, apply(name, BOX, SIZE), SIZE) == pytest.approx(BOX)


def test_an_unknown_hypothesis_is_refused():
    with pytest.raises(ValueError, match="swap_xy"):
        apply("swap", BOX, SIZE)


# --- boxes in wrong places --------------------------------------------------------------------------------------------


def moved(name):
    """A change of samples: the boxes as a hypothesis has them."""
    return lambda one: with_boxes(one, apply(name, one.boxes, one.size))


@pytest.mark.parametrize(
    ("change", "rule", "remedy"),
    [
        ("corners from xywh", "MG102", "xywh"),
        ("xywh", "MG102", "corners from xywh"),
        ("cxcywh from xywh", "MG102", "xywh from cxcywh"),
        ("swap_xy", "MG104", "swap_xy"),
        ("unstretch", "MG112", "stretch"),
        ("hflip", "MG113", "hflip"),
    ],
)
def test_boxes_in_wrong_places_are_named_by_what_mends_them(trainer, change, rule, remedy):
    named_first, found = first(trainer, sample=moved(change))
    assert named_first == rule
    assert found.causes[0].verdict.remedy.boxes == remedy
    assert len(found.causes) == 1  # boxes outside, boxes without area and so on are its consequences


def test_boxes_as_shares_of_the_sides_are_in_another_unit(trainer):
    named_first, found = first(
        trainer, sample=lambda one: with_boxes(one, one.boxes / np.tile(one.size[::-1], 2))
    )  # fmt: skip
    assert named_first == "MG103"
    assert found.causes[0].verdict.remedy.boxes == "relative"


def test_exchanged_axes_of_some_images_are_named_too(trainer):
    swapped = lambda one: moved("swap_xy")(one) if one.image_id % 5 < 2 else one  # noqa: E731
    named_first, found = first(trainer, sample=swapped)
    assert named_first == "MG104"
    assert found.causes[0].verdict.remedy.boxes is None  # for it would spoil the others


def test_a_label_file_with_y_before_x_is_named_from_the_file(trainer, tmp_path):
    # A reader leaves out what is outside then, so that the samples alone would mislead.
    lines = []
    for sample in trainer.samples["train"]:
        boxes = [f"{y1},{x1},{y2},{x2},{c}" for (x1, y1, x2, y2), c in zip(sample.boxes, sample.classes, strict=True)]
        lines.append(" ".join([sample.path, *boxes]))
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    samples, defects = read_samples(tmp_path / "train.txt", trainer.class_names)
    assert defects
    data = trainer.config.data.model_copy(update={"train": str(tmp_path / "train.txt")})
    config = trainer.config.model_copy(update={"data": data})
    case = spoilt(trainer, samples=lambda _: samples, config=config)
    assert places.exchanged_axes.function(case).confidence >= LIKELY


def test_boxes_of_the_image_before_belong_to_other_images(trainer):
    def rolled(samples):
        return [with_boxes(one, before.boxes, before.classes)
                for one, before in zip(samples, [samples[-1], *samples[:-1]], strict=True)]  # fmt: skip

    verdict = places.shuffled_pairs.function(spoilt(trainer, samples=rolled))
    assert verdict.confidence >= LIKELY and verdict.remedy.boxes is None


def test_boxes_of_images_at_random_belong_to_other_images(trainer):
    def shuffled(samples):
        order = np.random.default_rng(3).permutation(len(samples))
        return [with_boxes(samples[i], samples[j].boxes, samples[j].classes) for i, j in enumerate(order)]

    named_first, found = first(trainer, samples=shuffled)
    assert named_first == "MG106"
    assert "upside down" in " ".join(found.causes[0].verdict.why)


def test_boxes_of_a_part_of_the_images_belong_to_other_images(trainer):
    """The first two thirds are right, so that on the whole boxes lie where something is."""

    def partly(samples):
        first = 2 * len(samples) // 3
        turned = [*samples[first + 3 :], *samples[first : first + 3]]
        return [*samples[:first], *(with_boxes(one, other.boxes, other.classes)
                                    for one, other in zip(samples[first:], turned, strict=True))]  # fmt: skip

    case = spoilt(trainer, samples=partly)
    assert case.examined(placement.of_samples).lies_well
    verdict = places.shuffled_pairs.function(case)
    assert verdict.confidence == 0.85 and "upside down" in verdict.why[0]


def test_the_images_of_sound_data_show_their_boxes(trainer):
    found = placement.of_samples(Case.of(trainer))
    assert found.lies_well and found.winner is None and found.mixed is None
    assert found.level("identity") > 1.0
    assert max(found.level(name) for name in ("swap_xy", "hflip", placement.OTHERS)) < 0.5
    assert set(HYPOTHESES) < set(found.names)


@pytest.mark.parametrize(("factor", "named"), [(0.5, "half as large"), (0.7, "0.7 of the sides"), (1.9, "twice")])
def test_boxes_of_another_size_about_the_same_centre(trainer, factor, named):
    def resize(one):
        centre, half = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2, (one.boxes[:, 2:] - one.boxes[:, :2]) / 2 * factor
        return with_boxes(one, np.concatenate([centre - half, centre + half], axis=1))

    name, found = first(trainer, sample=resize)
    assert name == "MG117" and any(named in seen.what for seen in found.causes[0].verdict.seen)


@pytest.mark.parametrize(("own", "winner"), [(0.4, "sides x 0.5"), (2.3, None)])
def test_an_object_with_a_kernel_has_the_boxes_of_its_rim(own, winner):
    """Evidence an image of one box: as it is, half as large, of other images."""
    levels = np.array([own, 3.0, 0.0]) + np.random.default_rng(2).normal(0.0, 0.1, (24, 3))
    names = ("identity", "sides x 0.5", placement.OTHERS)
    found = placement.Placement(names, levels, levels, np.ones(24), np.ones(24))
    assert found.winner == winner and found.best == "sides x 0.5"


@pytest.mark.parametrize("factor", [0.9, 1.12])
def test_boxes_that_are_drawn_tight_or_loose_are_no_other_size(trainer, factor):
    def resize(one):
        centre, half = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2, (one.boxes[:, 2:] - one.boxes[:, :2]) / 2 * factor
        return with_boxes(one, np.concatenate([centre - half, centre + half], axis=1))

    assert places.other_sides.function(spoilt(trainer, sample=resize)) is None


# --- boxes that cannot be boxes ---------------------------------------------------------------------------------------


def test_a_missing_number_is_named(trainer):
    def spoil(images, boxes, classes, rng):
        boxes[0, 0, 2] = np.nan

    case = spoilt(trainer, train=spoil)
    assert labels.coordinates_not_finite.function(case).confidence == 1.0
    assert labels.boxes_without_area.function(case) is None


def test_boxes_without_width_are_no_missing_numbers_and_no_wrong_format(trainer):
    def flatten(images, boxes, classes, rng):
        boxes[..., 2] = np.where(rng.random(classes.shape) < 0.3, boxes[..., 0], boxes[..., 2])

    assert first(trainer, train=flatten, val=flatten)[0] == "MG108"


def test_boxes_beyond_the_border_are_named_though_the_others_lie_well(trainer):
    def beyond(one):
        hit = np.arange(len(one.boxes)) % 4 == 1
        return with_boxes(one, one.boxes + hit[:, None] * np.array([0.7 * one.size[1], 0, 0.7 * one.size[1], 0]))

    assert first(trainer, sample=beyond)[0] == "MG109"


def test_objects_that_are_labelled_twice_are_named(trainer):
    def twice(one):
        return with_boxes(one, np.concatenate([one.boxes, one.boxes]), np.concatenate([one.classes, one.classes]))

    assert labels.repeated_boxes.function(spoilt(trainer, sample=twice)).confidence >= LIKELY


def test_dense_scenes_have_no_object_twice(trainer):
    def crowded(one):  # a neighbour that shares two thirds: IoU 0.5
        shift = (one.boxes[:, 2:] - one.boxes[:, :2]) * [1 / 3, 0]
        near = one.boxes + np.tile(shift, 2)
        return with_boxes(one, np.concatenate([one.boxes, near]), np.concatenate([one.classes, one.classes]))

    assert labels.repeated_boxes.function(spoilt(trainer, sample=crowded)) is None


@pytest.mark.parametrize(("lines", "confidence"), [(4, 0.85), (12, 0.85), (40, 0.6), (60, None)])
def test_coordinates_on_a_coarse_grid(trainer, lines, confidence):
    def snap(one):
        step = np.tile(np.array(one.size[::-1]) / lines, 2)
        boxes = np.round(one.boxes / step)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        return with_boxes(one, boxes * step)

    verdict = labels.coarse_coordinates.function(spoilt(trainer, sample=snap))
    assert (verdict and verdict.confidence) == confidence


def test_whole_pixels_are_no_coarse_grid_and_neither_is_one_place(trainer):
    whole = spoilt(trainer, sample=lambda one: with_boxes(one, np.round(one.boxes)))
    assert labels.coarse_coordinates.function(whole) is None
    middle = np.array([24.0, 16.0, 72.0, 48.0])  # a quarter from each side, in every image
    still = spoilt(trainer, sample=lambda one: with_boxes(one, middle + 0 * one.boxes))
    assert labels.coarse_coordinates.function(still) is None


@pytest.mark.parametrize("lines", [1, 8])
def test_boxes_that_fill_images_and_squares_of_a_board_are_no_coarse_grid(trainer, lines):
    def squares(one):
        step, number = np.array(one.size[::-1]) / lines, np.arange(len(one.boxes)) + int(one.boxes.sum())
        first = np.stack([number % lines, number // lines % lines], axis=1)
        return with_boxes(one, np.concatenate([first * step, (first + 1) * step], axis=1))

    assert labels.coarse_coordinates.function(spoilt(trainer, sample=squares)) is None


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_from_one_are_shifted_not_unknown(trainer):
    case = spoilt(trainer, sample=lambda one: with_boxes(one, one.boxes, one.classes + 1))
    assert labels.classes_from_one.function(case).confidence >= CERTAIN
    assert "MG111" in labels.classes_from_one.explains


def test_a_stray_class_number_is_unknown_not_shifted(trainer):
    beyond = len(trainer.class_names) + 7
    stray = lambda one: with_boxes(one, one.boxes, np.where(np.arange(len(one.classes)) == 0, beyond, one.classes))  # noqa: E731
    case = spoilt(trainer, sample=stray)
    assert labels.classes_beyond.function(case).confidence >= LIKELY
    assert labels.classes_from_one.function(case) is None


def test_a_missing_first_class_alone_is_no_shift(trainer):
    found = named(labels, spoilt(trainer, sample=lambda one: with_boxes(one, one.boxes, np.maximum(one.classes, 1))))
    assert "MG105" not in found and "MG111" not in found


def test_classes_that_only_validation_has_are_named_not_unknown(trainer):
    def without(samples):
        kept = [one.classes >= 3 for one in samples]
        return [with_boxes(one, one.boxes[keep], one.classes[keep]) for one, keep in zip(samples, kept, strict=True)]

    verdict = labels.classes_untrained.function(spoilt(trainer, samples=without))
    assert verdict.confidence >= LIKELY and all(word in verdict.seen[0].value for word in ("disc", "triangle", "star"))
    assert labels.classes_untrained.function(spoilt(trainer)) is None


# --- what is in the data ----------------------------------------------------------------------------------------------


def emptied(one):
    return with_boxes(one, one.boxes[:0], one.classes[:0])


def test_labels_that_are_lost_in_reading_are_missed(trainer):
    lost = lambda one: emptied(one) if one.image_id % 2 else one  # noqa: E731
    assert labels.missing_labels.function(spoilt(trainer, sample=lost)).confidence >= LIKELY
    assert labels.missing_labels.function(spoilt(trainer, sample=emptied)).confidence == 1.0


def test_images_that_are_declared_empty_are_not_missed(trainer, tmp_path):
    samples = [one if one.image_id % 10 < 4 else emptied(one) for one in trainer.samples["train"]]
    write_samples(samples, trainer.class_names, tmp_path / "train.txt", "yolo3")
    data = trainer.config.data.model_copy(update={"train": str(tmp_path / "train.txt")})
    config = trainer.config.model_copy(update={"data": data})
    found = named(labels, spoilt(trainer, samples=lambda _: samples, config=config))
    assert not [id for id, verdict in found.items() if not verdict.hygiene]


def test_nine_empty_images_of_ten_are_many(trainer):
    found = named(
        labels, spoilt(trainer, samples=lambda all: [one if i % 12 == 0 else emptied(one) for i, one in enumerate(all)])
    )
    assert found["MG114"].confidence >= LIKELY and not found["MG114"].hygiene


def test_training_images_among_those_of_validation_are_found_by_content(trainer, tmp_path):
    case = spoilt(trainer)
    copies = []
    for number, one in enumerate(case.samples["train"][:4]):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(open(one.path, "rb").read())
        copies.append(dataclasses.replace(one, path=str(path)))
    assert labels.leak.function(case) is None
    case = spoilt(trainer)
    case.samples["val"] = [*case.samples["val"], *copies]
    verdict = labels.leak.function(case)
    assert verdict.seen[0].value == pytest.approx(4 / 16)


def test_a_few_images_again_and_again_are_named_also_as_copies(trainer, tmp_path):
    def copied(one, number):
        path = tmp_path / f"{number}{pathlib.Path(one.path).suffix}"
        shutil.copy(one.path, path)
        return dataclasses.replace(one, path=str(path))

    repeated = spoilt(trainer, samples=lambda samples: [copied(samples[n % 5], n) for n in range(len(samples))])
    verdict = labels.repeated_images.function(repeated)
    assert verdict.confidence >= LIKELY and verdict.seen[0].value == 5
    assert labels.repeated_images.function(spoilt(trainer)) is None


def test_objects_of_two_pixels_are_too_small(trainer):
    def shrunk(one):
        centre = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2
        return with_boxes(one, np.concatenate([centre - 2, centre + 2], axis=1))  # 4 pixels of about 200, fitted to 64

    case = spoilt(trainer, sample=shrunk)
    assert labels.too_small.function(case).confidence >= LIKELY
    assert labels.too_small.function(spoilt(trainer)) is None
