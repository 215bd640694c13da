"""What predictions are in each task kind: how they are asked for, checked, compared and scored.

The only place where answers meet the truth of the queries, which no plugin sees.
"""

from __future__ import annotations

from typing import Any

from medbench.answers.base import Answers, ByGroup
from medbench.answers.boxes import BoxAnswers
from medbench.answers.classes import ClassAnswers, LabelAnswers
from medbench.answers.masks import MaskAnswers
from medbench.bench import Bench
from medbench.episodes import Block

__all__ = ["Answers", "ByGroup", "answers_for"]

_KINDS: dict[str, type[Answers[Any, Any]]] = {
    "classification": ClassAnswers,
    "multilabel": LabelAnswers,
    "segmentation": MaskAnswers,
    "detection": BoxAnswers,
}


def answers_for(bench: Bench, block: Block) -> Answers[Any, Any]:
    """The answers of a cell's task kind, for the episodes of `block`."""
    return _KINDS[bench.target.protocol.task_kind](bench, block)
