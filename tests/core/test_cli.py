"""Looking around from the command line, with the words a person would use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medbench.cli import main


@pytest.fixture
def call(capsys):
    """Run a command in this process; returns its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


def test_help_shows_every_command_and_an_example(call):
    code, out, _ = call("--help")
    assert code == 0
    for command in ("run", "leaderboard", "status", "list", "info", "plugins", "data", "doctor"):
        assert f"\n  {command} " in out
        assert call(command, "--help")[0] == 0
    assert "medbench run quickstart" in out


@pytest.mark.parametrize("kind", ["datasets", "backbones", "algorithms", "protocols", "suites"])
def test_list_gives_names_and_summaries_as_text_and_json(call, kind):
    code, text, _ = call("list", kind)
    assert code == 0
    rows = json.loads(call("list", kind, "--json")[1])
    assert rows
    for row in rows:
        assert row["name"] in text
        assert row["summary"]


def test_all_eighteen_medmnist_sets_are_listed(call):
    rows = json.loads(call("list", "datasets", "--json")[1])
    assert len([r for r in rows if r["name"].startswith("medmnist/")]) == 18


def test_info_tells_parameters_traits_citation_and_licence(call):
    code, out, _ = call("info", "maml")
    assert code == 0
    for words in ("inner_steps", "transductive", "Finn", "2017", "licence", "meta-trains"):
        assert words in out
    data = json.loads(call("info", "maml", "--json")[1])
    assert {p["name"] for p in data["parameters"]} >= {"first_order", "inner_lr"}
    assert "shots" in call("info", "medmnist-cross")[1]
    assert "medbench run sites" in call("info", "sites")[1]


def test_unknown_words_get_near_matches_and_code_2(call):
    for arguments, words in (
        (("info", "protonett"), "protonet"),
        (("rnu", "x"), "Did you mean 'run'"),
        (("list", "algorithm"), "algorithms"),
        (("run", "quickstar"), "quickstart"),
        (("data", "check", "medmnist/retna"), "medmnist/retina"),
    ):
        code, _, err = call(*arguments)
        assert code == 2, arguments
        assert words in err
        assert "Traceback" not in err


def test_data_check_reports_what_is_there(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    parts = {}
    for split, n in (("train", 20), ("val", 6), ("test", 10)):
        parts[f"{split}_images"] = rng.integers(0, 256, (n, 12, 12), dtype=np.uint8)
        parts[f"{split}_labels"] = (np.arange(n) % 3)[:, None].astype(np.uint8)
    np.savez_compressed(tmp_path / "mine.npz", **parts)
    code, out, _ = call("data", "check", "npz:mine.npz")
    assert code == 0
    assert "mine.npz: fine" in out
    assert "train 20, val 6, test 10" in out
    report = json.loads(call("data", "check", "npz:mine.npz", "--json")[1])
    assert report["shape"] == [12, 12, 1]
    assert list(report["classes"].values()) == [13, 12, 11] or sum(report["classes"].values()) == 36
    (tmp_path / "mine.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:-200])
    code, _, err = call("data", "check", "npz:mine.npz")
    assert code == 2
    assert "mine.npz" in err
    assert "Traceback" not in err


def test_data_get_needs_a_folder_and_a_dataset_that_can_be_had(call, monkeypatch, tmp_path):
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)
    assert "MEDBENCH_DATA is not set" in call("data", "get", "medmnist/breast")[2]
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path / "none"))
    assert "is not a folder" in call("data", "list")[2]


def test_doctor_reports_versions_devices_and_faults(call, distribute):
    code, out, _ = call("doctor")
    assert "torch" in out
    assert "Devices" in out
    assert code == 0, out
    distribute("bad", "1 / 0")
    code, out, _ = call("doctor")
    assert code == 2
    assert "bad 1.0" in out


def test_plugins_lists_hooks_times_and_faults(call, distribute):
    distribute("bad", "import not_there")
    code, out, _ = call("plugins")
    assert code == 0
    assert "medbench_algorithms" in out
    assert "LEFT OUT  bad 1.0" in out
    assert "Traceback" in json.loads(call("plugins", "--json")[1])["faults"][0]["detail"]


def test_the_page_of_methods_is_what_the_specs_say(call, monkeypatch):
    monkeypatch.setenv("MEDBENCH_PLUGINS", "")
    code, page, _ = call("list", "algorithms", "--markdown")
    committed = Path(__file__).parents[2] / "docs" / "methods.md"
    assert code == 0
    assert page == committed.read_text(encoding="utf-8"), (
        "docs/methods.md is stale: medbench list algorithms --markdown > docs/methods.md"
    )
    assert "MEDBENCH" not in page
    assert call("list", "datasets", "--markdown")[0] == 2


def test_data_check_reads_masks_and_boxes(call, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path))
    for folder in ("images", "labels"):
        (tmp_path / "m" / folder).mkdir(parents=True)
    values = np.zeros((12, 16), np.uint8)
    values[2:5, 3:9], values[8:10, 1:4] = 1, 2
    Image.fromarray(values * 90).save(tmp_path / "m" / "images" / "a.png")
    Image.fromarray(values).save(tmp_path / "m" / "labels" / "a.png")
    report = json.loads(call("data", "check", "masks:m", "--json")[1])
    assert report["task_kind"] == "segmentation"
    assert report["classes"] == {"class 1": 1, "class 2": 1}
    options = ("--param", "kind=instance", "--param", "task=detection")
    report = json.loads(call("data", "check", "masks:m", "--json", *options)[1])
    assert report["task_kind"] == "detection"
    assert report["boxes"] == 2
    Image.fromarray(values[:, 1:]).save(tmp_path / "m" / "labels" / "a.png")
    code, _, err = call("data", "check", "masks:m")
    assert code == 2
    assert "has 15 x 12 pixels, and its image" in err
    assert "Traceback" not in err


def test_data_check_finds_targets_that_break_the_promise(call, tmp_path, monkeypatch):
    from medbench_datasets.label_maps import MappedImages

    test_data_check_reads_masks_and_boxes(call, tmp_path, monkeypatch)
    from PIL import Image

    labels = Image.fromarray(np.ones((12, 16), np.uint8))
    labels.save(tmp_path / "m" / "labels" / "a.png")
    wrong = {
        "masks 0 and on are (1, 1, 3, 3)": np.ones((1, 1, 3, 3), bool),
        "and (1, 1, 12, 16) bool was promised": np.ones((1, 1, 12, 16), np.uint8),
    }
    for said, masks in wrong.items():
        monkeypatch.setattr(MappedImages, "read_masks", lambda self, indices, m=masks: m)
        code, _, err = call("data", "check", "masks:m")
        assert code == 2
        assert said in " ".join(err.split())
