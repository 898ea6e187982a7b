"""Objects and detections as COCO dictionaries, by hand and at random."""

import numpy as np


def truth_of(boxes, names=("red", "green"), images=(1, 2)):
    """COCO ground truth of (image id, class index, corners[, crowd]) rows."""
    annotations = [
        {
            "id": number, "image_id": image_id, "category_id": label + 1, "iscrowd": int(any(crowd)),
            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
        }
        for number, (image_id, label, (x1, y1, x2, y2), *crowd) in enumerate(boxes, start=11)
    ]  # fmt: skip
    return {
        "images": [
            {"id": image_id, "file_name": f"{image_id}.jpg", "width": 300, "height": 200} for image_id in images
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, start=1)],
        "annotations": annotations,
    }


def results_of(rows):
    """COCO results of (image id, class index, score, corners) rows."""
    return [
        {"image_id": image_id, "category_id": label + 1, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for image_id, label, score, (x1, y1, x2, y2) in rows
    ]


def drawn(seed=5, images=40, names=("red", "green", "blue"), crowds=0.0, decimals=1, strays=0):
    """Random objects of up to eight an image, and detections near them; (ground truth, results).

    Args:
        seed: of all numbers.
        images: how many.
        names: one a class.
        crowds: share of the objects that are crowds.
        decimals: of the scores; with 1, many are equal.
        strays: detections an image that lie anywhere.
    """
    random = np.random.default_rng(seed)
    truths, found = [], []
    for image_id in range(7, 7 + images):
        for _ in range(random.integers(0, 9)):
            corner, sides = random.uniform(0, (200, 130)), random.uniform(8, 70, 2)
            box, label = np.concatenate([corner, corner + sides]), int(random.integers(len(names)))
            truths.append((image_id, label, box, random.random() < crowds))
            for _ in range(random.integers(0, 4)):
                moved = np.sort((box + random.normal(0, 0.13, 4) * np.tile(sides, 2)).reshape(2, 2), axis=0).ravel()
                guess = label if random.random() < 0.8 else int(random.integers(len(names)))
                found.append((image_id, guess, round(float(random.random()), decimals), moved))
        for _ in range(strays):
            corner = random.uniform(0, (200, 130))
            box = np.concatenate([corner, corner + random.uniform(8, 70, 2)])
            found.append((image_id, int(random.integers(len(names))), round(float(random.random()), decimals), box))
    return truth_of(truths, names, range(7, 7 + images)), results_of(found)
