"""Causes in the loss: each is named, and its look-alikes are not."""

import faulty_losses as faults
import numpy as np
import pytest
from small_cases import case_with, first, rules_of, verdicts
from small_runs import make_config

from multigrid.diagnosis.examinations import gradients, relations, responses, roundtrip
from multigrid.diagnosis.rules import balance, loss, loss_functions, masks
from multigrid.training.trainer import MultiGridTrainer

RULES = rules_of(loss, masks, balance, loss_functions)
# what a rule asks takes a second or so: each fault is put to those that could take it for theirs
WEIGHTS = [
    balance.positives_are_diluted, balance.negatives_outweigh, balance.negatives_do_not_count, masks.masks_overlap,
    balance.scales_apart, loss_functions.smoothed_too_much, loss_functions.focal_out_of_proportion,
    loss_functions.applied_twice, loss_functions.logits_as_probabilities, loss_functions.class_weights_are_wrong,
]  # fmt: skip
RELATIONS = [
    loss.sum_instead_of_mean, loss.divided_by_image, masks.not_masked, masks.nothing_is_ignored,
    masks.too_much_is_ignored, loss.mixed_by_broadcast, loss.total_is_another, loss_functions.deaf_part,
]  # fmt: skip
GRADIENTS = [
    loss.unprotected_divisor, balance.part_out_of_proportion, loss_functions.gradient_through_mask,
    loss_functions.degenerate_boxes,
]  # fmt: skip
READINGS = [loss_functions.wrong_sign, loss_functions.loss_reads_otherwise, loss_functions.not_smallest_at_truth]


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    made = MultiGridTrainer(make_config(draw_scenes(train=12, val=4), tmp_path_factory.mktemp("loss") / "run"))
    made.build_model()
    return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_normalization": ("positives",), "localization": "mse", "anchor": "bce", "assignment": "best"},
        {"classification": "focal", "label_smoothing": 0.1, "localization": "giou", "assignment": "paper"},
        {
            "loss_normalization": ("batch", "grid"), "assignment": "single", "consensus_scale": 1.0,
            "suppression_scale": 1.0,
        },
    ],
)  # fmt: skip
def test_no_sound_loss_raises_an_alarm(trainer, options):
    with case_with(trainer, **options) as case:
        assert verdicts(case, RULES) == {}


def test_a_loss_of_ones_own_raises_no_alarm(trainer):
    with case_with(trainer, faults.Own(trainer.detector.criterion)) as case:
        assert verdicts(case, RULES) == {}


def test_targets_of_another_kind_are_left_alone(trainer):
    with case_with(trainer, faults.OtherTargets(trainer.detector.criterion)) as case:
        assert verdicts(case, RULES) == {}


@pytest.mark.parametrize(
    ("kind", "options", "cause"),
    [
        (faults.Diluted, {}, "MG602"),
        (None, {"no_object_scale": 100.0}, "MG605"),
        (None, {"object_scale": 0.01}, "MG605"),
        (None, {"no_object_scale": 0.0}, "MG624"),
        (None, {"label_smoothing": 0.45}, "MG609"),
        (faults.SmoothedAnchors, {}, "MG609"),
        (None, {"classification": "focal", "focal_gamma": 8.0}, "MG610"),
        (None, {"classification": "focal", "focal_alpha": 0.01}, "MG610"),
        (faults.TwoSigmoids, {}, "MG612"),
        (faults.NoSigmoid, {}, "MG613"),
        (faults.FinestScale, {}, "MG617"),
        (faults.OverlappingMasks, {}, "MG620"),
        (faults.ObjectsAndNone, {}, "MG620"),
    ],
)
def test_prices_tell_causes_apart(trainer, kind, options, cause):
    with case_with(trainer, kind, **options) as case:
        assert first(case, WEIGHTS) == cause


@pytest.mark.parametrize(
    ("kind", "options", "cause"),
    [
        (faults.Summed, {}, "MG601"),
        (faults.ByImage, {}, "MG604"),
        (faults.AnchorEverywhere, {}, "MG606"),
        (faults.NothingIgnored, {}, "MG607"),
        (faults.EverythingIgnored, {}, "MG608"),
        (faults.MixedImages, {}, "MG619"),
        (faults.OtherTotal, {}, "MG621"),
        (faults.CountedTwice, {}, "MG621"),
        (faults.DeafToClasses, {}, "MG623"),
    ],
)
def test_related_batches_tell_causes_apart(trainer, kind, options, cause):
    with case_with(trainer, kind, **options) as case:
        assert first(case, RELATIONS) == cause


