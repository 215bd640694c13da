"""The bundled suites on real images, small enough for CI."""

from __future__ import annotations

import json

import pytest
from test_run import medbench, records

pytestmark = pytest.mark.data


def small(protocol: str) -> list[str]:
    return [
        "--set",
        "budget={episodes: 4}",
        "--set",
        f"protocols=[{{name: {protocol}, episodes: 10}}]",
    ]


def test_the_cross_domain_suite_runs_on_medmnist_files(tmp_path):
    out = tmp_path / "out"
    done = medbench(
        "run", "medmnist-cross", "--out", out, *small("medmnist-cross"),
        "--only", "breast:2w1s*protonet", "--only", "npz*8w1s*linear-probe",
        "--only", "retina:5w5s*simpleshot",
    )  # fmt: skip
    assert "goes without" in done.stderr
    found = records(out)
    assert len(found) == 3
    for data in found.values():
        assert data["status"] == "ok"
        assert data["cell"]["dataset"] not in data["cell"]["sources"]
    blood = next(d for d in found.values() if d["cell"]["dataset"].startswith("npz"))
    assert blood["cell"]["way"] == 8
    shown = medbench("leaderboard", out, "--format", "md").stdout
    assert "CC BY 4.0" in shown


def test_the_sites_suite_leaves_a_laboratory_out(tmp_path):
    out = tmp_path / "out"
    medbench("run", "sites", "--out", out, *small("wbc-sites"), "--only", "tecom*5s*protonet")
    (data,) = records(out).values()
    assert data["cell"]["site"] == "tecom_jiangxi"
    assert {s.rpartition("@")[2] for s in data["cell"]["sources"]} == {
        "cellavision_blog",
        "pbc_barcelona",
    }


def test_one_omniglot_training_serves_four_protocols(tmp_path):
    done = medbench("run", "omniglot", "--out", tmp_path, "--dry-run")
    assert done.stdout.startswith("1 training:")
    assert "4 cells:" in done.stdout


def test_data_check_reads_a_table_with_sites_and_patients():
    done = medbench(
        "data", "check", "csv:chest_sites/index.csv", "--json",
        "--param", "label_column=view", "--param", "patient_column=patientid",
        "--param", "site_column=country", "--param", "size=64",
        "--param", "drop_unlabelled=true", "--param", "drop_labels='?'",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["patients"] > 150
    assert len(report["sites"]) > 20
