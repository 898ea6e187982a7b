"""What TensorBoard is given: figures in groups, norms by block, pictures; and callbacks by import path."""

import math
import sys
import textwrap

import cv2
import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from multigrid.data.generator import MultiGridDataGenerator
from multigrid.data.samples import Sample
from multigrid.errors import InputError
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.blocks import block_of, blocks_of
from multigrid.models.detector import MultiGridDetector
from multigrid.prediction.predictor import Predictor
from multigrid.training import snapshots
from multigrid.training.callback_list import build_callbacks, check_callbacks
from multigrid.training.callbacks import OptimizerFigures
from multigrid.training.freezing import freeze
from multigrid.training.optimizers import build_optimizer
from multigrid.training.tracking import GroupedTensorBoard, PredictionPictures, grouped, write_picture

ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
NAMES = ("disc", "ring", "bar")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("images"), []
    rng = np.random.default_rng(8)
    for number in range(3):
        path = str(folder / f"image {number}.png")
        cv2.imwrite(path, rng.integers(0, 256, (48, 80, 3), dtype=np.uint8))
        box = np.array([[10 + 3 * number, 20, 32 + 3 * number, 35]], "float32")
        made.append(Sample(path, box, np.array([number], "int32"), number + 1, (48, 80)))
    return made


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(2)
    made = MultiGridDetector(ANCHORS, 3, width=1 / 16, depth=1 / 8, criterion=MultiGridLoss(ANCHORS, 3))
    freeze(made, ["stage1"])
    optimizer = build_optimizer(
        "sgd",
        0.001,
        momentum=0.0,
        weight_decay=0.0,
        max_grad_norm=None,
        ema=0.5,
        block_of={variable.path: block_of(variable.path) for variable in made.weights},
        blocks=blocks_of(made),
        block_multipliers={"grid_16": 2.0, "stem": 1.0},
    )
    made.compile(optimizer, jit_compile=keras.backend.backend() == "jax")
    return made


