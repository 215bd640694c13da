"""A cell in words: nothing that the record does not say, and what it says in a reader's terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medbench.cli import main
from medbench.explain import explain
from medbench.records import Record, read_record, record_files

BOARDS = Path(__file__).parents[2] / "leaderboards"


@pytest.fixture
def protonet() -> Record:
    (path,) = (BOARDS / "omniglot" / "records").glob("omniglot-20w1s*protonet*.json")
    return read_record(path)


def changed(record: Record, **values) -> Record:
    return Record({**record.data, **values}, record.path)


def test_it_says_what_the_cell_is_where_data_come_from_and_what_was_measured(protonet):
    text = explain(protonet)
    for words in (
        "measures protonet on the network conv4 with random weights at the start, seed 0",
        "protocol omniglot-20w1s, version 1: images of omniglot, 20 classes at a time, 1 labelled",
        "It met 1000 tasks",
        "meta-trained on omniglot for 8,000 steps",
        "95.8 % of the queries were answered rightly (guessing gives 5.0 %)",
        "20 tasks were timed one by one",
        "answers each query alone (inductive)",
        "Mind: it was meta-trained on other classes of the same dataset.",
        protonet.key,
    ):
        assert words in text


def test_a_failed_cell_says_why_where_and_no_scores(protonet):
    gone = {k: v for k, v in protonet.data.items() if k not in ("summary", "costs", "scores_file")}
    gone |= {"status": "contract", "stage": "accuracy_lane", "error": "predict returned (3,)."}
    text = explain(Record(gone, protonet.path))
    assert "It was not measured: the plugin broke a promise of the interface" in text
    assert "in stage accuracy lane" in text
    assert "predict returned (3,)." in text
    assert "answered rightly" not in text


def test_one_of_several_labels_has_no_chance_to_name(protonet):
    summary = {"accuracy": 0.8, "average_precision": 0.3}
    assert "guessing" not in explain(changed(protonet, summary=summary))


def test_masks_and_boxes_are_told_in_their_own_measures(protonet):
    cell = {**protonet.data["cell"], "way": 1}
    text = explain(changed(protonet, cell=cell, summary={"dice": 0.625, "iou": 0.5}))
    assert "1 class at a time, 1 labelled image each" in text
    assert "The Dice score of its masks is 0.625" in text
    assert "Also: iou 0.500." in text
    text = explain(changed(protonet, summary={"ap50": 0.25, "froc": 0.5}))
    assert "The average precision of its boxes is 0.250" in text
    assert "answered rightly" not in text


def test_a_cell_without_training_says_so(protonet):
    assert "Nothing was meta-trained" in explain(changed(protonet, training=None))


@pytest.mark.parametrize("board", sorted(p.name for p in BOARDS.iterdir() if p.is_dir()))
def test_every_committed_record_can_be_told(board):
    for path in record_files(BOARDS / board)[:40]:
        text = explain(read_record(path))
        assert "None" not in text
        assert "nan" not in text.split()
        assert ".." not in text.replace("...", "")


@pytest.fixture
def call(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["explain", *arguments])
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


def test_a_cell_is_named_by_file_words_in_any_order_or_key(call, protonet):
    folder = str(BOARDS / "omniglot")
    expected = explain(protonet)
    assert call(str(protonet.path)) == (0, expected, "")
    assert call(folder, "protonet 20w1s") == (0, expected, "")
    assert call(folder, protonet.key[:10]) == (0, expected, "")


def test_words_that_fit_many_cells_or_none_are_refused_with_some_that_fit(call, tmp_path):
    folder = str(BOARDS / "omniglot")
    code, _, err = call(folder, "protonet")
    assert code == 2
    assert "matches" in err
    assert "omniglot-20w1s_" in err
    code, _, err = call(folder, "nothing-like-it")
    assert code == 2
    assert "no cell that matches" in err
    assert call(str(tmp_path / "absent"))[0] == 2
    (tmp_path / "bad.json").write_text(json.dumps({"schema": 1}))
    assert "not a record" in call(str(tmp_path / "bad.json"))[2]
