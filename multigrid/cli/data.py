"""`multigrid data`: what is in label files, and what is wrong there."""

from __future__ import annotations

import collections
import os
import pathlib

from multigrid import report
from multigrid.cli.options import FAILED, OK, add_parser, emit, load_config
from multigrid.errors import InputError

SPLITS = ("train", "val", "test")
SHOWN = 3  # findings of a kind that are named on the screen; data.json has all of them
MANY_IMAGES = 2000  # fewer are looked at in seconds: no line in a log
MANY_PAIRS = 300_000  # likewise; these take some ten seconds
CONSEQUENCES = {
    "unreadable image": "training stops",
    "no label file": "noted: an image without objects",
    "dropped box": "left out of training",
    "crowd": "left out, as COCO does",
    "clipped": "cut at the border",
    "size-mismatch": "the image's own size counts",
    "box twice": "noted",
    "image named twice": "noted",
    "same file": "noted",
    "near-duplicate": "noted: validation on images that were trained on tells too much",
    "class without boxes": "noted",
}


def add_verb(verbs) -> None:
    """Adds the options of `data`."""
    parser = add_parser(verbs, "data", run_data, "multigrid data train.txt val.txt --classes classes.txt")
    text = "label files or folders, in any layout; settings over the config's, such as data.val=my/val.txt"
    parser.add_argument("overrides", nargs="*", metavar="FILE | key=value", help=text)
    parser.add_argument("--config", help="YAML file: its classes, input size and, without FILEs, its splits")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line; needed where labels are numbers")
    parser.add_argument("--output-dir", default="data-report", help="where data.json and pictures go (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images drawn for the contact sheet (%(default)s)")
    parser.add_argument(
        "--no-near-duplicates",
        action="store_true",
        help="do not compare the images of different splits, which takes a second for some 30 000 pairs",
    )


def run_data(options) -> int:
    """Shows what is in label files and what is wrong there; exit code 1 where an image or a box cannot be used."""
    from multigrid.data.label_contents import files_behind

    files, options.overrides = _parted(options.overrides)
    if not files and options.config is None:
        options.parser.error("expected label files or --config")
    if options.overrides and options.config is None:
        raise InputError(f"--config: expected a YAML file for {options.overrides[0]}, received none")
    config = options.config and load_config(options)
    report.check_folder(options.output_dir, "--output-dir")
    sources = _sources_of_files(files) if files else _sources_of_config(config)
    class_names = _class_names(options, config, sources)
    input_size = config.model.input_size if config else None
    report.check_apart(options.output_dir, (file for _, file, _ in sources), "--output-dir")
    compares = not options.no_near_duplicates
    splits = [_read(source, class_names, compares and len(sources) > 1) for source in sources]
    for split in splits:
        images = [sample.path for sample in split.samples]
        report.check_apart(options.output_dir, [*images, *files_behind(split.source, images)], "--output-dir")
    found = _findings(splits, class_names, input_size, _near_duplicates(splits) if compares else None)
    _show(splits, found, input_size)
    from multigrid.cli.data_pictures import draw_pictures

    folder = pathlib.Path(options.output_dir)
    report.write_json(folder / "data.json", found)
    pictures = draw_pictures(splits, found, class_names, folder, options.seed)
    report.say(f"written to {folder}: {', '.join(['data.json', *(path.name for path in pictures)])}")
    emit(options, found | {"output_dir": folder, "pictures": pictures})
    return FAILED if found["unreadable"] or any(split.dropped for split in splits) else OK


def _parted(words) -> tuple[list[str], list[str]]:
    """Label files, and settings over the config's."""
    settings = [word for word in words if "=" in word and not os.path.exists(word)]
    return [word for word in words if word not in settings], settings