def events(folder) -> EventAccumulator:
    """Everything that TensorBoard would show of a run, and no sampling."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def series(run: EventAccumulator, tag: str) -> dict:
    """step -> value of a figure."""
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in run.Tensors(tag)}


class Weights(keras.callbacks.Callback):
    """Keeps a weight as it is when each epoch ends, and the logs."""

    def __init__(self):
        super().__init__()
        self.seen, self.logs = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(keras.ops.convert_to_numpy(self.model.get_layer("grid_8").bias).copy())
        self.logs.append(dict(logs))


class Recorder:
    """A predictor that also keeps the weight it predicts with."""

    def __init__(self, predictor, detector):
        self.predictor, self.detector, self.class_names = predictor, detector, predictor.class_names
        self.seen = []

    def stream(self, sources):
        self.seen.append(keras.ops.convert_to_numpy(self.detector.get_layer("grid_8").bias).copy())
        return self.predictor.stream(sources)


@pytest.mark.backend
def test_a_training_leaves_figures_in_groups_norms_by_block_and_pictures(detector, samples, tmp_path):
    train, val = (
        MultiGridDataGenerator(part, input_size=(64, 96), batch_size=2, shuffle=False, seed=3)
        for part in (samples[:2], samples[1:])
    )
    recorder = Recorder(Predictor(detector, NAMES, (64, 96), score_threshold=0.2, batch_size=2), detector)
    weights = Weights()
    callbacks = [
        OptimizerFigures(),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        GroupedTensorBoard(tmp_path),
        PredictionPictures(recorder, samples, every=2, log_dir=tmp_path),
        weights,
    ]
    detector.fit(train, validation_data=val, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)

    runs = {name: events(tmp_path / name) for name in ("train", "validation", "pictures")}
    tags = {name: set(run.Tags()["tensors"]) for name, run in runs.items()}
    parts = [tag for tag in tags["train"] if "_loss/stride_" in tag]
    # five parts of the loss at three strides
    assert len(parts) == 15 and "epoch_no_object_loss/stride_8" in parts
    # validation in the charts of training, and each figure once
    assert {*parts, "epoch_loss", "epoch_objectness_loss"} <= tags["validation"] <= tags["train"]
    assert not [tag for tag in tags["validation"] if "iterations" in tag]
    for name, figure in (("train", "anchor_loss_16"), ("validation", "val_anchor_loss_16")):
        logged = {step: logs[figure] for step, logs in enumerate(weights.logs)}
        assert series(runs[name], "epoch_anchor_loss/stride_16") == pytest.approx(logged, rel=1e-6)

    blocks = blocks_of(detector)
    norms = {block: weights.logs[0][f"grad_norm/{block}"] for block in blocks}
    # nothing of stage1 learns
    assert [block for block in blocks if math.isnan(norms[block])] == ["stage1"]
    # one step an epoch: the squares of the blocks make that of the whole
    squares = sum(norm**2 for norm in norms.values() if not math.isnan(norm))
    assert weights.logs[0]["grad_norm"] == pytest.approx(math.sqrt(squares), rel=1e-4)
    assert min(norm for norm in norms.values() if not math.isnan(norm)) > 0
    assert {tag for tag in tags["train"] if tag.startswith("epoch_grad_norm")} == {
        "epoch_grad_norm",
        *(f"epoch_grad_norm/{block}" for block in blocks if block != "stage1"),
    }
    # learning rates of 0.001, twice that for one block
    assert series(runs["train"], "epoch_learning_rate/grid_16") == pytest.approx(dict.fromkeys(range(4), 0.002))
    assert {tag for tag in tags["train"] if tag.startswith("epoch_learning_rate/")} == {"epoch_learning_rate/grid_16"}

    pictures = runs["pictures"].Images("predictions")
    assert [picture.step for picture in pictures] == [0, 2, 3]  # every second, and the last
    shown = cv2.imdecode(np.frombuffer(pictures[0].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (pictures[0].height, pictures[0].width, 3)
    # three images, each twice, four in a row
    assert shown.shape[1] > 4 * 80 and 2 * 48 < shown.shape[0] < 4 * 48
    # with the averaged weights, which stand there when the epoch has ended
    np.testing.assert_array_equal(recorder.seen, [weights.seen[epoch] for epoch in (0, 2, 3)])


def test_pictures_show_the_averaged_weights_and_not_those_that_learn(detector, samples, tmp_path):
    train = MultiGridDataGenerator(samples[:2], input_size=(64, 96), batch_size=2, shuffle=False, seed=3)
    recorder = Recorder(Predictor(detector, NAMES, (64, 96), batch_size=2), detector)
    before, after = Weights(), Weights()
    pictures = PredictionPictures(recorder, samples, every=1, log_dir=tmp_path)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    # two steps make an average that differs from the weights
    detector.fit(train, epochs=2, shuffle=False, verbose=0, callbacks=[before, swap, after, pictures])
    assert not np.array_equal(before.seen[0], after.seen[0])
    np.testing.assert_array_equal(recorder.seen, after.seen)


def test_a_training_that_is_stopped_has_its_last_picture(samples, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(snapshots, "prediction_sheet", lambda *_: np.zeros((4, 6, 3), "uint8"))
    monkeypatch.setattr("multigrid.training.tracking.write_picture", lambda *call: drawn.append(call[-1]))

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 4

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")

    def pictures(first, end, callbacks, **options):
        callbacks = [*callbacks, PredictionPictures(None, samples, 3, tmp_path, **options)]
        data = np.ones((2, 2)), np.ones((2, 1))
        model.fit(*data, initial_epoch=first, epochs=end, verbose=0, callbacks=callbacks)
        epochs, drawn[:] = list(drawn), []
        return epochs

    assert pictures(0, 9, [Stop()]) == [0, 3, 4]
    assert pictures(0, 6, []) == [0, 3, 5]
    # the end of a stage is not the end of the training
    assert pictures(0, 6, [], epochs=8) == [0, 3]
    assert pictures(6, 8, [], epochs=8) == [6, 7]


def test_names_are_grouped_and_gaps_left_out():
    logs = {
        "loss": 1.0,
        "no_object_loss_32": 2.0,
        "val_no_object_loss_8": math.nan,
        "grad_norm": 3.0,
        "grad_norm/stage1": math.nan,
        "val_mAP": math.nan,
        "val_mAP50": 0.5,
        "positives_2": 4.0,
    }
    # a loss that is no number is news, not a gap
    assert grouped(logs) == pytest.approx(
        {
            "loss": 1.0,
            "no_object_loss/stride_32": 2.0,
            "val_no_object_loss/stride_8": math.nan,
            "grad_norm": 3.0,
            "val_mAP50": 0.5,
            "positives_2": 4.0,
        },
        nan_ok=True,
    )
    assert len(logs) == 8


def test_a_picture_keeps_its_colours_and_joins_those_before_it(tmp_path):
    image = np.zeros((40, 56, 3), np.uint8)
    image[:, 28:] = (250, 120, 10)
    for step in (3, 5):
        write_picture(tmp_path / "pictures", "what", image, step)
    pictures = events(tmp_path / "pictures").Images("what")
    assert [(picture.step, picture.height, picture.width) for picture in pictures] == [(3, 40, 56), (5, 40, 56)]
    shown = cv2.imdecode(np.frombuffer(pictures[0].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_allclose(shown[20, 45], (250, 120, 10), atol=6)


def test_large_images_are_shrunk_together_with_their_boxes(tmp_path):
    class Nothing:
        class_names = NAMES

        def stream(self, sources):
            for _ in sources:
                yield type("Found", (), {"boxes": np.zeros((0, 4)), "scores": [], "names": [], "class_ids": []})

    path, box = str(tmp_path / "large.png"), np.array([[600, 100, 900, 400]], "float32")
    cv2.imwrite(path, np.zeros((500, 1000, 3), np.uint8))
    sample = Sample(path, box, np.array([1], "int32"), 1, (500, 1000))
    full, small = (snapshots.prediction_sheet(Nothing(), [sample], side) for side in (None, 100))
    assert full.shape[1] > 2000 and 200 < small.shape[1] < 250
    bright = small[:, :100].max(axis=2) > 100
    columns = np.flatnonzero(bright[30:40].any(axis=0))
    # 600 and 900 of 1000 pixels, on 100, behind the sheet's margin
    margin = (small.shape[1] - 200) // 3
    assert abs(columns.min() - margin - 60) <= 2 and abs(columns.max() - margin - 90) <= 2


# --- callbacks by import path


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's in the working directory."""
    text = """
    import keras

    class Greeting(keras.callbacks.Callback):
        def __init__(self, path, times=1):
            super().__init__()
            if times < 0:
                raise ValueError("times: expected 0 or more,\\n received fewer")
            self.path, self.times = path, times

    class NoCallback:
        pass

    SOMETHING = 5
    """
    (tmp_path / "my_callbacks.py").write_text(textwrap.dedent(text), encoding="utf-8")
    (tmp_path / "broken_callbacks.py").write_text("import no_such_package_at_all\n", encoding="utf-8")
    (tmp_path / "torn_callbacks.py").write_text("class\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield
    for name in ("my_callbacks", "broken_callbacks", "torn_callbacks"):
        sys.modules.pop(name, None)


def test_callbacks_are_built_in_order_with_their_arguments_and_the_run_folder(own_module, tmp_path):
    items = (
        {"name": "keras.callbacks.TerminateOnNaN"},
        {"name": "my_callbacks.Greeting", "path": {"of": ["{run_dir}/a", 3]}, "times": 2},
        {"name": "keras.callbacks.ModelCheckpoint", "filepath": "{run_dir}/{epoch:03d}.keras"},
    )
    check_callbacks(items)
    first, second, third = build_callbacks(items, tmp_path / "run")
    assert type(first) is keras.callbacks.TerminateOnNaN
    assert (type(second).__name__, second.path, second.times) == ("Greeting", {"of": [f"{tmp_path}/run/a", 3]}, 2)
    assert third.filepath == f"{tmp_path}/run/{{epoch:03d}}.keras"
    assert items[1]["path"] == {"of": ["{run_dir}/a", 3]} and build_callbacks((), "run") == []


WRONG = [
    ({"name": "keras.callbacks.Nonsense"}, "received no 'Nonsense' in keras.callbacks"),
    ({"name": "no_such_module.Thing"}, "received ModuleNotFoundError: No module named 'no_such_module'"),
    ({"name": "broken_callbacks.Thing"}, "received ModuleNotFoundError: No module named 'no_such_package_at_all'"),
    ({"name": "torn_callbacks.Thing"}, "received SyntaxError: "),
    ({"name": "TerminateOnNaN"}, "received 'TerminateOnNaN'"),
    ({"name": "keras.callbacks."}, "received 'keras.callbacks.'"),
    ({"name": "my_callbacks.NoCallback"}, "expected a subclass of keras.callbacks.Callback, received the class NoC"),
    (
        {"name": "my_callbacks.SOMETHING"},
        "subclass of keras.callbacks.Callback, received an object of type int",
    ),
    ({"name": "my_callbacks.Greeting"}, "expected arguments of (path, times), received TypeError: missing a required"),
    ({"name": "my_callbacks.Greeting", "path": 1, "time": 2}, "received TypeError: got an unexpected keyword argument"),
]


@pytest.mark.parametrize(("item", "words"), WRONG)
def test_a_callback_that_cannot_be_built_is_one_line_with_its_place(item, words, own_module):
    items = [{"name": "keras.callbacks.TerminateOnNaN"}, item]
    with pytest.raises(InputError) as caught:
        check_callbacks(items)
    message = str(caught.value)
    assert message.startswith(f"callbacks[1] ({item['name']}): expected ") and words in message
    assert "\n" not in message
    with pytest.raises(InputError) as again:
        build_callbacks(items, "run")
    assert str(again.value) == message


def test_a_value_that_a_callback_refuses_is_told_when_it_is_built(own_module):
    item = {"name": "my_callbacks.Greeting", "path": "a", "times": -1}
    check_callbacks([item])
    words = (
        r"callbacks\[0\] .my_callbacks.Greeting.: expected .* received ValueError: times: expected 0 or more, received"
    )
    with pytest.raises(InputError, match=words):
        build_callbacks([item], "run")
