"""What is wrong with the files beside a record: its scores, and its answers by patient or image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from medbench.errors import DataError
from medbench.leaderboard.names import MAIN, METRICS
from medbench.leaderboard.page_pictures import picture_fault
from medbench.records import GROUPS, PICTURE, Record, read_scores

# Metrics that an episode may lack: where a class has no query, or chance is already perfect.
# Masks where truth and prediction are empty in every query; boxes where there is none to find.
_MASKS = ("dice", "iou", "hd95", "nsd", "ap50", "ap50_95", "froc")
_MAY_LACK = ("auroc", "average_precision", "kappa", "balanced_accuracy", *_MASKS)
_SHARES = (
    "accuracy", "balanced_accuracy", "auroc", "f1", "ece", "average_precision",
    "dice", "iou", "nsd", "ap50", "ap50_95", "froc",
)  # fmt: skip
TOLERANCE = 1e-9


def file_faults(record: Record) -> Iterator[str]:
    """What is wrong with the files beside a measured record, each fault a sentence."""
    data = record.data
    wanted = f"{record.stem}.parquet"
    if data["scores_file"] != wanted:
        yield f"its scores file is called {data['scores_file']!r}, and must be {wanted!r}."
        return
    try:
        scores = record.scores()
    except DataError as error:
        yield str(error).removeprefix(f"{record.path}: ")
        return
    except Exception as error:  # pyarrow has many
        yield f"its scores file cannot be read: {' '.join(str(error).split())[:200]}"
        return
    n = data["ingredients"]["target"]["n_episodes"]
    if data["n_episodes"] != n:
        yield f"it says n_episodes {data['n_episodes']}, and was planned with {n}."
    if not set(MAIN) & set(scores):
        yield f"its scores file has no {' and no '.join(MAIN)}."
    if set(scores) != set(data["summary"]):
        yield f"its scores are of {sorted(scores)}, and its summary of {sorted(data['summary'])}."
        return
    for name, values in scores.items():
        if len(values) != n:
            yield f"its scores file has {name} of {len(values)} episodes, and {n} were planned."
            continue
        yield from _column(name, values, data["summary"][name])
    if data.get("groups"):
        yield from _groups(record)
    if data.get("picture"):
        yield from _picture(record)


def _groups(record: Record) -> Iterator[str]:
    found, wanted = record.data["groups"], f"{record.stem}{GROUPS}"
    if found["kind"] not in ("patient", "image"):
        yield f"its groups are of kind {found['kind']!r}, and must be patients or images."
    if found["file"] != wanted:
        yield f"its groups file is called {found['file']!r}, and must be {wanted!r}."
        return
    try:
        counts = read_scores(record.path.with_name(wanted), str(found["digest"]))
    except DataError as error:
        yield str(error).removeprefix(f"{record.path}: ")
        return
    except Exception as error:  # pyarrow has many
        yield f"its groups file cannot be read: {' '.join(str(error).split())[:200]}"
        return
    if set(counts) != {"group", "answers", "right"}:
        yield f"its groups file has {sorted(counts)}, and must have answers, group and right."
        return
    group, answers, right = (counts[name] for name in ("group", "answers", "right"))
    whole = all((c == np.rint(c)).all() for c in counts.values())
    if not len(group) or not whole or len(np.unique(group)) != len(group):
        yield "its groups are not whole numbers, none of them twice."
        return
    if not ((answers >= 1) & (right >= 0) & (right <= answers)).all():
        yield "its groups file has more right answers than answers, or fewer than none."
        return
    mean, told = float(right.sum() / answers.sum()), record.data["summary"].get("accuracy")
    if not isinstance(told, int | float) or abs(mean - told) > TOLERANCE:
        yield f"its groups have {mean:.12g} right answers of one, and its summary accuracy {told}."


def _picture(record: Record) -> Iterator[str]:
    found, wanted = record.data["picture"], f"{record.stem}{PICTURE}"
    if found["file"] != wanted:
        yield f"its picture is called {found['file']!r}, and must be {wanted!r}."
        return
    path = record.path.with_name(wanted)
    if not path.exists():
        return  # it may be kept back
    fault = picture_fault(path.read_bytes(), str(found["digest"]))
    if fault:
        yield f"{path.name}: {fault}"


def _column(name: str, values: np.ndarray[Any, np.dtype[np.float64]], told: Any) -> Iterator[str]:
    if name not in METRICS:
        yield f"its metric {name!r} is not one that medbench computes."
        return
    missing = np.flatnonzero(np.isnan(values))
    if len(missing) and name not in _MAY_LACK:
        yield f"its {name} is NaN in {len(missing)} episodes, the first of them {missing[0]}."
        return
    known = values[~np.isnan(values)]
    low, high = (0.0, 1.0) if name in _SHARES else (-1.0 if name == "kappa" else 0.0, math.inf)
    beyond = np.flatnonzero(~((values >= low) & (values <= high)) & ~np.isnan(values))
    if len(beyond):
        yield f"its {name} of episode {beyond[0]} is {values[beyond[0]]}."
        return
    if not len(known):
        if told is not None:
            yield f"its summary says {name} {told}, and no episode has one."
        return
    mean = float(known.mean())
    if not isinstance(told, int | float) or abs(mean - told) > TOLERANCE * max(1.0, abs(mean)):
        yield f"its summary says {name} {told}, and the mean of its episodes is {mean:.12g}."
