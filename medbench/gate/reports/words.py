"""The numbers of a comparison as people read them, for every kind of report."""

from __future__ import annotations

from medbench.gate.verdicts import Comparison, Verdict

METRICS = {
    "adaptation_s": "adaptation time",
    "prediction_s": "prediction time",
    "tensor_bytes": "tensor memory",
    "device_bytes": "device memory",
    "host_bytes": "host memory",
}
# What stands first in a report is what somebody must act on.
ORDER = (
    Verdict.REGRESSION,
    Verdict.CANNOT_TELL,
    Verdict.IMPROVEMENT,
    Verdict.NOT_COMPARED,
    Verdict.EQUIVALENT,
)


def metric(c: Comparison) -> str:
    """The name of what was compared."""
    return METRICS.get(c.metric, c.metric)


def value(c: Comparison, number: float | None) -> str:
    """One side's value with its unit."""
    if number is None:
        return "-"
    if c.kind == "accuracy":
        return f"{100 * number:.2f} %"
    if c.kind == "time":
        return f"{1000 * number:.3g} ms"
    return f"{number / 2**20:.2f} MiB"


def change(c: Comparison) -> str:
    """The change with its 95 % interval."""
    if c.effect is None or c.low is None or c.high is None:
        return "-"
    unit = " points" if c.kind == "accuracy" else " %"
    low, mid, high = (100 * v for v in (c.low, c.effect, c.high))
    digits = 2 if c.kind == "accuracy" else 1
    if c.low == c.high:
        return f"{mid:+.{digits}f}{unit}"
    return f"{mid:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"


def certainty(c: Comparison) -> str:
    """How sure the verdict is: an adjusted p-value, or why there is none."""
    if c.p_adjusted is None:
        return c.note if c.verdict is Verdict.NOT_COMPARED else "exact"
    if c.p_adjusted >= 1:
        return "p = 1"
    return f"p < {1e-4:g}" if c.p_adjusted < 1e-4 else f"p = {c.p_adjusted:.2g}"


def sentence(c: Comparison) -> str:
    """One comparison in a line."""
    text = (
        f"{metric(c)} {c.verdict.value}: {value(c, c.before)} -> {value(c, c.after)}, "
        f"{change(c)}, {certainty(c)}"
    )
    return f"{text} ({c.note})" if c.note and c.verdict is not Verdict.NOT_COMPARED else text


def explained(n_tests: int, family_error: float) -> str:
    """What the numbers of a report mean, in a sentence."""
    return (
        f"Intervals cover 95 %; p is one-sided and adjusted (Holm) for {n_tests} comparisons, so "
        f"that identical code fails in at most {100 * family_error:g} % of runs."
    )