def _sources_of_files(files) -> list[tuple[str, str, str]]:
    """(name, label file, key of a data.yaml) of every split of the files; a name is short where it can be."""
    from multigrid.data.label_contents import splits_in

    times = collections.Counter(pathlib.Path(file).resolve() for file in files)
    twice = next((file for file in files if times[pathlib.Path(file).resolve()] > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: expected different label files, received this one twice")
    found = []
    for file in files:
        path = pathlib.Path(file)
        keys = splits_in(file) if path.suffix.lower() in (".yaml", ".yml") else [None]
        found += [(key or path.stem or file, file, key) for key in keys]
    names = collections.Counter(name for name, _, _ in found)
    return [
        (name if names[name] == 1 else f"{file} {key}" if key else file, file, key or "train")
        for name, file, key in found
    ]


def _sources_of_config(config) -> list[tuple[str, str, str]]:
    """(name, label file, key of a data.yaml) of the splits of a config; scenes are drawn unless they are there."""
    from multigrid.config import SHAPES
    from multigrid.data import shapes

    found = {name: getattr(config.data, name) for name in SPLITS if getattr(config.data, name) is not None}
    if not found:
        raise InputError("data.train: expected labels, received null, as for data.val and data.test")
    if SHAPES in found.values():
        drawing = config.data.shapes
        counts = {name: getattr(drawing, name) for name in SPLITS}
        drawn = shapes.draw_data_set(drawing.folder, counts=counts, seed=drawing.seed, format="yolo3")
        found = {name: drawn[name] if source == SHAPES else source for name, source in found.items()}
    return [(name, str(source), name) for name, source in found.items()]


def _class_names(options, config, sources) -> tuple[str, ...]:
    from multigrid.data.label_contents import names_in
    from multigrid.data.samples import read_class_names

    path = options.classes or (config and config.data.classes)
    return read_class_names(path) if path else names_in([file for _, file, _ in sources])


def _read(source, class_names, with_thumbnails: bool):
    from multigrid.data.inspection import read_split

    name, file, key = source
    with report.counting(f"{name}: looking at images", MANY_IMAGES) as progress:
        return read_split(file, class_names, name=name, key=key, with_thumbnails=with_thumbnails, progress=progress)


def _near_duplicates(splits) -> list[dict]:
    """The near-duplicates; where it takes long, their comparison is announced with the way to leave it out."""
    from multigrid.data.inspection import near_duplicates_between, pairs_between

    hint = " (--no-near-duplicates leaves it out)" if pairs_between(splits) >= MANY_PAIRS else ""
    with report.counting(f"comparing pairs of images{hint}", MANY_PAIRS) as progress:
        return near_duplicates_between(splits, progress)


def _findings(splits, class_names, input_size, pairs: list[dict] | None) -> dict:
    """All that data.json says; `pairs` are the near-duplicates, None where nothing was compared."""
    from multigrid.data import inspection

    return {
        "classes": class_names,
        "input_size": input_size,
        "splits": {split.name: inspection.summarize(split, class_names, input_size) for split in splits},
        "missing_classes": inspection.missing_classes(splits, class_names),
        "unreadable": [
            {"split": split.name, "place": place, "detail": detail}
            for split in splits
            for place, detail in split.unreadable
        ],
        "without_label_file": [
            {"split": split.name, "path": path, "label_file": label_file}
            for split in splits
            for path, label_file in split.without_label_file
        ],
        "defects": [
            {"split": split.name, "path": path, **vars(defect)}
            for split in splits
            for defect, path in zip(split.defects, split.defect_paths, strict=True)
        ],
        "repeated_boxes": [found for split in splits for found in inspection.repeated_boxes(split, class_names)],
        "named_twice": inspection.images_named_twice(splits),
        "same_files": inspection.same_files(splits),
        "near_duplicates": pairs,
    }


def _show(splits, found, input_size) -> None:
    _show_splits(found)
    _show_classes(found)
    _show_sizes(found, input_size)
    lines = _lines(found)
    if not lines:
        report.say("nothing is wrong")
        return
    rows = [(kind, len(said), CONSEQUENCES.get(kind, CONSEQUENCES["dropped box"])) for kind, said in lines.items()]
    report.table("Findings", ("finding", "count", "what follows"), rows)
    for kind, said in lines.items():
        for line in said[:SHOWN]:
            report.say(f"{kind}: {line}")
        if len(said) > SHOWN:
            report.say(f"{kind}: ... {len(said) - SHOWN} more in data.json")


def _show_splits(found) -> None:
    keys = ("images", "images_without_boxes", "boxes", "median_boxes", "max_boxes")
    rows = []
    for name, one in found["splits"].items():
        sizes = [f"{size} ({count})" for size, count in one["image_sizes"].items()]
        rest = [f"{len(sizes) - SHOWN} more"] if len(sizes) > SHOWN else []
        rows.append((name, *(one[key] for key in keys), ", ".join(sizes[:SHOWN] + rest)))
    columns = ("split", "images", "without boxes", "boxes", "an image: median", "most", "width x height of images")
    report.table("Splits", columns, rows)


def _show_classes(found) -> None:
    columns, rows = ["class"], [[name] for name in found["classes"]]
    for split, one in found["splits"].items():
        columns += [split, "%", "median px"]
        for row in rows:
            figures = one["classes"][row[0]]
            row += [figures["boxes"], 100 * figures["share"], figures["median_box"]]
    report.table("Classes: boxes, share of the split, side of a square as large as the median box", columns, rows)


def _show_sizes(found, input_size) -> None:
    rows = []
    for name, one in found["splits"].items():
        rows.append((name, "image", *one["box_sizes"].values(), one["median_box"]))
        if input_size:
            at_input = one["box_sizes_at_input"]
            rows.append((name, f"input, {input_size[1]} x {input_size[0]}", *at_input.values(), None))
    columns = ("split", "pixels of the", "small, < 32²", "medium", "large, > 96²", "median side")
    report.table("Sizes of boxes", columns, rows)


def _lines(found) -> dict[str, list[str]]:
    """What is wrong, by kind: a line each."""
    lines = collections.defaultdict(list)
    for one in found["unreadable"]:
        lines["unreadable image"].append(f"{one['place']}: {one['detail']}")
    for one in found["without_label_file"]:
        lines["no label file"].append(f"{_short(one['path'])} ({one['split']}): expected {_short(one['label_file'])}")
    for one in found["defects"]:
        numbers = ",".join(f"{value:.6g}" for value in one["box"])
        lines[one["kind"]].append(f"{one['place']}: {numbers}{', ' if numbers else ''}{one['detail']}")
    for one in found["repeated_boxes"]:
        first, second = (",".join(f"{value:.6g}" for value in box) for box in one["boxes"])
        lines["box twice"].append(f"{one['place']}: {one['class']} {first} and {second}, IoU {one['iou']:.3f}")
    for one in found["named_twice"]:
        lines["image named twice"].append(f"{_short(one['path'])}: {'; '.join(one['places'])}")
    for kind, key in (("same file", "same_files"), ("near-duplicate", "near_duplicates")):
        for one in found[key] or ():
            pair = zip(one["splits"], one["paths"], strict=True)
            files = " and ".join(f"{_short(path)} ({split})" for split, path in pair)
            share = f", {one['overlap']:.0%} in common" if "overlap" in one else ""
            lines[kind].append(files + share)
    for split, names in found["missing_classes"].items():
        if names:
            lines["class without boxes"].append(f"{split}: {', '.join(names)}")
    return dict(lines)


def _short(path: str) -> str:
    """The path from here where it lies below, else as it is."""
    here = os.path.relpath(path)
    return path if here.startswith(os.pardir) else here
