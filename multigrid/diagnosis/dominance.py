"""Which component of the loss rules the network: by its gradient on the shared weights, not by its value.

A component may be large and pull at nothing, or small and own every feature. What counts is the gradient that it, times
its coefficient, has on the weights that all components share: backbone and neck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from multigrid.config import LOSS_PARTS, OPTIONAL_LOSS_PARTS
from multigrid.errors import InputError
from multigrid.models.blocks import block_of, head_blocks
from multigrid.training.bundle import Step
from multigrid.training.faults import gradients_of

SCALES = LOSS_PARTS | OPTIONAL_LOSS_PARTS


def gradient_shares(detector, images, truth, wanted: Mapping[str, float] | None = None) -> list[dict]:
    """What each component of the loss pulls with at the shared weights.

    Args:
        detector: compiled, with a criterion that Keras can serialize; it stays as it is, for a copy is asked.
        images: uint8 [B, H, W, 3].
        truth: {"boxes": [B, M, 4] corners in input pixels, "classes": [B, M], -1 for padding}.
        wanted: component to the share of the pull that it should have, in any unit; those not named have what is equal
            among all. None wants equal shares.

    Returns:
        A row a component: {"component", "scale", "value" of the scale, "norm" of its gradient with that scale, "share"
        of the sum of norms, "agreement" its cosine with the gradient of the others together, "suggested" scale that
        would give it the wanted share while the sum of norms stays}. A figure is None where a norm is 0.

    Raises:
        InputError: a wanted component that there is not, or a share that is not above 0.
    """
    copy = Step.of(detector, images, truth, epoch=0, step=0).detector()
    parts = dict(copy.criterion.parts)
    shares = _wanted(wanted, parts)
    pulls = {name: _pull(copy, images, truth, name, parts) for name in parts}
    whole, total = sum(pulls.values()), sum(float(np.linalg.norm(pull)) for pull in pulls.values())
    rows = []
    for name, pull in pulls.items():
        norm, value = float(np.linalg.norm(pull)), getattr(copy.criterion, parts[name])
        rows.append(
            {
                "component": name,
                "scale": parts[name],
                "value": value,
                "norm": norm,
                "share": norm / total if total else None,
                "agreement": _cosine(pull, whole - pull),
                "suggested": value * shares[name] * total / norm if norm else None,
            }
        )
    return rows


def _wanted(wanted, parts) -> dict[str, float]:
    wanted = dict(wanted or {})
    unknown = [name for name in wanted if name not in parts]
    if unknown or any(not share > 0 for share in wanted.values()):
        raise InputError(f"balance: expected shares above 0 of {', '.join(parts)}, received {wanted}")
    shares = {name: float(wanted.get(name, 1.0)) for name in parts}
    return {name: share / sum(shares.values()) for name, share in shares.items()}


def _pull(detector, images, truth, name: str, parts: dict) -> np.ndarray:
    """The gradient of one component, times its coefficient, on all shared weights, as one vector."""
    criterion, kept = detector.criterion, {scale: getattr(detector.criterion, scale) for scale in parts.values()}
    try:
        for part, scale in parts.items():
            # an optional part with a scale of 0 would be no part at all
            setattr(criterion, scale, kept[scale] if part == name else 0.0)
        found = gradients_of(detector, images, truth)
    finally:
        for scale, value in kept.items():
            setattr(criterion, scale, value)
    heads = head_blocks(list({block_of(path) for path in found}))
    shared = [np.ravel(gradient) for path, gradient in found.items() if block_of(path) not in heads]
    return np.concatenate(shared).astype("float64")


def _cosine(one: np.ndarray, other: np.ndarray) -> float | None:
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms and math.isfinite(norms) else None
