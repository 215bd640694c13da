"""Compares one cell with itself: accuracy on shared episodes, times, and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medbench.gate.measurements import STAGES, CellResult
from medbench.gate.moderated import Prior, fit_prior
from medbench.gate.ratios import Sample, host_sample, time_sample
from medbench.gate.thresholds import Accuracy, Kind, Memory, Thresholds
from medbench.gate.verdicts import Comparison, Verdict

# Memory that is counted and not sampled: the same code gives the same number.
_EXACT = (("device_bytes", "peak_device_bytes"), ("tensor_bytes", "peak_tensor_bytes"))
_LEVEL = 0.95


@dataclass(frozen=True)
class Pair:
    """A cell that was measured on both sides, and why its costs may not be compared."""

    before: CellResult
    after: CellResult
    apart: str = ""

    @property
    def title(self) -> str:
        """The cell's name."""
        return self.after.title


@dataclass(frozen=True)
class _Waiting:
    """A ratio whose noise other cells help to tell."""

    pair: Pair
    metric: str
    kind: Kind
    sample: Sample
    smallest: float
    margin: float
    least: float
    declared: float


def compare_all(pairs: Sequence[Pair], thresholds: Thresholds) -> list[Comparison]:
    """Every metric of every pair, before the verdicts are adjusted for their number."""
    found: list[Comparison] = []
    waiting: list[_Waiting] = []
    for pair in pairs:
        accuracy, time, memory = thresholds.of(pair.title)
        found.append(compare_accuracy(pair, accuracy))
        if pair.apart:
            for kind in ("time", "memory"):
                found.append(not_compared(pair, kind, kind, pair.apart))  # noqa: PERF401
            continue
        for name in STAGES:
            sample = time_sample(pair.before.rounds, pair.after.rounds, name, time)
            if sample is None:
                found.append(not_compared(pair, name, "time", "a side did not measure it"))
                continue
            declared = 2 * time.noise**2
            waiting.append(
                _Waiting(
                    pair,
                    name,
                    "time",
                    sample,
                    time.smallest,
                    time.margin,
                    time.smallest_s,
                    declared,
                )
            )
        found += _exact_memory(pair, memory)
        host = host_sample(pair.before.rounds, pair.after.rounds, memory)
        if host is not None:
            waiting.append(
                _Waiting(
                    pair,
                    "host_bytes",
                    "memory",
                    host,
                    memory.smallest,
                    memory.margin,
                    memory.smallest_host_bytes,
                    2 * memory.noise**2,
                )
            )
    priors = {kind: _prior([w for w in waiting if w.kind == kind]) for kind in ("time", "memory")}
    found += [_ratio(w, priors[w.kind]) for w in waiting]
    order = {pair.title: i for i, pair in enumerate(pairs)}
    return sorted(found, key=lambda c: order[c.title])


def _prior(waiting: Sequence[_Waiting]) -> Prior:
    declared = float(np.mean([w.declared for w in waiting])) if waiting else 1.0
    return fit_prior([w.sample.variance for w in waiting], [w.sample.df for w in waiting], declared)


