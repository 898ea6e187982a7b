"""Causes in what training images go through: each is named, and its look-alikes are not."""

import numpy as np
import pytest
from small_runs import make_config
from spoilt_data import named, spoilt

from multigrid.data.augment import Example
from multigrid.data.images import Letterbox
from multigrid.diagnosis.case import Case
from multigrid.diagnosis.examinations import placement
from multigrid.diagnosis.finding import LIKELY
from multigrid.diagnosis.rules import augmentation, places
from multigrid.training.trainer import MultiGridTrainer

FLIP = ({"name": "HorizontalFlip", "p": 0.5},)


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    files = draw_scenes(train=48, val=24)
    options = {"steps": FLIP, "mosaic": 0.0, "mosaic_off_epochs": 0}
    config = make_config(files, tmp_path_factory.mktemp("augmentation") / "run", augmentation=options)
    made = MultiGridTrainer(config)
    made.build_model()
    return made


def with_mosaic(trainer):
    options = trainer.config.augmentation.model_copy(update={"mosaic": 1.0})
    return trainer.config.model_copy(update={"augmentation": options})


def causes(trainer, **changes) -> list:
    """Ids of the rules of augmentation that have a harmful verdict, those left out that another one explains."""
    found = {id: one for id, one in named(augmentation, spoilt(trainer, **changes)).items() if not one.hygiene}
    rules = {value.id: value for value in vars(augmentation).values() if hasattr(value, "explains")}
    explained = {other for id in found for other in rules[id].explains}
    return sorted(id for id, one in found.items() if one.confidence >= LIKELY and id not in explained)


def test_sound_data_raise_no_alarm(trainer):
    assert causes(trainer) == []


def test_sound_mosaics_raise_no_alarm(trainer):
    assert causes(trainer, config=with_mosaic(trainer)) == []


def flip(share):
    def change(images, boxes, classes, rng):
        hit = rng.random(len(images)) < share
        images[hit] = images[hit, :, ::-1]

    return change


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_flip_of_the_image_alone_is_named_with_its_share(trainer, share):
    case = spoilt(trainer, train=flip(share))
    verdict = augmentation.boxes_left_behind.function(case)
    assert verdict.confidence >= LIKELY
    assert "left and right" in verdict.seen[0].what
    # some flipped scenes look the same: their objects lie in the middle
    assert 0.6 * share <= verdict.seen[0].value <= 1.2 * share
    assert verdict.remedy.boxes == ("hflip" if share == 1.0 else None)
    assert "MG113" not in named(places, case)  # the labels are right


def test_labels_that_are_mirrored_are_no_matter_of_augmentation(trainer):
    def mirrored(one):
        left, top, right, low = one.boxes.T
        width = one.size[1]
        return type(one)(
            one.path, np.stack([width - right, top, width - left, low], 1), one.classes, one.image_id, one.size
        )

    case = spoilt(trainer, sample=mirrored)
    assert augmentation.boxes_left_behind.function(case) is None
    assert places.turned_labels.function(case).remedy.boxes == "hflip"


def test_a_flip_that_exchanges_corners_is_no_misread_format(trainer):
    def flip_both(images, boxes, classes, rng):
        hit = rng.random(len(images)) < 0.4
        images[hit] = images[hit, :, ::-1]
        boxes[hit, :, 0::2] = images.shape[2] - boxes[hit, :, 0::2]

    case = spoilt(trainer, train=flip_both)
    assert augmentation.corners_exchanged.function(case).confidence >= LIKELY
    assert "MG102" not in named(places, case)


@pytest.mark.parametrize("with_scale", [False, True])
def test_boxes_that_miss_the_letterbox_are_named(trainer, with_scale):
    case = spoilt(trainer)
    for data in (case.train_data, case.val_data):
        data._load = _without_letterbox(data, with_scale)
    assert augmentation.letterbox_left_out.function(case).confidence >= LIKELY
    assert "MG113" not in named(places, case)


def _without_letterbox(data, with_scale):
    whole = data._load

    def load(index, size):
        example, sample = whole(index, size), data.samples[index]
        pad = np.array(Letterbox.fit(sample.size, size).pad * 2, "float32")
        return Example(example.image, sample.boxes if with_scale else example.boxes - pad, example.classes)

    return load


