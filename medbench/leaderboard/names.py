"""How boards are written, and what their metrics are called; imports nothing."""

from __future__ import annotations

FORMATS = ("table", "md", "csv", "json", "latex", "html")
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
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95 (mm or px)",
    "nsd": "NSD",
    "ap50": "AP50",
    "ap50_95": "AP50:95",
    "froc": "FROC",
}
# What a table shows unless told: the first of these that its records have.
MAIN = ("accuracy", "dice", "ap50")
# Of these less is better.
LOWER = ("nll", "ece", "grade_error", "hd95")
# Printed as they are; the others are shares, printed in per cent.
RAW = ("nll", "grade_error", "kappa", "hd95")
INTERVALS = ("percentile", "bca", "groups")
# The smallest difference that would matter to a user, in the metric's unit.
MATTERS = 0.01
