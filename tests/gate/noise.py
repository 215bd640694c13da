"""Measurements of made-up runs on a machine as noisy as shared runners are.

Levels follow what repeated runs on a shared two-core machine showed: processes differ by 3 to 8 %,
episodes within a process by 10 to 20 % with rare long ones, the machine drifts over minutes by
10 %, and a calibration follows that drift to a few per cent.
"""

from __future__ import annotations

import datetime

import numpy as np
from scipy.signal import lfilter

from medbench.gate.measurements import CALIBRATIONS, CellResult, Round, Side

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
EPISODES = 20


def ar1(rng, n, sd, rho):
    """Autocorrelated normal noise of `n` steps with standard deviation `sd`."""
    steps = rng.normal(0, sd * np.sqrt(1 - rho**2), n)
    steps[0] /= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], steps)


def heavy(rng, sd, size=None):
    """Student noise with three degrees of freedom and standard deviation `sd`."""
    return sd * rng.standard_t(3, size) / np.sqrt(3)


def round_(rng, i, drift, slow, memory, base, process_sd):
    """One process that measures one cell; `drift` is the machine's own state (log)."""
    own = heavy(rng, process_sd)

    def times(level, factor):
        noise = ar1(rng, EPISODES, 0.08, 0.5)
        spikes = (rng.random(EPISODES) < 0.05) * rng.exponential(1.0, EPISODES)
        return tuple(level * factor * np.exp(drift + own + noise + spikes))

    calibration = {
        name: tuple(0.002 * np.exp(drift + heavy(rng, 0.03, 2))) for name in CALIBRATIONS
    }
    host = int(base * 2e9 * np.exp(heavy(rng, 0.08)) * memory)
    return Round(
        (START + datetime.timedelta(seconds=10 * i)).isoformat(),
        {"adaptation_s": times(base, slow), "prediction_s": times(1.5 * base, slow)},
        calibration=calibration,
        calibration_version=1,
        memory={"peak_tensor_bytes": int(1e8 * base * memory), "peak_host_added_bytes": host},
    )


def cell(i, scores, rounds, **more):
    """A measured cell."""
    labels = {
        "protocol": "p", "protocol_version": 1, "target": "d:5w5s", "way": 5, "shot": 5,
        "backbone": "conv4", "algorithm": f"method-{i}", "seed": 0, "sources": ["s"],
    }  # fmt: skip
    defaults = {
        "status": "ok", "episodes": "e", "data": "d", "hardware": "CPU, 1 thread", "torch": "2",
    }  # fmt: skip
    return CellResult(labels, scores=tuple(scores), rounds=tuple(rounds), **defaults | more)


def accuracies(rng, n, mean, spread=0.08, queries=75):
    """Accuracies of episodes: shares of right answers."""
    return np.clip(rng.normal(mean, spread, n), 0.02, 0.98)


def scored(rng, level, queries=75):
    """What a method with success probability `level` in each episode scores."""
    return rng.binomial(queries, np.clip(level, 0, 1)) / queries


def sides(
    rng,
    *,
    n_cells=10,
    rounds=10,
    turns=True,
    episodes=600,
    loss=0.0,
    slow=1.0,
    memory=1.0,
    rerolled=False,
    machine=0.1,
    process_sd=0.03,
):
    """Both sides of a gate; the planted changes are in cell 0 alone.

    `rerolled`: scores of identical code differ as those of two trainings on other machines do.
    """
    before: list[CellResult] = []
    after: list[CellResult] = []
    drift = ar1(rng, 2 * rounds * n_cells, machine, 0.98)
    if not turns:
        # Another day: the machine is in another state.
        drift[rounds * n_cells :] += rng.normal(0, 2 * machine)
    clock = {(r, side, c): 0 for r in range(rounds) for side in (0, 1) for c in range(n_cells)}
    order = [
        (r, side, c)
        for r in range(rounds)
        for side in ((0, 1) if r % 2 == 0 else (1, 0))
        for c in range(n_cells)
    ]
    if not turns:
        order.sort(key=lambda k: (k[1], k[0], k[2]))
    for i, key in enumerate(order):
        clock[key] = i
    for c in range(n_cells):
        base = 0.005 * 2 ** rng.uniform(0, 5)
        planted = c == 0
        level = accuracies(rng, episodes, rng.uniform(0.3, 0.9))
        old = scored(rng, level)
        new = old
        if planted and loss:
            # Some answers that were right turn wrong, others the other way round.
            turned = rng.binomial(75, 0.04, episodes) - rng.binomial(75, 0.04 - loss, episodes)
            new = np.clip(old - turned / 75, 0, 1)
        elif rerolled:
            new = scored(rng, level + rng.normal(0, 0.004))
        made = []
        for side in (0, 1):
            factor = slow if planted and side else 1.0
            more = memory if planted and side else 1.0
            made.append(
                [
                    round_(
                        rng, clock[r, side, c], drift[clock[r, side, c]], factor, more, base,
                        process_sd,
                    )
                    for r in range(rounds)
                ]
            )  # fmt: skip
        before.append(cell(c, old, made[0]))
        after.append(cell(c, new, made[1]))
    return (
        Side("before", {x.identity: x for x in before}),
        Side("after", {x.identity: x for x in after}),
    )
