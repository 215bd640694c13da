"""Leaderboards as a script makes them, one record at a time, and runs to make them of."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import stats

RECORDS = Path(__file__).parents[2] / "leaderboards" / "sites" / "records"
N_SEEDS = 5
SHOTS = (1, 5)


def write_run(folder: Path, n: int) -> None:
    """A run's folder with `n` records of 600 episodes, made after a committed one.

    Five seeds of every algorithm, on two shots of one data set; forty score files in turn.
    """
    write = Writer(folder)
    for i in range(n):
        row, shot = divmod(i // N_SEEDS, len(SHOTS))
        target = f"folder:wbc_sites@cellavision_blog:4w{SHOTS[shot]}s"
        names = {"algorithm": f"a{row}", "algorithm_label": f"a{row}", "seed": i % N_SEEDS}
        found = key(i)
        stem = f"4w{SHOTS[shot]}s_conv4-32_a{row}_seed{i % N_SEEDS}-{found[:12]}"
        write(stem, found, {**names, "shot": SHOTS[shot], "target": target})


def key(i: int) -> str:
    """A record's key, for the `i`-th."""
    return hashlib.blake2b(b"%d" % i, digest_size=16).hexdigest()


def write_records(folder: Path, jobs: Any) -> None:
    """A run's folder with a record of every cell of a plan."""
    write = Writer(folder)
    for job in jobs:
        write(job.file_stem, job.key, {"target": job.ingredients["target"]["id"]})


class Writer:
    """Writes records as fast as files are made: without syncing, and with few distinct scores."""

    def __init__(self, folder: Path) -> None:
        template = next(RECORDS.glob("*_anil_*.json"))
        self.document = json.loads(template.read_text())
        self._scores = [_scores_file(i) for i in range(40)]
        self._n = 0
        self._folder = folder / "records"
        self._folder.mkdir(parents=True)
        (folder / "cache").mkdir()

    def __call__(self, stem: str, key: str, cell: dict[str, Any]) -> None:
        # Two strides, so that no two rows of five seeds have the same scores.
        body, digest = self._scores[(7 * self._n + self._n // 40) % 40]
        document = self.document | {"cell": self.document["cell"] | cell, "key": key}
        document |= {"scores_file": f"{stem}.parquet", "scores_digest": digest}
        (self._folder / f"{stem}.json").write_text(json.dumps(document, indent=1))
        (self._folder / f"{stem}.parquet").write_bytes(body)
        self._n += 1


def _scores_file(i: int) -> tuple[bytes, str]:
    rng = np.random.default_rng(i)
    columns = {"accuracy": rng.binomial(75, 0.5 + 0.01 * i, 600) / 75, "auroc": rng.random(600)}
    columns |= {k: rng.random(600) for k in ("balanced_accuracy", "f1", "nll", "ece")}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="zstd")
    return out.getvalue(), hashlib.blake2b(out.getvalue(), digest_size=16).hexdigest()


def read(folder: Path) -> Iterator[tuple[dict[str, Any], NDArray[Any]]]:
    """Every record of a run and its accuracies, after the scores were checked."""
    for path in sorted((folder / "records").glob("*.json")):
        record = json.loads(path.read_text())
        scores = path.parent / record["scores_file"]
        digest = hashlib.blake2b(scores.read_bytes(), digest_size=16).hexdigest()
        assert digest == record["scores_digest"]
        yield record, pq.read_table(scores)["accuracy"].to_numpy()


def board(
    folder: Path, draws: Callable[[int, int], NDArray[Any]]
) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Mean and 95 % interval by algorithm and shot; `draws`: how often the bootstrap takes each."""
    rows: dict[tuple[str, int], dict[int, NDArray[Any]]] = defaultdict(dict)
    for record, accuracies in read(folder):
        cell = record["cell"]
        rows[cell["algorithm"], cell["shot"]][cell["seed"]] = accuracies
    found = {}
    for key, by_seed in rows.items():
        scores = np.stack([by_seed[seed] for seed in sorted(by_seed)])
        n_seeds, n_episodes = scores.shape
        sums = draws(n_episodes, 0) @ scores.T
        means = (draws(n_seeds, -1) * sums).sum(axis=1) / scores.size
        low, high = np.percentile(means, [2.5, 97.5])
        factor = max(1.0, 2 * _half_width(scores) / (high - low))
        mean = scores.mean()
        found[key] = (mean, mean - factor * (mean - low), mean + factor * (high - mean))
    return found


def _half_width(scores: NDArray[Any]) -> float:
    """Of the 95 % interval of a mean over crossed seeds and episodes, from mean squares."""
    n_seeds, n = scores.shape
    by_seed, by_episode = scores.mean(axis=1), scores.mean(axis=0)
    rest = scores - by_seed[:, None] - by_episode + scores.mean()
    of_episodes = n_seeds * by_episode.var(ddof=1) - (rest**2).sum() / ((n_seeds - 1) * (n - 1))
    parts = (
        stats.t.ppf(0.975, n_seeds - 1) ** 2 * by_seed.var(ddof=1) / n_seeds,
        stats.t.ppf(0.975, n - 1) ** 2 * max(0.0, of_episodes) / (n_seeds * n),
    )
    return float(np.sqrt(sum(parts)))


def keys(jobs: Any) -> list[str]:
    """The content key of every job, each by writing all its ingredients as JSON."""
    found = []
    for job in jobs:
        text = json.dumps(job.ingredients, sort_keys=True, separators=(",", ":"))
        found.append(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
    return found
