"""Two sides in, an outcome and an exit code out: pairs cells, compares, adjusts, and decides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from medbench.gate.chance import near_chance
from medbench.gate.compare import Pair, compare_all
from medbench.gate.measurements import CellResult, Side
from medbench.gate.ratios import in_turns, machine_change
from medbench.gate.thresholds import Thresholds
from medbench.gate.verdicts import CellTrouble, Comparison, Outcome, Verdict, holm

_REPRODUCED = 3
# The machine's own change is told from here on.
_TOLD_CHANGE = 0.03


def judge(before: Side, after: Side, thresholds: Thresholds) -> Outcome:
    """The verdict on `after`, with `before` as what it must not fall behind."""
    pairs, troubles = pair_cells(before, after)
    comparisons = decide(compare_all(pairs, thresholds), thresholds)
    reasons = _reasons(comparisons, troubles, thresholds)
    notices = _notices(before, after, pairs)
    compared = {c.title for c in comparisons if c.verdict is not Verdict.NOT_COMPARED}
    code = 1 if reasons else 0
    empty = _empty(before, after, compared)
    if empty:
        code, reasons = 3, [empty, *reasons]
    return Outcome(
        comparisons=tuple(comparisons),
        troubles=tuple(troubles),
        notices=tuple(notices),
        exit_code=code,
        headline=_headline(code, comparisons, reasons, len(compared)),
        reproduce=_reproduce(before, after, comparisons, troubles),
        before=_named(before),
        after=_named(after),
        n_cells=len(compared),
        family_error=thresholds.family_error,
        reasons=tuple(reasons),
    )


def pair_cells(before: Side, after: Side) -> tuple[list[Pair], list[CellTrouble]]:
    """Cells measured on both sides, and those that are missing, new, failed or another thing."""
    pairs: list[Pair] = []
    troubles: list[CellTrouble] = []
    for identity, old in before.cells.items():
        new = after.cells.get(identity)
        trouble = _trouble(old, new)
        if trouble:
            troubles.append(trouble)
        if new is not None and old.ok and new.ok and (trouble is None or not trouble.fatal):
            pairs.append(Pair(old, new, _apart(old, new)))
    for identity, new in after.cells.items():
        if identity not in before.cells:
            what = "the baseline has no such cell; '--update' takes it in"
            if not new.ok:
                what = f"{new.status}: {new.error}"
            troubles.append(CellTrouble(new.title, "new" if new.ok else "failed", what, not new.ok))
    for slug in after.unmeasured:
        text = "it was planned, and there is no record of it"
        troubles.append(CellTrouble(slug, "missing", text, True))
    return pairs, troubles


def _trouble(old: CellResult, new: CellResult | None) -> CellTrouble | None:
    title = old.title
    if new is None:
        text = "the baseline has it, and it was not measured now"
        return CellTrouble(title, "missing", text, True)
    if not new.ok:
        what = "failed" if old.ok else "failed before and now"
        return CellTrouble(title, what, f"{new.status}: {new.error}", True)
    if not old.ok:
        text = f"it failed before ({old.status}), so that there is nothing to compare with"
        return CellTrouble(title, "repaired", text, False)
    other = _other(old, new)
    if other:
        return CellTrouble(title, "other", other, True)
    return None


def _other(old: CellResult, new: CellResult) -> str:
    """Why two results of one name are not of one cell; empty when they are."""
    versions = [c.cell["protocol_version"] for c in (old, new)]
    if versions[0] != versions[1]:
        return (
            f"protocol {old.cell['protocol']} version {versions[0]} before and {versions[1]} now: "
            "other rules, other numbers; write a new baseline with --update"
        )
    if old.data != new.data:
        return "its data set has another digest than before; write a new baseline with --update"
    if old.cell.get("sources") != new.cell.get("sources"):
        return "it is trained on other sources than before; write a new baseline with --update"
    if old.cell.get("budget_images") != new.cell.get("budget_images"):
        return "its training has another budget than before; write a new baseline with --update"
    if len(old.scores) == len(new.scores) and old.episodes != new.episodes:
        return "its episodes are others than before; write a new baseline with --update"
    return ""


def _apart(old: CellResult, new: CellResult) -> str:
    """Why the costs of two measured cells are not comparable; empty when they are."""
    if old.hardware != new.hardware:
        return (
            f"other hardware: {old.hardware or 'unknown'} before, {new.hardware or 'unknown'} now"
        )
    return ""


def decide(comparisons: Sequence[Comparison], thresholds: Thresholds) -> list[Comparison]:
    """The comparisons with p-values adjusted for their number, and final verdicts.

    Changes for the worse and for the better are two families, each tested on its own side: a gate
    fails by the first alone, and the whole of its error rate is spent on that.
    """
    tested = [c for c in comparisons if c.p is not None]
    adjusted: dict[int, float] = {}
    for side in (1, -1):
        values = holm([_one_sided(c, side) for c in tested])
        for c, value in zip(tested, values, strict=True):
            if (c.effect or 0.0) * c.worse * side >= 0:
                adjusted[id(c)] = value
    found = []
    for c in comparisons:
        if id(c) not in adjusted:
            found.append(c)
            continue
        p = adjusted[id(c)]
        verdict = _verdict(c, p, thresholds.family_error)
        found.append(dataclasses.replace(c, p_adjusted=p, verdict=verdict))
    return found


def _one_sided(c: Comparison, side: int) -> float:
    """The p-value of a change for the worse (`side` 1) or for the better (-1)."""
    assert c.p is not None
    return c.p / 2 if (c.effect or 0.0) * c.worse * side > 0 else 1 - c.p / 2


def _verdict(c: Comparison, p: float, family_error: float) -> Verdict:
    effect, low, high = c.effect, c.low, c.high
    assert effect is not None
    assert low is not None
    assert high is not None
    if c.verdict is Verdict.EQUIVALENT:
        return c.verdict
    ratio = c.kind != "accuracy"
    # As large downwards as upwards on the scale of ratios: 5 % more, or less by 1 / 1.05.
    size = abs(math.log1p(effect)) if ratio else abs(effect)
    smallest = math.log1p(c.smallest) if ratio else c.smallest
    if p < family_error and size >= smallest and not c.too_small:
        return Verdict.REGRESSION if effect * c.worse > 0 else Verdict.IMPROVEMENT
    if max(abs(low), abs(high)) <= c.margin:
        return Verdict.EQUIVALENT
    return Verdict.CANNOT_TELL


def _reasons(
    comparisons: Sequence[Comparison], troubles: Sequence[CellTrouble], thresholds: Thresholds
) -> list[str]:
    """Why the gate fails; empty when it passes."""
    found = []
    bad = {"regression": Verdict.REGRESSION, "cannot_tell": Verdict.CANNOT_TELL}
    for word in thresholds.fail_on:
        count = sum(c.verdict is bad[word] for c in comparisons)
        if count:
            found.append(f"{_n(count, 'comparison')}: {bad[word].value}")
    for what in dict.fromkeys(t.what for t in troubles if t.fatal):
        names = [t.title for t in troubles if t.fatal and t.what == what]
        found.append(f"{_n(len(names), 'cell')} {_TOLD[what]}")
    for kind in thresholds.require:
        without = {c.title for c in comparisons} - {
            c.title for c in comparisons if c.kind == kind and c.verdict is not Verdict.NOT_COMPARED
        }
        if without:
            found.append(f"{kind} was required and not compared in {_n(len(without), 'cell')}")
    return found


_TOLD = {
    "missing": "missing",
    "failed": "failed",
    "failed before and now": "failed, before and now",
    "other": "no longer the same as in the baseline",
}


def _empty(before: Side, after: Side, compared: set[str]) -> str:
    if not any(c.ok for c in before.cells.values()):
        return f"the baseline {before.name} holds no measured cell"
    if not any(c.ok for c in after.cells.values()):
        return f"{after.name} holds no measured cell"
    return "" if compared else "no cell could be compared"


def _notices(before: Side, after: Side, pairs: Sequence[Pair]) -> list[str]:
    found = []
    if before.unmeasured:
        count = _n(len(before.unmeasured), "cell")
        found.append(f"{count} of {before.name} were planned and not measured.")
    apart = [p for p in pairs if p.apart]
    if apart:
        found.append(
            f"TIMES AND MEMORY WERE NOT COMPARED in {len(apart)} of {_n(len(pairs), 'cell')}: "
            f"{apart[0].apart}. 'medbench bench SUITE --against REF' runs both on one machine."
        )
    alike = [p for p in pairs if not p.apart]
    changes = [machine_change(p.before.rounds, p.after.rounds) for p in alike]
    known = [c for c in changes if c is not None]
    change = math.expm1(sum(known) / len(known)) if known else 0.0
    if abs(change) > _TOLD_CHANGE:
        word = "slower" if change > 0 else "faster"
        found.append(
            f"The machine itself was {abs(change):.0%} {word} now, by its calibration; times are "
            "corrected for it."
        )
    lengths = {(len(p.before.scores), len(p.after.scores)) for p in pairs}
    for old, new in sorted(lengths):
        if old != new:
            few = min(old, new)
            found.append(f"{old} episodes before and {new} now: the first {few} are compared.")
    if any(not in_turns(p.before.rounds, p.after.rounds) for p in alike):
        found.append(
            "The sides were not measured in turns: the noise between their times is the declared "
            "one (time.noise). 'medbench bench' runs both in turns and tells smaller changes."
        )
    at_chance = near_chance([p.before for p in pairs], before.metric)
    return [*found, at_chance] if at_chance else found


def _headline(
    code: int, comparisons: Sequence[Comparison], reasons: Sequence[str], n_cells: int
) -> str:
    if code == 0:
        said = sum(c.verdict is Verdict.CANNOT_TELL for c in comparisons)
        left = sum(c.verdict is Verdict.NOT_COMPARED for c in comparisons)
        tail = f", {said} cannot be told" if said else ""
        tail += f", {left} not compared" if left else ""
        return f"PASS: no regression in {_n(n_cells, 'cell')}{tail}."
    return f"{'FAIL' if code == 1 else 'NOTHING MEASURED'}: {'; '.join(reasons)}."


def _named(side: Side) -> str:
    commit = f", commit {side.commit[:12]}" if side.commit else ""
    when = f", measured {side.created[:19]}" if side.created else ""
    return f"{side.name} ({_n(len(side.cells), 'cell')}{commit}{when})"


def _reproduce(
    before: Side,
    after: Side,
    comparisons: Sequence[Comparison],
    troubles: Sequence[CellTrouble],
) -> str:
    """The commands that measure again what was found bad, and compare it."""
    bad = [c.title for c in comparisons if c.verdict is Verdict.REGRESSION]
    bad += [t.title for t in troubles if t.fatal and t.what.startswith("failed")]
    names = list(dict.fromkeys(bad))
    if not names:
        return ""
    only = "".join(f" --only '{name}'" for name in names[:_REPRODUCED])
    suite = after.suite or "SUITE"
    return f"medbench run {suite}{only} --out again && medbench gate {before.name} again"


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