@pytest.mark.parametrize(
    ("kind", "options", "cause"),
    [
        (faults.Unprotected, {}, "MG603"),
        (faults.RootOfNothing, {}, "MG614"),
        (faults.NoEpsilon, {}, "MG615"),
        (None, {"coord_scale": 1e-3}, "MG618"),
        (None, {"class_scale": 300.0}, "MG618"),
    ],
)
def test_gradients_tell_causes_apart(trainer, kind, options, cause):
    with case_with(trainer, kind, **options) as case:
        assert first(case, GRADIENTS) == cause


@pytest.mark.parametrize(
    ("kind", "cause"), [(faults.RawOffsets, "MG616"), (faults.HalfSizeBoxes, "MG622"), (faults.Maximized, "MG625")]
)
def test_readings_tell_causes_apart(trainer, kind, cause):
    with case_with(trainer, kind) as case:
        assert first(case, READINGS) == cause


def test_weights_of_classes_follow_their_frequency_or_are_named(trainer):
    counts = np.bincount(np.concatenate([one.classes for one in trainer.samples["train"]]), minlength=6)
    balanced = (counts.sum() / 6 / np.maximum(counts, 1)).tolist()
    with case_with(trainer, class_weights=balanced) as case:
        assert verdicts(case, [loss_functions.class_weights_are_wrong]) == {}
    with case_with(trainer, class_weights=(10.0 ** np.arange(6) * 1e-2).tolist()) as case:
        assert "MG611" in verdicts(case, [loss_functions.class_weights_are_wrong])


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_collapse_is_foretold_from_prices_and_the_share_of_positive_cells(trainer):
    with case_with(trainer, no_object_scale=100.0) as case:
        verdict = balance.negatives_outweigh.function(case)
        seen = case.examined(responses.examine)
    # one unit of a logit costs 1 / images in both kinds of cell, and 100 times that with the coefficient
    assert seen.negative_unit == pytest.approx(seen.positive_unit, rel=1e-3)
    assert verdict.seen[0].value == pytest.approx(100.0, rel=1e-3)
    pull = verdict.seen[1].value
    assert verdict.seen[2].value == pytest.approx(1.0 / (1.0 + pull), rel=1e-2)
    assert verdict.confidence > 0.85


def test_the_remedy_is_a_setting_only_where_the_config_asks_for_the_value(trainer):
    wrong = trainer.config.model_copy(
        update={"loss": trainer.config.loss.model_copy(update={"no_object_scale": 100.0})}
    )
    with case_with(trainer, no_object_scale=100.0, config=wrong) as case:
        assert balance.negatives_outweigh.function(case).remedy.settings == ("loss.no_object_scale=1",)
    with case_with(trainer, no_object_scale=100.0) as case:
        remedy = balance.negatives_outweigh.function(case).remedy
    assert remedy.settings == () and remedy.part == "criterion"


def test_responses_are_those_of_the_cross_entropy(trainer):
    with case_with(trainer) as case:
        seen = case.examined(responses.examine)
    # -ln(1 - sigmoid(8)) = ln(1 + e^8) and ln(1 + e^-8), a cell and divided by the 4 images
    assert seen.no_object[-1] == pytest.approx(seen.negatives.sum() * np.log1p(np.exp(8.0)) / 4, rel=1e-4)
    assert seen.no_object[0] == pytest.approx(seen.negatives.sum() * np.log1p(np.exp(-8.0)) / 4, rel=1e-3)
    assert seen.overlap == pytest.approx(0.0, abs=1e-6)


def test_relations_of_a_mean_hold(trainer):
    with case_with(trainer) as case:
        seen = case.examined(relations.examine)
        coefficient = case.criterion.coord_scale
    assert list(seen.doubled.values()) == pytest.approx([1.0] * len(seen.doubled), rel=1e-4)
    assert [seen.empty[name] for name in relations.OF_OBJECTS] == [0.0] * 4
    assert list(seen.twice.values()) == pytest.approx([2.0] * 5, rel=1e-2)
    assert coefficient == trainer.config.loss.coord_scale  # put back


def test_a_free_answer_has_the_gradient_of_the_cross_entropy(trainer):
    with case_with(trainer) as case:
        scene = case.examined(gradients.outputs.examine)
        free = gradients._Free(case.criterion, scene)
        cells = scene.cells.copy()
        cells[..., 4] = np.where(scene.positive, cells[..., 4], 0.0)
        found = free.gradient(scene.targets, cells, "no_object")
    # sigmoid(0) = 0.5 in every cell without an object, divided by the 4 images
    assert found[..., 4][~scene.positive] == pytest.approx(0.125, rel=1e-4)
    assert np.abs(found[scene.positive]).max() == 0.0


def test_the_floor_of_localization_is_at_the_true_box(trainer):
    with case_with(trainer) as case:
        assert case.examined(roundtrip.examine_readings).floor < 1e-4
