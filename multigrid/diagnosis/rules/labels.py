"""Causes in the labels and in how they are read."""

from __future__ import annotations

from collections import Counter

import numpy as np

from multigrid.diagnosis.examinations import boxes, duplicates, funnel, labels_read
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule

EMPTIED = 0.02  # share of the labelled images whose boxes are lost between file and samples; and at least
EMPTIED_IMAGES = 3
DEFECTS = 0.2  # share of a label file that a reader must leave out, from which the file is looked at itself
BACKGROUND = (0.62, 0.8)  # share of images without objects, to be noted, and to be changed
REPEATED = 0.05  # share of the boxes that lie on others of their class
OUTSIDE = 0.01  # share of the boxes whose centre is not in the image
FLAT = 0.002  # share of the boxes without an area
COARSE = (0.1, 0.25)  # step of the grid that coordinates lie on over a side of a box, to be noted, and to be changed
AGAIN = 0.8  # share of the training samples that are different images
FEW = 50  # different images; with fewer, to see them again and again does harm
MISSED = 0.05  # share of the objects to validate on whose classes nothing was trained on
TINY = 3.0  # pixels of the network's input
STREAMS = ("samples", "training batches", "validation batches")


@rule(
    "MG101", "Objects of the label files do not reach the batches", group="labels", stage="static",
    explains=("MG114", "MG204"),
)  # fmt: skip
def missing_labels(case):
    """No or few objects in the batches though the files have them, or none in the files."""
    file, seen = case.examined(labels_read.examine), case.examined(funnel.examine)
    lost, labelled = labels_read.emptied(file, case.samples.get("train", ())) if file else (0, 0)
    kept = sum(len(one.boxes) for one in case.samples.get("train", ()))
    moved = file is not None and kept > 0.97 * (1 - file.dropped) * file.boxes  # to other images: none is lost
    if seen.batched > 0 and (moved or lost < EMPTIED_IMAGES or lost < EMPTIED * labelled):
        return None
    in_file = file.boxes / max(1, len(file.images)) if file else None
    why = [f"{lost} of {labelled} images have boxes in the file that can be used, and none as samples"] if lost else []
    if seen.batched == 0:
        why.append(f"of {seen.images} images all are empty, before any encoding: cells and loss cannot be the cause")
    return Verdict(
        1.0 if seen.batched == 0 else 0.95,
        (
            Observation("objects an image in the label file", in_file, "more than 0"),
            Observation("objects an image in the samples", seen.parsed, "as in the file"),
            Observation("objects an image in the batches", seen.batched, "more than 0"),
        ),
        tuple(why),
        Remedy("Look at the label file of data.train and its reader.", part="data", where="data.train"),
    )


# --- boxes that cannot be boxes ---------------------------------------------------------------------------------------


def _counted(case) -> list[tuple[str, boxes.Boxes]]:
    """What was counted of samples and batches."""
    looks = (boxes.of_samples, boxes.of_training, boxes.of_validation)
    return [(stream, found) for stream, look in zip(STREAMS, looks, strict=True) if (found := case.examined(look))]


def _worst(case, share: str, file_kind: str | None = None) -> tuple[str, float]:
    """(stream, share) of the stream with the greatest share; the label file counts where nothing else shows any."""
    stream, most = max(
        ((stream, getattr(found, share)) for stream, found in _counted(case)), key=lambda one: one[1], default=("", 0.0)
    )
    file = case.examined(labels_read.examine) if file_kind else None
    return (stream, most) if most or file is None else ("label file", file.share(file_kind))


@rule("MG107", "Coordinates are not numbers", group="labels", stage="static")
def coordinates_not_finite(case):
    """NaN or infinity among the boxes."""
    stream, share = _worst(case, "not_finite", "non-finite")
    if not share:
        return None
    dropped = stream == "label file"
    return Verdict(
        0.6 if dropped else 1.0,
        (Observation(f"boxes of the {stream} with a coordinate that is not finite", round(share, 4), "0"),),
        (
            "the reader leaves them out"
            if dropped
            else "they are there before any update: no gradient can have made them",
        ),
        Remedy("Mend the records; data.strict=true names them.", part="data", where=stream),
        hygiene=dropped,
    )


@rule("MG108", "Boxes have no area", group="labels", stage="static", explains=("MG807",))
def boxes_without_area(case):
    """Width or height of 0, after reading, clipping or scaling."""
    stream, share = _worst(case, "flat", "empty")
    if share < FLAT or case.examined(boxes.of_training) is None:
        return None
    dropped = stream == "label file"
    return Verdict(
        0.6 if dropped else 0.9,
        (Observation(f"boxes of the {stream} without width or height", round(share, 4), "0"),),
        ("the reader leaves them out" if dropped else "their corners are in order and finite: they were not misread",),
        Remedy("Leave such boxes out, after every step that clips or scales.", part="data", where=stream),
        hygiene=dropped,
    )


