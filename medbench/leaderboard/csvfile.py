"""A board as CSV: a line for every row of every table; what is not known is empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from medbench.leaderboard.gains import gain_over, references_of
from medbench.leaderboard.model import Board, Row, Table, Verdict


def csv_text(board: Board) -> str:
    """The lines of all tables, with a header."""
    out = io.StringIO()
    references = references_of(board.tables)
    lines = (
        _line(table, row, board.method) | _gains(row, references)
        for table in board.tables
        for row in table.rows
    )
    writer = None
    for line in lines:
        if writer is None:
            writer = csv.DictWriter(out, list(line), lineterminator="\n")
            writer.writeheader()
        writer.writerow(line)
    return out.getvalue()


def _gains(row: Row, references: Sequence[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in references:
        gain = gain_over(row, name)
        for part, field in (("", "mean"), ("_low", "low"), ("_high", "high"), ("_p", "p")):
            found[f"gain_over_{name}{part}"] = getattr(gain, field) if gain else None
    return found


def _line(table: Table, row: Row, method: str) -> dict[str, Any]:
    score, verdict = row.score, row.verdict or Verdict("")
    return {
        "protocol": table.protocol,
        "target": table.target or "overall",
        "rule": table.rule,
        "way": table.way,
        "shot": table.shot,
        "algorithm": row.algorithm,
        "backbone": row.backbone,
        "transductive": row.transductive,
        "weights": " ".join(row.weights),
        "metric": table.metric,
        "mean": score.mean if score else None,
        "low": score.low if score else None,
        "high": score.high if score else None,
        "interval": method if score else None,
        "interval_covers": score.covers if score else None,
        "n_seeds": score.n_seeds if score else None,
        "n_episodes": row.n_episodes,
        "tied": verdict.group,
        "mean_rank": row.mean_rank,
        "rank_low": verdict.rank_low,
        "rank_high": verdict.rank_high,
        "p_best": verdict.p_best,
        "difference_to_best": verdict.difference,
        "difference_low": verdict.low,
        "difference_high": verdict.high,
        "p_to_best": verdict.p,
        "n_pairs": table.n_pairs,
        "n_ok": row.n_ok,
        "n_failed": row.n_failed,
        "failures": " ".join(f"{k}:{v}" for k, v in row.failures.items()),
        "adaptation_s": row.adaptation_s,
        "adaptation_p95_s": row.adaptation_p95_s,
        "adaptation_iqr_s": row.adaptation_iqr_s,
        "prediction_s": row.prediction_s,
        "feature_s": row.feature_s,
        "peak_host_bytes": row.peak_host_bytes,
        "peak_host_added_bytes": row.peak_host_added_bytes,
        "peak_device_bytes": row.peak_device_bytes,
        "peak_device_reserved_bytes": row.peak_device_reserved_bytes,
        "energy_j": row.energy_j,
        "parameters_adapted": row.parameters_adapted,
        "model_bytes": row.model_bytes,
        "train_s": row.train_s,
        "train_images": row.train_images,
        "pareto_time": row.pareto_time,
        "pareto_memory": row.pareto_memory,
        "hardware": table.hardware,
        "sources": " ".join(table.sources),
        "overlap": "; ".join(row.overlap),
    }