def compare_accuracy(pair: Pair, rules: Accuracy) -> Comparison:
    """The paired difference of scores over the episodes that both sides have."""
    n = min(len(pair.before.scores), len(pair.after.scores))
    before, after = np.array(pair.before.scores[:n]), np.array(pair.after.scores[:n])
    there = np.isfinite(before) & np.isfinite(after)
    gone = int((np.isfinite(before) & ~np.isfinite(after)).sum())
    before, after = before[there], after[there]
    if len(before) < 2:
        return not_compared(pair, rules.metric, "accuracy", f"{len(before)} shared episodes")
    difference = after - before
    mean = float(difference.mean())
    noise = rules.training_noise if pair.after.training and _elsewhere(pair) else 0.0
    within = float(difference.var(ddof=1)) / len(difference)
    fixed = 2 * noise**2 + _wobble(pair.before) + _wobble(pair.after)
    notes = []
    if gone:
        notes.append(f"{gone} episodes lost their score")
    if noise:
        notes.append("another machine or torch: noise of another training allowed for")
    error = math.sqrt(within + fixed)
    verdict, p = Verdict.CANNOT_TELL, 1.0
    low = high = mean
    if not difference.any():
        verdict = Verdict.EQUIVALENT
        notes.append("identical on every episode")
    elif abs(mean) <= rules.tolerance:
        verdict = Verdict.EQUIVALENT
        notes.append(f"within the declared tolerance of {rules.tolerance:g}")
    elif error == 0:
        p = 0.0
    else:
        df = (len(difference) - 1) * ((within + fixed) / within) ** 2 if within else math.inf
        half = float(stats.t.ppf((1 + _LEVEL) / 2, df)) * error
        low, high = mean - half, mean + half
        p = 2 * float(stats.t.sf(abs(mean) / error, df))
    return Comparison(
        pair.title,
        rules.metric,
        "accuracy",
        float(before.mean()),
        float(after.mean()),
        mean,
        low,
        high,
        p,
        verdict,
        "; ".join(notes),
        n=len(difference),
        margin=rules.margin,
        smallest=rules.smallest,
    )


def _wobble(cell: CellResult) -> float:
    return cell.wobble**2 / max(1, len(cell.rounds))


def _elsewhere(pair: Pair) -> bool:
    same = (pair.before.hardware, pair.before.torch) == (pair.after.hardware, pair.after.torch)
    return not same


def not_compared(pair: Pair, metric: str, kind: Kind, why: str) -> Comparison:
    """A metric that the sides do not share, with the reason."""
    blank = (None,) * 6
    return Comparison(pair.title, metric, kind, *blank, Verdict.NOT_COMPARED, why)


def _exact_memory(pair: Pair, rules: Memory) -> list[Comparison]:
    for metric, name in _EXACT:
        sides = [_counted(cell, name) for cell in (pair.before, pair.after)]
        if not all(sides):
            continue
        # Rounds differ where code depends on chance: the highest is what must fit.
        before, after = (max(values) for values in sides)
        effect = after / before - 1
        large = abs(after - before) >= rules.smallest_bytes
        verdict = Verdict.EQUIVALENT
        if large and after >= before * (1 + rules.smallest):
            verdict = Verdict.REGRESSION
        elif large and before >= after * (1 + rules.smallest):
            verdict = Verdict.IMPROVEMENT
        elif large and abs(effect) > rules.margin:
            verdict = Verdict.CANNOT_TELL
        note = "counted" if len({*sides[0]}) == len({*sides[1]}) == 1 else "rounds differ"
        return [
            Comparison(
                pair.title,
                metric,
                "memory",
                float(before),
                float(after),
                effect,
                effect,
                effect,
                None,
                verdict,
                note,
                n=min(len(s) for s in sides),
                margin=rules.margin,
                smallest=rules.smallest,
            )
        ]
    return []


def _counted(cell: CellResult, name: str) -> list[int]:
    return [r.memory[name] for r in cell.rounds if r.memory.get(name)]


def _ratio(w: _Waiting, prior: Prior) -> Comparison:
    s = w.sample
    low, high, p = s.interval(prior, _LEVEL)
    change = abs(math.expm1(s.mean)) * s.before
    reach = max(abs(math.expm1(low)), abs(math.expm1(high))) * s.before
    return Comparison(
        w.pair.title,
        w.metric,
        w.kind,
        s.before,
        s.after,
        math.expm1(s.mean),
        math.expm1(low),
        math.expm1(high),
        p,
        # Whatever the ratio, the whole interval is too small to matter.
        Verdict.EQUIVALENT if reach < w.least else Verdict.CANNOT_TELL,
        s.note,
        n=s.n,
        margin=w.margin,
        smallest=w.smallest,
        too_small=change < w.least,
    )


def units(comparisons: Sequence[Comparison]) -> Mapping[str, int]:
    """How many comparisons of each verdict there are."""
    found: dict[str, int] = {}
    for comparison in comparisons:
        found[comparison.verdict.value] = found.get(comparison.verdict.value, 0) + 1
    return found