@rule("MG109", "Boxes lie outside their images", group="labels", stage="static", explains=("MG204",))
def boxes_outside(case):
    """Centres beyond the border, where no cell can answer for them."""
    stream, share = _worst(case, "outside", "outside")
    if share < OUTSIDE:
        return None
    return Verdict(
        0.9 if share > 5 * OUTSIDE else 0.6,
        (Observation(f"boxes of the {stream} with their centre outside the image", round(share, 4), "0"),),
        ("no format, unit or turn of the boxes explains it: then that cause stands above",),
        Remedy("See which images they belong to; clip or leave them out.", part="data", where=stream),
        hygiene=stream == "label file" and share < DEFECTS,
    )


@rule("MG110", "Objects are labelled twice", group="labels", stage="static")
def repeated_boxes(case):
    """The same box of the same class again."""
    stream, share = _worst(case, "repeated")
    if share < REPEATED / 5:
        return None
    return Verdict(
        0.8 if share > REPEATED else 0.6,
        (Observation(f"boxes of the {stream} that lie on another of their class", round(share, 4), "below 0.001"),),
        (f"they share more than {boxes.SAME:.0%}: crowded objects do not",),
        Remedy("Read each label once; `multigrid data` lists boxes that are there twice.", part="data", where=stream),
        hygiene=share < REPEATED,
    )


@rule("MG118", "Coordinates of the boxes are rounded to a coarse grid", group="labels", stage="static")
def coarse_coordinates(case):
    """So that no box ends where its object does."""
    found = case.examined(boxes.of_samples)
    if found is None or found.coarseness < COARSE[0]:
        return None
    return Verdict(
        0.85 if found.coarseness > COARSE[1] else 0.6,
        (Observation("step between possible coordinates, in sides of a box", _two(found.coarseness), "below 0.05"),),
        ("nearly all coordinates lie on one grid of few lines: careless boxes are off by any amount",),
        Remedy("Write more digits, or pixels of the whole image instead of a thumbnail's.", where="data.train"),
        hygiene=found.coarseness <= COARSE[1],
    )


# --- classes ----------------------------------------------------------------------------------------------------------


def _ids(case) -> list[tuple[str, dict]]:
    """Objects by class number in every stream that has numbers."""
    file = case.examined(labels_read.examine)
    read = [("label file", file.ids)] if file and file.ids else []
    return read + [(stream, found.ids) for stream, found in _counted(case)]


@rule(
    "MG105", "Class numbers are shifted by one", group="labels", stage="static", explains=("MG111", "MG101"),
)  # fmt: skip
def classes_from_one(case):
    """The number of classes comes as a class, and 0 is missing or rare; or the other way round."""
    count = len(case.class_names)
    for stream, ids in _ids(case):
        beyond = [number for number in ids if number not in range(count)]
        if len(beyond) == 1 and beyond[0] in (count, -1):
            return _shifted(stream, ids, beyond[0], 0 if beyond[0] == count else count - 1, count)
    return None


def _shifted(stream: str, ids: dict, beyond: int, left: int, count: int) -> Verdict | None:
    """Of classes that end at `beyond` and would then have left `left`."""
    total, rest = sum(ids.values()), ids.get(left, 0)
    if total < 10 or ids[beyond] < 0.02 * total / count:
        return None  # single slips are another matter
    return Verdict(
        0.97 if not rest else 0.85,
        (
            Observation(f"objects of class {beyond} in the {stream}", ids[beyond], f"0: classes end at {count - 1}"),
            Observation(f"objects of class {left}", rest, f"about {total / count:.0f}"),
        ),
        (
            "no other number is beyond the classes: a wrong list of names would give more than one",
            f"class {left} is missing" if not rest else f"class {left} is there too: a part of the files is shifted",
        ),
        Remedy("Subtract one from the class numbers, or count from 0.", part="data", where=stream),
    )


@rule("MG111", "Class numbers are beyond the list of classes", group="labels", stage="static")
def classes_beyond(case):
    """Numbers, or names, that no class has."""
    count, file = len(case.class_names), case.examined(labels_read.examine)
    for stream, ids in _ids(case):
        beyond = sorted(number for number in ids if number >= count or number < 0)
        if beyond:
            share = sum(ids[number] for number in beyond) / sum(ids.values())
            return Verdict(
                0.9 if share > 0.01 else 0.6,
                (Observation(f"class numbers in the {stream} beyond 0 to {count - 1}", beyond[:8], "none"),
                 Observation("objects that have them", round(share, 4), "0")),
                ("they are no shift by one: then only one number is beyond",),
                Remedy("Give data.classes the list that the labels were made with.", part="data", where=stream),
                hygiene=stream == "label file" and share < 0.01,
            )  # fmt: skip
    if file and file.share("unknown-class") > 0.01:
        return Verdict(
            0.85,
            (
                Observation(
                    "boxes of the label file with an unknown class name", _two(file.share("unknown-class")), "0"
                ),
            ),
            ("the reader leaves these objects out, and they become background",),
            Remedy("Give data.classes the list that the labels were made with.", part="data", where="data.classes"),
        )
    return None


