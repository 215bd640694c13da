"""Records of boards whose names, texts and numbers a page has to bear."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medbench.leaderboard.build import board_of
from medbench.leaderboard.page import page_text
from medbench.leaderboard.page_facts import stem_of
from medbench.pictures import mask_strip
from medbench.records import slug, write_record

N_EPISODES = 60
# Names that want to be more than names; the last two are longer than a line, and right to left.
SCRIPT = "</script><script>window.hacked = 1</script>"
IMAGE = "<img src=x onerror='window.hacked = 2'>"
QUOTES = 'it\'s "quoted" `${window.hacked = 3}` & \\u003c \u2028 --> <!--'
LONG = "acme/" + "a-very-long-name-without-any-space-" * 12
TURNED = "\u202eevil\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627"
HOSTILE = (SCRIPT, IMAGE, QUOTES, LONG, TURNED)


@dataclass
class Cell:
    """One cell's record, with all that a page tells of it."""

    algorithm: str
    backbone: str = "conv4"
    target: str = "medmnist/breast"
    shot: int = 1
    seed: int = 0
    mean: float = 0.5
    adapt_s: float | None = 0.01
    memory: float | None = 2.0**24
    transductive: bool = False
    weights: str = "random"
    licence: str = "CC BY 4.0"
    hardware: str = "small machine"
    overlap: tuple[str, ...] = ()
    status: str = "ok"
    error: str = ""
    log: tuple[str, ...] = ()
    protocol: str = "cross"
    curve: list[dict[str, Any]] = field(default_factory=list)
    picture: bytes | None = None

    def write(self, folder: Path) -> Path:
        """Write the record into the records of `folder`; returns its file."""
        words = (self.protocol, self.target, self.shot, self.backbone, self.algorithm, self.seed,
                 self.hardware)  # fmt: skip
        key = hashlib.blake2b(repr(words).encode(), digest_size=16).hexdigest()
        full = f"{self.target}:5w{self.shot}s"
        names = (slug(self.protocol, full), slug(self.backbone), slug(self.algorithm))
        path = folder / "records" / f"{stem_of(*names, self.seed)[:150]}-{key[:12]}.json"
        write_record(path, self._document(key, full), self._scores(), picture=self.picture)
        return path

    def _scores(self) -> dict[str, Any] | None:
        if self.status != "ok":
            return None
        rng = np.random.default_rng(abs(hash_of(f"{self.algorithm} {self.backbone} {self.seed}")))
        shared = np.random.default_rng(self.shot).normal(0, 0.05, N_EPISODES)
        scores = np.clip(self.mean + shared + rng.normal(0, 0.02, N_EPISODES), 0, 1)
        return {"accuracy": np.round(scores, 4), "nll": np.round(2 - scores, 4)}

    def _document(self, key: str, full: str) -> dict[str, Any]:
        plugin = {"distribution": "acme-medbench", "version": "1.0", "source": key}
        time = {"median": self.adapt_s, "p95": self.adapt_s and 2 * self.adapt_s, "iqr": 0.001}
        return {
            "schema": 1,
            "key": key,
            "status": self.status,
            "cell": {
                "protocol": self.protocol, "protocol_version": 1, "target": full, "way": 5,
                "shot": self.shot, "backbone": self.backbone, "algorithm": self.algorithm,
                "seed": self.seed, "sources": ["medmnist/blood"], "weights": self.weights,
            },
            "ingredients": {
                "algorithm": {"name": self.algorithm, "version": "3", "plugin": plugin,
                              "params": {"steps": 5, "note": SCRIPT}},
                "backbone": {"name": self.backbone, "version": "1", "plugin": plugin,
                             "params": {"width": 32}, "weights": self.weights},
                "target": {"dataset": {"name": self.target, "version": "1", "digest": "d" * 40},
                           "episodes": "e" * 40, "n_episodes": N_EPISODES},
            },
            "costs": {
                "times": {"adaptation_s": time, "prediction_s": time, "feature_s": time},
                "memory": {"peak_host_added_bytes": self.memory},
                "parameters_adapted": 5,
            },
            "backbone": {"bytes": 2**24 if self.backbone == "vit" else 2**20},
            "training": {"key": key, "train_s": 3.0, "images_seen": 1000, "curve": self.curve}
            if self.curve else None,
            "traits": {"transductive": self.transductive},
            "overlap": list(self.overlap),
            "licences": {self.target: self.licence},
            "hardware": {"class": self.hardware, "cpu": "Some CPU"},
            "versions": {"python": "3.11", "torch": "2.4"},
            "created": "2026-11-01T10:00:00+00:00",
            "stage": "adapt" if self.status != "ok" else "",
            "error": self.error,
            "log_tail": list(self.log),
        }  # fmt: skip


