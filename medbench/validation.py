"""How right the answers to a validation task are, in each task kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medbench.api import Detections, Task
from medbench.errors import ContractError, NonFinite
from medbench.metrics import detection, mean_of_classes

METRIC = {"classification": "accuracy", "segmentation": "dice", "detection": "ap50"}
"""What validation goes by."""


def judged(task: Task, answer: Any) -> tuple[float, int]:
    """The sum of what an answer scores and how many scores that is, of queries or of classes.

    Accuracy of scores ``(n_query, n_way)``; of masks' scores ``(n_query, n_way, H, W)`` the Dice of
    each class in each query that shows it, or is said to; AP50 of a list of `Detections`. Raises
    `ContractError` for another shape, `NonFinite`.
    """
    if task.query_boxes is not None:
        if not isinstance(answer, list) or not all(isinstance(d, Detections) for d in answer):
            raise ContractError(
                f"validate returned {type(answer).__name__}, and a list of Detections is needed."
            )
        ap50 = mean_of_classes(detection(answer, task.query_boxes, task.support.n_way)["ap50"])
        return (0.0, 0) if ap50 != ap50 else (ap50, 1)
    scores = answer.detach()
    if not torch.isfinite(scores).all():
        raise NonFinite("Validation scores are not finite.")
    if task.query_masks is not None:
        return _dice(scores, task.query_masks)
    hits = int((scores.argmax(dim=-1) == task.query_labels).sum())
    return hits, task.query_labels.numel()


def _dice(scores: Tensor, truth: Tensor) -> tuple[float, int]:
    if scores.shape != truth.shape:
        raise ContractError(
            f"validate returned {tuple(scores.shape)}, and {tuple(truth.shape)} is needed."
        )
    found = scores > 0
    both = (found & truth).sum(dim=(-2, -1)).double()
    either = found.sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1))
    some = either > 0  # two empty masks say nothing
    return float((2 * both[some] / either[some]).sum()), int(some.sum())
