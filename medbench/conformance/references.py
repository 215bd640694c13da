"""The check of algorithms that adapt to nothing, over which tables show what others gain."""

from __future__ import annotations

from dataclasses import replace

from medbench.conformance.algorithms import ALGORITHMS
from medbench.conformance.check import Broken, DoesNotApply
from medbench.conformance.trained import Bench


@ALGORITHMS.add(
    "support-unused",
    reason="Tables show what others gain over a method that declares uses_support=False: it must "
    "be what a network does without adapting.",
    hint="Answer from what was learned and support.classes alone, or leave uses_support at True.",
    needs=("deterministic",),
    exact=True,
)
def _support_unused(bench: Bench) -> None:
    if bench.traits.uses_support:
        raise DoesNotApply("it learns from the support set")
    one, other = bench.form.episode(), bench.form.episode(1)
    # Another task's images and labels; all else stays.
    swapped = replace(other, query=one.query, asked=one.asked, seed=one.seed, classes=one.classes)
    ready = bench.prepared()
    support, query = bench.given(one, ready[1])
    foreign, _ = bench.given(swapped, ready[1])
    answers = [
        bench.answer(bench.adapted(ready[0], given), query, given) for given in (support, foreign)
    ]
    if not bench.form.equal(*answers):
        raise Broken(
            "it declares uses_support=False, and another support set changes its scores by "
            f"{bench.form.gap(answers[1], answers[0]):.2g} of their range."
        )
