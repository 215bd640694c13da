"""How boards are written, and what their metrics are called; imports nothing."""

from __future__ import annotations

FORMATS = ("table", "md", "csv", "json")
# The metrics of `medbench.metrics`, in its order, as tables print them.
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "auroc": "AUROC",
    "f1": "macro F1",
    "nll": "NLL",
    "ece": "ECE",
    "average_precision": "mean AP",
    "grade_error": "grade error",
    "kappa": "weighted kappa",
}
