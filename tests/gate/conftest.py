"""Measurements and records made for tests of the gate."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from gate.noise import START
from medbench.gate.measurements import Round
from medbench.records import SCHEMA, write_record


@pytest.fixture
def round_at():
    """A round measured so many seconds after the start."""

    def make(seconds, adapt=0.01, predict=0.02, **more):
        when = (START + datetime.timedelta(seconds=seconds)).isoformat()
        return Round(when, {"adaptation_s": (adapt,) * 5, "prediction_s": (predict,) * 5}, **more)

    return make


@pytest.fixture
def run_folder(tmp_path):
    """Write the records of a run: ``run_folder("name", {"protonet": {...}})``; returns its folder.

    Each algorithm may set scores, adapt (seconds), tensor_bytes, status, hardware, version,
    waits (seconds an episode).
    """

    def make(name, cells, second=0, planned=None):
        folder = tmp_path / name
        (folder / "records").mkdir(parents=True, exist_ok=True)
        for algorithm, given in cells.items():
            _record(folder, algorithm, second, **given)
        if planned is not None:
            from medbench.files import write_json

            write_json(folder / "plan.json", dict.fromkeys(planned, "k" * 32))
        return folder

    return make


def _record(
    folder,
    algorithm,
    second,
    scores=None,
    adapt=0.02,
    tensor_bytes=10_000_000,
    status="ok",
    hardware="some CPU, 1 thread",
    version=1,
    episodes="e",
    speed=0.002,
    raw=True,
    waits=None,
):
    created = (START + datetime.timedelta(seconds=second)).isoformat()
    data = {
        "schema": SCHEMA, "key": "k" * 32, "status": status, "created": created,
        "cell": {
            "protocol": "p", "protocol_version": version, "target": "d:5w5s", "way": 5, "shot": 5,
            "backbone": "conv4", "algorithm": algorithm, "seed": 0, "sources": ["s"],
        },
        "ingredients": {"target": {"episodes": episodes, "dataset": {"digest": "d"}}},
    }  # fmt: skip
    values = None
    if status == "ok":
        stage = {"median": adapt / 2}
        data |= {
            "hardware": {"class": hardware}, "versions": {"torch": "2"}, "training": None,
            "costs": {
                "times": {"adaptation_s": {"median": adapt}, "prediction_s": {"median": adapt}},
                "memory": {"peak_tensor_bytes": tensor_bytes, "peak_host_added_bytes": None},
                "load_average": 1.0,
            },
        }  # fmt: skip
        if raw:
            stages = ("support_feature_s", "adapt_s", "query_feature_s", "predict_s")
            data["costs"]["episodes"] = {s: [stage["median"]] * 6 for s in stages}
            if waits is not None:
                both = ("adaptation_wait_s", "prediction_wait_s")
                data["costs"]["episodes"] |= {name: [waits] * 6 for name in both}
            data["costs"]["calibration"] = {
                "version": 1, "matmul_s": [speed] * 2, "stream_s": [speed] * 2,
                "dispatch_s": [speed] * 2,
            }  # fmt: skip
        values = {"accuracy": np.full(50, 0.8) if scores is None else np.asarray(scores)}
    else:
        data["error"] = "it broke"
    write_record(folder / "records" / f"{algorithm}-{'k' * 12}.json", data, values)