@rule("MG119", "Training has no object of classes that validation has", group="labels", stage="static")
def classes_untrained(case):
    """A filter, or a subset, left out whole classes."""
    train, val = (_of_classes(case, split) for split in ("train", "val"))
    missing = sorted(number for number in val if number not in train)
    if not train or not missing:
        return None
    share = sum(val[number] for number in missing) / sum(val.values())
    names = [case.class_names[number] for number in missing if 0 <= number < len(case.class_names)]
    return Verdict(
        0.9 if share > MISSED else 0.6,
        (
            Observation("classes without an object to train on", ", ".join(names) or missing, "none"),
            Observation("share of the objects to validate on that are of these", _two(share), "0"),
        ),
        (f"{len(train)} classes have objects to train on: the label file is read, and these are not in it",),
        Remedy("Look at how the training list was chosen; every class needs objects in it.", where="data.train"),
        hygiene=share <= MISSED,
    )


def _of_classes(case, split: str) -> Counter:
    """Objects by class number in the samples of a split."""
    return Counter(int(number) for one in case.samples.get(split) or () for number in one.classes)


# --- what is in the data ----------------------------------------------------------------------------------------------


@rule("MG114", "Most images are empty", group="labels", stage="static")
def mostly_background(case):
    """So that few cells ever have an object."""
    seen = case.examined(funnel.examine)
    if not BACKGROUND[0] < seen.empty_images < 1.0:
        return None
    return Verdict(
        0.55,
        (Observation("images of the batches without an object", _two(seen.empty_images), "below 0.5"),
         Observation("samples without an object", seen.empty_samples and _two(seen.empty_samples), "the same")),
        ("the label file declares them empty: no object is lost on the way",),
        Remedy("Leave out empty images until about as many are left as labelled ones.", where="data.train"),
        hygiene=seen.empty_images < BACKGROUND[1],
    )  # fmt: skip


@rule("MG115", "Validation images are among the training images", group="labels", stage="static")
def leak(case):
    """Files of the same content in both splits."""
    found = case.examined(duplicates.examine)
    if found is None or found.share < 0.005:
        return None
    return Verdict(
        0.9 if found.share > 0.05 else 0.6,
        (Observation("validation images that are training images", _two(found.share), "0"),),
        (f"{found.count} files have the same content, such as {found.example}",),
        Remedy(
            "Take them out of one split; `multigrid data` also finds near duplicates.", part="data", where="data.val"
        ),
    )


@rule(
    "MG120", "Few different images are trained on, again and again", group="labels", stage="static",
)  # fmt: skip
def repeated_images(case):
    """The list names the same files many times."""
    samples, different = case.examined(duplicates.repeats)
    share = different / max(1, samples)
    if not samples or share > AGAIN:
        return None
    return Verdict(
        0.85 if different < FEW else 0.6,
        (Observation("different images among the samples to train on", different, f"{samples}, as many as these"),),
        ("files were compared by their content; what is learned by heart for another reason has as many files",),
        Remedy("Look at how the list was made. To see images more often, train more epochs.", where="data.train"),
        hygiene=different >= FEW,
        consequences=("MG951",) if different < FEW else (),
    )


@rule("MG116", "Objects are too small for the network's input", group="labels", stage="static")
def too_small(case):
    """Sides of fewer pixels than the finest cells can tell apart."""
    found = case.examined(boxes.of_samples) or case.examined(boxes.of_training)
    if found is None or not len(found.short_sides):
        return None
    share, middle = float(np.mean(found.short_sides < TINY)), float(np.median(found.short_sides))
    if share < 0.2:
        return None
    return Verdict(
        0.6,
        (Observation(f"objects with a side below {TINY:g} pixels of the input", _two(share), "below 0.05"),
         Observation("median of the shorter side", _two(middle), f"above {2 * TINY:g} pixels")),
        ("measured after the letterbox, on boxes that are sound",),
        Remedy("Use a larger model.input_size, or cut the images into parts.", where="model.input_size"),
        hygiene=middle >= TINY,
    )  # fmt: skip


def _two(number: float) -> float:
    return round(float(number), 2)
