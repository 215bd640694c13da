"""Checks of algorithms that compare scores with scores: what these may and may not depend on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medbench.conformance import fresh, material
from medbench.conformance.algorithms import ALGORITHMS
from medbench.conformance.check import Broken, DoesNotApply
from medbench.conformance.forms.base import above
from medbench.conformance.guards import changed_states, random_states, seeded
from medbench.conformance.trained import LONGER, SHORT, Bench

# Shares of the range of scores: what rounding may do, in one order of sums and in another.
_ROUNDING = 1e-4
_REORDERED = 1e-3


@ALGORITHMS.add(
    "deterministic",
    reason="A record must be reproducible from its seeds.",
    hint="Draw from support.generator(), never from the clock, os.urandom or the order of a set; "
    "if your method cannot (a library without seeds), declare the trait deterministic=False.",
    needs=("finite",),
    exact=True,
)
def _deterministic(bench: Bench) -> None:
    one = bench.form.episode()
    ready = bench.prepared()
    first, again = bench.scores(one, ready), bench.scores(one, bench.prepared())
    if not bench.form.equal(first, again):
        raise Broken(
            "the same episode with the same seeds gave other scores to a new instance (by "
            f"{bench.form.gap(again, first):.2g} of their range)."
        )


@ALGORITHMS.add(
    "random-state",
    reason="Random states that all share would make scores depend on what ran before.",
    hint="Use support.generator(i): torch.rand(..., generator=support.generator()). Modules with "
    "random initialisation need torch.random.fork_rng around a seed from it.",
    needs=("deterministic",),
    exact=True,
)
def _random_state(bench: Bench) -> None:
    one = bench.form.episode()
    algorithm, backbone = bench.prepared()
    support, query = bench.given(one, backbone)
    with seeded():
        before = random_states()
        predictor = bench.adapted(algorithm, support)
        predictor.predict(query)
        moved = changed_states(before)
    if moved:
        raise Broken(f"adapt or predict drew from the global generator of {' and '.join(moved)}.")
    found = bench.scores(one, global_seed=1)
    if not bench.form.equal(found, bench.scores(one, global_seed=0)):
        raise Broken("scores change with the seed of the global generators.")


@ALGORITHMS.add(
    "same-seed",
    reason="A meta-training and all that follows must be reproducible from one seed.",
    hint="Draw in meta_train and prepare from torch's generator, which the core seeds for every "
    "step, or from run.seed; give libraries a seed of their own.",
    needs=("deterministic",),
    exact=True,
)
def _same_seed(bench: Bench) -> None:
    one = bench.form.episode()
    first = bench.scores(one)
    again = bench.scores(one, bench.prepared(learned=bench.train(SHORT)))
    if bench.form.gap(again, first) > 1e-6:
        raise Broken(
            "trained and prepared twice from the same seed, it gives other scores (by "
            f"{bench.form.gap(again, first):.2g} of their range)."
        )


@ALGORITHMS.add(
    "predict-twice",
    reason="Predicting must not use up or change what adapting learned.",
    hint="Keep the predictor as adapt made it: no training steps, counters or generators inside "
    "predict that go on from call to call.",
    needs=("deterministic",),
    exact=True,
)
def _predict_twice(bench: Bench) -> None:
    algorithm, backbone = bench.prepared()
    support, query = bench.given(bench.form.episode(), backbone)
    predictor = bench.adapted(algorithm, support)
    first = bench.answer(predictor, query, support)
    again = bench.answer(predictor, query, support)
    if not bench.form.equal(first, again):
        raise Broken(
            "the second predict of the same queries gave other scores (by "
            f"{bench.form.gap(again, first):.2g} of their range)."
        )


@ALGORITHMS.add(
    "episodes-apart",
    reason="What is learned from one patient's images must not leak into the next task.",
    hint="Keep nothing of an episode in the algorithm or in modules: adapt copies, and put what "
    "was learned into the predictor.",
    needs=("predict-twice",),
    exact=True,
)
def _episodes_apart(bench: Bench) -> None:
    ready = bench.prepared()
    first = bench.scores(bench.form.episode(0), ready)
    bench.scores(bench.form.episode(1), ready)
    again = bench.scores(bench.form.episode(0), ready)
    if not bench.form.equal(first, again):
        raise Broken(
            "episode A, then B, then A again: A's scores changed by "
            f"{bench.form.gap(again, first):.2g} of their range."
        )


@ALGORITHMS.add(
    "label-permutation",
    reason="Which class is called 0 means nothing; a method that depends on it reads tea leaves.",
    hint="Treat classes alike: no start, order or tie-break by class number. A method that must "
    "(learned starts for each position) says so in an excuse of the spec.",
    needs=("deterministic",),
    exact=True,
)
def _label_permutation(bench: Bench) -> None:
    one = bench.form.episode()
    names = torch.tensor([2, 0, 1])
    found = bench.form.called(bench.scores(bench.form.renamed(one, names)), names)
    change = bench.form.gap(found, bench.scores(one))
    if change > _REORDERED:
        raise Broken(
            "with the classes renamed, the scores of the same classes changed by "
            f"{change:.2g} of their range."
        )


@ALGORITHMS.add(
    "support-order",
    reason="A support set is a set; its order is an accident of the file system.",
    hint="Gather by labels, and draw by class, not by position. A method that reads the support "
    "set in order says so in an excuse of the spec.",
    needs=("deterministic",),
    exact=True,
)
def _support_order(bench: Bench) -> None:
    one = bench.form.episode()
    change = bench.form.gap(bench.scores(bench.form.reordered(one)), bench.scores(one))
    if change > _REORDERED:
        raise Broken(
            "with the same support images in another order, scores changed by "
            f"{change:.2g} of their range."
        )


@ALGORITHMS.add(
    "query-alone",
    reason="Methods that look at all queries at once (transductive) have more to go by, and are "
    "ranked and marked apart.",
    hint="Declare the trait transductive (True, or by the parameter that makes it so), or make "
    "each query's scores independent of the others: BatchNorm in training mode, centring and "
    "ranking over queries are the usual leaks.",
    needs=("predict-twice", "one-query"),
    exact=True,
)
def _query_alone(bench: Bench) -> None:
    algorithm, backbone = bench.prepared()
    support, query = bench.given(bench.form.episode(), backbone)
    predictor = bench.adapted(algorithm, support)
    together = bench.answer(predictor, query, support)
    alone = bench.form.joined([bench.answer(predictor, q.unsqueeze(0), support) for q in query])
    change = bench.form.gap(alone, together)
    if bench.transductive and change <= 1e-6:
        raise Broken(
            "it declares itself transductive, and scores each query alone as it does among others."
        )
    if not bench.transductive and change > _ROUNDING:
        raise Broken(
            "it declares itself inductive, and scores queries one by one differently than "
            f"together (by {change:.2g} of their range)."
        )


@ALGORITHMS.add(
    "batched",
    reason="With the trait batched, adapt gets many episodes at a time, and must give each what it "
    "would get alone.",
    hint="Write with the last dimensions as the episode and '...' before them; sums over dim=-2, "
    "never dim=0. Draw for episode i from support.generator(i). n_adapted counts one episode.",
    needs=("deterministic",),
    exact=True,
)
def _batched(bench: Bench) -> None:
    if not bench.traits.batched:
        raise DoesNotApply("not declared batched: its episodes are looped")
    if bench.subject.task_kind == "detection":
        raise Broken(
            "it declares itself batched, and episodes with boxes are asked one by one.",
            "Set the trait batched to False.",
        )
    episodes = [bench.form.episode(number, (2, 1, 3)) for number in range(4)]
    algorithm, backbone = bench.prepared()
    pairs = [bench.given(one, backbone) for one in episodes]
    alone = torch.stack([bench.answer(bench.adapted(algorithm, s), q, s) for s, q in pairs])
    counted = bench.adapted(algorithm, pairs[0][0]).n_adapted
    support, query = material.together(pairs)
    for lead in ((4,), (2, 2)):
        folded = replace(
            support,
            inputs=support.inputs.reshape(*lead, *support.inputs.shape[1:]),
            labels=support.labels.reshape(*lead, *support.labels.shape[1:]),
            masks=_folded(support.masks, lead),
            classes=_folded(support.classes, lead),
        )
        predictor = bench.adapted(algorithm, folded)
        found = bench.answer(predictor, query.reshape(*lead, *query.shape[1:]), folded)
        want = (*lead, *alone.shape[1:])
        if tuple(found.shape) != want:
            raise Broken(
                f"predict returned {tuple(found.shape)} for {'x'.join(map(str, lead))} episodes, "
                f"and {want} is needed."
            )
        each = zip(found.reshape(alone.shape), alone, strict=True)
        change = max(bench.form.gap(a, b) for a, b in each)
        if change > _ROUNDING:
            raise Broken(
                f"{'x'.join(map(str, lead))} episodes at a time give other scores than one by one "
                f"(by {change:.2g} of their range)."
            )
        if predictor.n_adapted != counted:
            raise Broken(
                f"n_adapted is {predictor.n_adapted} for four episodes and {counted} for one; it "
                "counts one."
            )


def _folded(given: Tensor | None, lead: tuple[int, ...]) -> Tensor | None:
    return None if given is None else given.reshape(*lead, *given.shape[1:])


@ALGORITHMS.add(
    "other-process",
    reason="Trainings and cells run in processes of their own, on other machines even.",
    hint="Put all that was learned into the tensors that meta_train returns; keep nothing in "
    "module globals, and use no hash() of texts.",
    needs=("deterministic",),
    exact=True,
)
def _other_process(bench: Bench) -> None:
    one = bench.form.episode()
    here = bench.scores(one)
    there = fresh.scores_elsewhere(bench.subject, bench.learned(), 0)
    if len(there) != len(here) or bench.form.gap(there, here) > 1e-5:
        raise Broken(
            "a new process with the same learned tensors gives other scores (by "
            f"{bench.form.gap(there, here):.2g} of their range)."
        )


# --- learning ------------------------------------------------------------------------------------


@ALGORITHMS.add(
    "above-chance",
    reason="A method that cannot tell clearly different stripes apart, or find striped discs, "
    "learns nothing from its support set.",
    hint="Check the sign of distances (scores are logits, larger is likelier), the order of "
    "classes, and that labels are used. If trainings are too short for it here, set a larger rate "
    "in the spec's conformance params.",
    needs=("finite", "batched"),
)
def _above_chance(bench: Bench) -> None:
    episodes = [bench.form.easy(100 + i) for i in range(bench.form.n_episodes)]
    lengths = (SHORT, *LONGER) if bench.traits.meta_trains else (SHORT,)
    score = 0.0
    for n_tasks in lengths:
        score = bench.form.score(bench.answers(episodes, n_tasks), episodes)
        if score > bench.form.enough(episodes):
            return
    after = f" after a training on {lengths[-1]} tasks" if len(lengths) > 1 else ""
    raise Broken(bench.form.told(score, episodes, after))


@ALGORITHMS.add(
    "shuffled-labels",
    reason="When labels say nothing, whatever beats chance comes from somewhere else.",
    hint="Look for what tells a query's class without the labels: the order of queries or of the "
    "support set, images remembered from training, files.",
    needs=("finite", "batched"),
)
def _shuffled_labels(bench: Bench) -> None:
    if bench.traits.knows_classes:
        raise DoesNotApply("it is told which classes these are, whatever the support labels say")
    way = 3
    episodes = [bench.form.uninformed(100 + i, way) for i in range(bench.form.n_episodes)]
    right = bench.form.share_right(bench.answers(episodes, SHORT), episodes)
    # Queries of a class stand and fall together, so that few of them are independent.
    limit = above(len(episodes) * way, 1 / way)
    if right > limit:
        raise Broken(
            f"{100 * right:.0f} % of the queries are right although the support labels say "
            f"nothing; chance is 33 %, and at most {100 * limit:.0f} % is plausible."
        )
