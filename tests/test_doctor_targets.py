"""Causes in anchors, cells and what they should predict: each is named, and its look-alikes are not."""

import faulty_losses as faults
import numpy as np
import pytest
from small_cases import case_with, first, rules_of, verdicts
from small_runs import make_config

from multigrid import assembly
from multigrid.config import LossConfig
from multigrid.diagnosis.examinations import anchors_fit, claims, outputs, roundtrip
from multigrid.diagnosis.rules import targets
from multigrid.geometry.anchor_fit import fit_anchors
from multigrid.losses.targets import ASSIGNMENTS, BEST_CELLS
from multigrid.training.trainer import MultiGridTrainer

RULES = rules_of(targets)
STATIC = [targets.anchors_in_another_unit, targets.anchors_in_the_wrong_order, targets.anchors_do_not_fit]


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    made = MultiGridTrainer(make_config(draw_scenes(train=24, val=8), tmp_path_factory.mktemp("targets") / "run"))
    made.build_model()
    return made


def with_anchors(trainer, change):
    """The trainer's case with other anchors in its criterion."""
    return case_with(trainer, anchors=change(np.array(trainer.detector.anchors)).tolist())


def test_sound_targets_raise_no_alarm(trainer):
    with case_with(trainer) as case:
        assert verdicts(case, RULES) == {}


@pytest.mark.parametrize("assignment", [word for word in ASSIGNMENTS if word != LossConfig().assignment])
def test_no_assignment_raises_an_alarm(trainer, assignment):
    with case_with(trainer, assignment=assignment) as case:
        assert verdicts(case, RULES) == {}


@pytest.mark.parametrize("loss", [faults.Own, faults.OtherTargets])
def test_a_loss_of_ones_own_raises_no_alarm(trainer, loss):
    with case_with(trainer, loss(trainer.detector.criterion)) as case:
        assert verdicts(case, RULES) == {}


# --- anchors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda sizes: sizes / 32.0, "MG301"),  # in cells of the coarsest grid
        (lambda sizes: sizes / 96.0, "MG301"),  # in shares of the width
        (lambda sizes: sizes * 8.0, "MG301"),
        (lambda sizes: sizes[::-1], "MG302"),
        (lambda sizes: sizes * 4.0, "MG303"),  # too small a factor for a unit
    ],
)
def test_anchors_are_told_apart(trainer, change, cause):
    with with_anchors(trainer, change) as case:
        assert first(case, STATIC) == cause


def test_anchors_of_the_right_sizes_on_the_wrong_grid_do_not_fit(trainer):
    sizes = assembly.network_sizes(trainer.samples["train"], trainer.train_data.input_size)
    fitted = fit_anchors(sizes, count=3, scales=1, deal="area").sizes[0]
    tiny = [[[6, 6], [5, 5], [4, 4]], [[3, 3], [2, 2], [1, 1]]]
    with with_anchors(trainer, lambda _: np.array([fitted, *tiny])) as case:
        seen = case.examined(anchors_fit.examine)
        assert seen.label_fit.fits and seen.misdealt > 0.75
        assert first(case, STATIC) == "MG303"


def test_anchors_that_are_dealt_by_area_raise_no_alarm(trainer):
    sizes = assembly.network_sizes(trainer.samples["train"], trainer.train_data.input_size)
    with with_anchors(trainer, lambda _: fit_anchors(sizes, deal="area").sizes) as case:
        assert verdicts(case, STATIC) == {} and case.examined(anchors_fit.examine).misdealt > 0.2


def test_boxes_in_another_unit_are_not_taken_for_anchors_in_another_unit(trainer):
    with case_with(trainer) as case:
        shares = [(images, {**truth, "boxes": truth["boxes"] / 96.0}) for images, truth in case.batches]
        case.__dict__["batches"] = shares
        assert verdicts(case, STATIC) == {}


def test_boxes_that_changed_after_the_label_files_are_not_taken_for_unfit_anchors(trainer):
    with case_with(trainer) as case:
        grown = []
        for images, truth in case.batches:  # about their centres, so that they stay in the image
            boxes = np.asarray(truth["boxes"])
            centre = np.tile((boxes[..., :2] + boxes[..., 2:]) / 2.0, 2)
            grown.append((images, {**truth, "boxes": centre + (boxes - centre) * 4.0}))
        case.__dict__["batches"] = grown
        assert not case.examined(anchors_fit.examine).fit.fits
        assert verdicts(case, STATIC) == {}