def hash_of(text: str) -> int:
    """A number that follows from the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())


def curve(n: int = 100) -> list[dict[str, Any]]:
    """A training's curve: its loss falls, its validation accuracy rises."""
    return [
        {"step": i, "images": 32 * i, "loss": 2.0 / i, "val_accuracy": None if i % 10 else i / n}
        for i in range(1, n + 1)
    ]


def write_tame(folder: Path) -> Path:
    """A board with something to choose in every filter: 2 targets, 2 shots, 6 rows, a failure."""
    rows = [
        Cell("protonet", mean=0.60, adapt_s=0.004, memory=20e6, curve=curve()),
        Cell("maml", mean=0.55, adapt_s=0.050, memory=90e6, transductive=True,
             overlap=("meta-trained on the same domain: medmnist/blood",), curve=curve()),
        Cell("ridge", mean=0.64, adapt_s=0.020, memory=30e6),
        Cell("ridge", "vit", mean=0.72, adapt_s=0.400, memory=400e6, weights="imagenet"),
        Cell("nearest", "vit", mean=0.70, adapt_s=0.150, memory=200e6, weights="imagenet"),
        Cell("slow", mean=0.50, adapt_s=None, memory=None),
    ]  # fmt: skip
    for row in rows:
        for target, licence in (("medmnist/breast", "CC BY 4.0"), ("medmnist/retina", "CC BY-NC")):
            for shot in (1, 5):
                if (row.algorithm, target, shot) == ("slow", "medmnist/retina", 5):
                    continue
                made = Cell(**vars(row) | {"target": target, "shot": shot, "licence": licence})
                made.mean += 0.1 * (shot == 5) - 0.05 * (target == "medmnist/retina")
                made.write(folder)
    Cell("slow", target="medmnist/retina", shot=5, status="oom", error="out of memory: 9 GB",
         log=("step 1", "step 2: killed"), licence="CC BY-NC").write(folder)  # fmt: skip
    Cell("ridge", "vit", hardware="large machine", protocol="sites", mean=0.7).write(folder)
    return folder


def write_hostile(folder: Path) -> Path:
    """A board whose every text that a record may hold wants to be a script, or is otherwise odd."""
    for i, name in enumerate(HOSTILE):
        for target in (IMAGE, "medmnist/breast"):
            Cell(name, SCRIPT if i % 2 else "conv4", target, mean=0.5 + 0.02 * i, hardware=IMAGE,
                 protocol=QUOTES, licence=SCRIPT, overlap=(IMAGE,), weights=SCRIPT,
                 curve=curve()).write(folder)  # fmt: skip
    Cell("gone", SCRIPT, IMAGE, status="crash", error=f"{IMAGE} {TURNED}", log=(SCRIPT, QUOTES),
         protocol=QUOTES).write(folder)  # fmt: skip
    return folder


def write_pictured(folder: Path) -> Path:
    """A board of two targets whose records have a picture, but for one of them."""
    for i, name in enumerate(("panet", "unet", "blind")):
        for target in ("nuclei", "lungs"):
            for seed in (0, 1):
                shade = np.full((2, 40, 60, 1), 50 * i + 20 * seed + 10, np.uint8)
                masks = np.zeros((2, 1, 40, 60), bool)
                masks[:, :, 10:30, 10 : 20 + 10 * i] = True
                strip = None if name == "blind" else mask_strip(shade, masks, masks)
                Cell(name, target=target, seed=seed, mean=0.5 + 0.1 * i, picture=strip,
                     protocol="masks", licence="CC0").write(folder)  # fmt: skip
    return folder


def written(folder: Path) -> Path:
    """The file of a board's page, beside its records."""
    file = folder / "index.html"
    file.write_text(page_text(board_of([folder]), [folder]), encoding="utf-8")
    return file
