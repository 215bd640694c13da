"""Numbers of rows as tables print them."""

from __future__ import annotations

from medbench.leaderboard.model import Gain, Row
from medbench.leaderboard.names import RAW


def number(value: float | None, factor: float, digits: int | None = None) -> str:
    """A number times a factor, with three significant digits or so many decimals."""
    if value is None:
        return "-"
    scaled = value * factor
    if digits is None:
        # Times span a thousandfold.
        digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:,.{digits}f}"


def shares(metric: str) -> tuple[float, int]:
    """By what a metric is multiplied, and its decimals: most are shares, printed in per cent."""
    return (1.0, 3) if metric in RAW else (100.0, 1)


def score_of(row: Row, metric: str) -> str:
    """The mean with its interval, or why there is none."""
    if row.score is None:
        reasons = ", ".join(f"{n} {status}" for status, n in row.failures.items())
        return f"FAILED ({reasons})" if row.n_failed else "incomplete"
    s, (factor, digits) = row.score, shares(metric)
    mean, low, high = (f"{factor * v:.{digits}f}" for v in (s.mean, s.low, s.high))
    return f"{mean} [{low}, {high}]"


def range_of(row: Row, metric: str) -> str:
    """The difference to the best row of the table, with its interval."""
    v = row.verdict
    if v is None or v.difference is None or v.p is None:
        return "-"
    factor, digits = shares(metric)
    mean, low, high = (f"{factor * x:+.{digits}f}" for x in (v.difference, v.low or 0, v.high or 0))
    return f"{mean} [{low}, {high}]"


def gain_of(gain: Gain | None, metric: str) -> str:
    """What a row gains over one that adapts to nothing, with its interval."""
    if gain is None:
        return "-"
    factor, digits = shares(metric)
    mean, low, high = (f"{factor * x:+.{digits}f}" for x in (gain.mean, gain.low, gain.high))
    return f"{mean} [{low}, {high}]"


def ranks_of(row: Row) -> str:
    """The rank, or mean rank, and the ranks that the tests leave open."""
    if row.mean_rank is None:
        return "-"
    v = row.verdict
    if v is None or v.rank_low is None or v.rank_high is None:
        return f"{row.mean_rank:.1f}"
    return f"{row.mean_rank:.1f} [{v.rank_low:.1f}, {v.rank_high:.1f}]"


def times_of(row: Row, full: bool) -> str:
    """Median adaptation time in ms, with the 95th percentile, and the interquartile range."""
    more = f"; {number(row.adaptation_iqr_s, 1e3)}" if full else ""
    return f"{number(row.adaptation_s, 1e3)} ({number(row.adaptation_p95_s, 1e3)}{more})"