def test_objects_that_augmentation_drops_are_missed(trainer):
    def drop(images, boxes, classes, rng):
        classes[rng.random(classes.shape) < 0.6] = -1

    assert causes(trainer, train=drop) == ["MG204"]
    assert causes(trainer, train=drop, config=with_mosaic(trainer)) == ["MG204"]


def test_objects_beyond_a_limit_are_cut_off_not_dropped(trainer):
    def cut(images, boxes, classes, rng):
        classes[:, 4:] = -1

    assert causes(trainer, train=cut, config=with_mosaic(trainer)) == ["MG205"]


def test_boxes_of_a_mosaic_in_the_first_quarter_are_misplaced_not_cut_off(trainer):
    def move(images, boxes, classes, rng):
        sides = np.array(images.shape[2:0:-1])
        beyond = (boxes[..., :2] + boxes[..., 2:]) / 2 > sides / 2
        boxes[...] = boxes - np.tile(beyond * sides / 2, 2)

    assert causes(trainer, train=move, config=with_mosaic(trainer)) == ["MG206"]


def test_augmented_validation_is_told_by_its_changes(trainer):
    case = spoilt(trainer)
    case.val_data = case.train_data
    assert augmentation.validation_augmented.function(case).seen[0].value > 0.3
    assert augmentation.validation_augmented.function(Case.of(trainer)) is None
    assert trainer.val_data.epoch == 0


def test_stretched_validation_has_lost_its_border(trainer):
    def stretch(images, boxes, classes, rng):
        for image in images:  # what lies between the border, over the whole width
            filled = np.flatnonzero(np.abs(image.astype(float) - 114).mean((0, 2)) > 3)
            columns = np.linspace(filled[0], filled[-1], image.shape[1]).astype(int)
            image[...] = image[:, columns]

    assert augmentation.validation_fitted_otherwise.function(spoilt(trainer, val=stretch)).confidence >= LIKELY


def test_validation_boxes_alone_in_another_frame_are_no_matter_of_the_labels(trainer):
    case = spoilt(trainer, val=lambda images, boxes, classes, rng: boxes.__imul__(0.5))
    assert augmentation.validation_fitted_otherwise.function(case).confidence >= LIKELY
    assert "MG112" not in named(places, case)


def test_noise_that_hides_the_objects_is_too_strong_and_the_pairing_is_right(trainer):
    def noise(images, boxes, classes, rng):
        hit = rng.random(images.shape[:3]) < 0.8
        images[hit] = rng.integers(0, 256, images.shape, dtype=np.uint8)[hit]

    case = spoilt(trainer, train=noise)
    assert augmentation.images_destroyed.function(case).confidence >= LIKELY
    assert placement.of_samples(case).lies_well and "MG201" not in ours(case)


def test_a_zoom_of_the_image_alone_leaves_boxes_behind(trainer):
    def zoom(images, boxes, classes, rng):
        height, width = images.shape[1:3]
        for image in images:
            top, left = rng.integers(height // 2), rng.integers(width // 2)
            part = image[top : top + height // 2, left : left + width // 2]
            image[...] = part.repeat(2, axis=0).repeat(2, axis=1)

    assert ours(spoilt(trainer, train=zoom))["MG201"] == 0.7


def test_boxes_exchanged_within_the_batch_are_no_matter_of_augmentation(trainer):
    def exchange(images, boxes, classes, rng):
        order = np.roll(np.arange(len(images)), rng.integers(1, len(images)))
        boxes[...], classes[...] = boxes[order], classes[order]

    found = ours(spoilt(trainer, train=exchange))
    assert found["MG106"] == 0.95 and "MG201" not in found


def ours(case) -> dict:
    """Confidence by rule, of those about where boxes lie that speak."""
    rules = (augmentation.boxes_left_behind, places.shuffled_pairs)
    found = {rule.id: rule.function(case) for rule in rules}
    return {name: verdict.confidence for name, verdict in found.items() if verdict is not None}