def test_the_factor_that_anchors_lack_is_found(trainer):
    with with_anchors(trainer, lambda sizes: sizes / 32.0) as case:
        seen = case.examined(anchors_fit.examine)
    assert seen.factor == pytest.approx(32.0, rel=0.25) and seen.fit.mean_iol < 0.1 and seen.factor_fit > 0.6


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "cause"),
    [
        (faults.NextCell, "MG311"),
        (faults.NextCellAndOffset, "MG311"),
        (faults.NextCellForGuests, "MG311"),
        (faults.Transposed, "MG312"),
        (faults.CrossedSizes, "MG314"),
        (faults.NextClass, "MG315"),
        (faults.WithinTheCell, "MG331"),
        (faults.StrictAssignment, "MG322"),
        (faults.DoubledClaims, "MG323"),
        (faults.CoarseAlone, "MG321"),
    ],
)
def test_encoders_are_told_apart(trainer, loss, cause):
    with case_with(trainer, loss) as case:
        assert first(case, RULES) == cause


def test_other_strides_are_named(trainer):
    with case_with(trainer, strides=(64, 32, 16)) as case:
        assert first(case, RULES) == "MG313"
        # a point at twice the stride is in the cell of half the number: twice as far from the origin, by the grid
        assert case.examined(roundtrip.examine).magnified == pytest.approx(0.5, rel=0.01)


def test_a_shift_is_measured_in_cells(trainer):
    with case_with(trainer, faults.NextCell) as case:
        seen = case.examined(roundtrip.examine)
    assert seen.shift == pytest.approx([1.0, 0.0], abs=1e-3) and seen.shift_spread == pytest.approx([0, 0], abs=1e-3)


def crowded(case, count, smallest, largest):
    """Batches of the case's images with so many boxes on each, of sides between these."""
    random, batches = np.random.default_rng(0), []
    for images, _ in case.batches:
        corner = random.uniform(0, (80, 50), size=(len(images), count, 2))
        side = random.uniform(smallest, largest, size=(len(images), count, 2))
        boxes = np.concatenate([corner, corner + side], axis=-1).astype("float32")
        batches.append((images, {"boxes": boxes, "classes": np.zeros(boxes.shape[:2], "int32")}))
    return batches


def test_guests_that_yield_to_the_objects_of_a_grid_are_no_collisions(trainer):
    seen = {}
    for assignment in ("best", "across"):
        with case_with(trainer, assignment=assignment) as case:
            case.__dict__["batches"] = crowded(case, 12, 14, 50)  # of the middle and the coarse grid
            seen[assignment] = case.examined(claims.examine)
    best, across = seen["best"], seen["across"]
    assert across.scale_shares[:2].min() > 0.1 and across.positives > best.positives
    assert across.claims == best.claims <= BEST_CELLS
    assert (across.lost, across.starved) == (best.lost, best.starved) and best.lost > 0.1


def test_dense_objects_alone_are_no_collision_of_a_wrong_encoder(trainer):
    with case_with(trainer) as case:
        case.__dict__["batches"] = crowded(case, 60, 5, 14)
        assert case.examined(claims.examine).lost > 0.3
        assert targets.collisions.function(case) is None


# --- the designed scene -----------------------------------------------------------------------------------------------


def test_the_perfect_answer_costs_nothing(trainer):
    with case_with(trainer) as case:
        scene = case.examined(outputs.examine)
        said, start = (outputs.measure(case, scene, cells) for cells in (None, outputs.start_cells(case, scene)))
    assert scene.positive.any(axis=1).tolist() == [True, True, True, False]  # the last image is empty
    assert said.sum("localization") < 1e-4 * start.sum("localization")
    assert said.sum("anchor") < 1e-3 and said.total < 1e-3 * start.total


def test_compiled_and_plain_measures_agree(trainer):
    with case_with(trainer) as case:
        scene = case.examined(outputs.examine)
        cells = scene.cells * 0.5
        compiled, plain = outputs.measure(case, scene, cells), outputs.measure_as_it_is(case, scene, cells)
    assert compiled.total == pytest.approx(plain.total, rel=1e-5)
