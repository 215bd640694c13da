"""Published boards: what is wrong with a record is told, and nothing wrong gets in."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medbench.cli import main
from medbench.files import content_key, file_digest
from medbench.records import read_scores

SITES = Path(__file__).parents[2] / "leaderboards" / "sites"
PICTURE = b"RIFF0000WEBPVP8 "
NAMES = ("protonet", "simpleshot", "anil")


def medbench(*arguments, code=0, capsys=None) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    shown = capsys.readouterr() if capsys else None
    text = shown.out + shown.err if shown else ""
    assert stop.value.code == code, text
    return text


@pytest.fixture
def board(tmp_path, capsys):
    """A board of the white blood cells with two rows on two targets."""
    folder = tmp_path / "board"
    medbench("board", "init", folder, "--suite", SITES / "suite.yaml", capsys=capsys)
    medbench("board", "add", folder, copied(NAMES[:2], tmp_path / "first"), capsys=capsys)
    return folder


def copied(names, folder: Path) -> Path:
    """Two records of each name, without the answers by image (the tests give their own)."""
    folder.mkdir()
    for name in names:
        found = list((SITES / "records").glob(f"*cellavision*_{name}_*.json"))
        assert len(found) == 2
        for path in found:
            data = json.loads(path.read_text())
            data.pop("groups", None)
            (folder / path.name).write_text(json.dumps(data))
            shutil.copy(path.with_suffix(".parquet"), folder)
    return folder


@pytest.fixture
def submission(tmp_path) -> Path:
    """The records of a third row, to be tampered with; the first is the one that is."""
    return copied(NAMES[2:], tmp_path / "submission")


def first(folder: Path) -> Path:
    return min(folder.glob("*.json"))


def edit(folder: Path, change, *, rekey: bool = False) -> Path:
    """Change the document of the first record; with `rekey`, as one who knows how keys are made."""
    path = first(folder)
    data = json.loads(path.read_text())
    change(data)
    if rekey:
        scores = path.with_suffix(".parquet")
        data["key"] = content_key(data["ingredients"])
        path.unlink()
        path = path.with_name(f"{path.stem.rpartition('-')[0]}-{data['key'][:12]}.json")
        data["scores_file"] = scores.rename(path.with_suffix(".parquet")).name
    path.write_text(json.dumps(data))
    return path


def rescore(folder: Path, change, *, honest: bool = True) -> None:
    """Change the scores of the first record, with the digest that the new file has."""
    path = first(folder)
    data = json.loads(path.read_text())
    scores = path.with_suffix(".parquet")
    arrays = {k: v.copy() for k, v in read_scores(scores, data["scores_digest"]).items()}
    arrays = change(arrays) or arrays
    pq.write_table(pa.table(arrays), scores)
    data["scores_digest"] = file_digest(scores)
    if not honest:
        data["summary"] = {k: float(np.nanmean(v)) for k, v in arrays.items()}
    path.write_text(json.dumps(data))


def put(*place, to):
    def change(data):
        for step in place[:-1]:
            data = data[step]
        data[place[-1]] = to

    return change


def set_score(name, value):
    def change(arrays):
        arrays[name][17] = value

    return change


def another_version(data):
    data["cell"]["protocol_version"] = 2
    data["ingredients"]["target"]["protocol"] = "wbc-sites-v2"


def renamed_scores(folder):
    """A scores file elsewhere, which the document points at."""
    path = first(folder)
    path.with_suffix(".parquet").rename(folder.parent / "elsewhere.parquet")
    edit(folder, put("scores_file", to="../elsewhere.parquet"))


def of_the_bytes(folder):
    scores = first(folder).with_suffix(".parquet")
    body = bytearray(scores.read_bytes())
    body[200] ^= 1
    scores.write_bytes(bytes(body))


def by_patient(folder, change=lambda counts: None, **other) -> Path:
    """Give the first record answers by patient that make its accuracy, then `change` them."""
    path = first(folder)
    data = json.loads(path.read_text())
    n = 600 * 40
    right = round(data["summary"]["accuracy"] * n)
    assert right / n == pytest.approx(data["summary"]["accuracy"])
    counts = {
        "group": np.arange(40),
        "answers": np.full(40, 600),
        "right": np.diff(np.linspace(0, right, 41).astype(int)),
    }
    counts = change(counts) or counts
    groups = path.with_name(f"{path.stem}.groups.parquet")
    pq.write_table(pa.table(counts), groups)
    data["groups"] = {"kind": "patient", "file": groups.name, "digest": file_digest(groups)} | other
    path.write_text(json.dumps(data))
    return groups


def with_picture(folder: Path, data: bytes = PICTURE, **other) -> Path:
    """Give the first record a picture."""
    path = first(folder)
    document = json.loads(path.read_text())
    picture = path.with_suffix(".webp")
    picture.write_bytes(data)
    document["picture"] = {"file": picture.name, "digest": file_digest(picture)} | other
    path.write_text(json.dumps(document))
    return picture


def one_more(counts):
    counts["right"][3] += 1


def more_than_all(counts):
    counts["right"][3], counts["answers"][3] = 700, 600


def twice(counts):
    counts["group"][3] = 4


def literal_nan(folder):
    path = first(folder)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": NaN', 1))


FAULTS = {
    "missing scores": (
        lambda f: first(f).with_suffix(".parquet").unlink(),
        "its scores file",
        "is missing",
    ),
    "changed bytes": (of_the_bytes, "changed after they were recorded"),
    "changed score": (
        lambda f: rescore(f, set_score("accuracy", 0.99)),
        "its summary says accuracy",
        "the mean of its episodes is",
    ),
    "NaN score": (lambda f: rescore(f, set_score("accuracy", np.nan), honest=False),
                  "its accuracy is NaN in 1 episodes, the first of them 17"),
    "impossible score": (lambda f: rescore(f, set_score("f1", 1.5), honest=False),
                         "its f1 of episode 17 is 1.5"),
    "NaN in the document": (literal_nan, "it holds NaN"),
    "fewer episodes": (
        lambda f: rescore(f, lambda a: {k: v[:-1] for k, v in a.items()}, honest=False),
        "of 599 episodes, and 600 were planned",
    ),
    "unknown metric": (
        lambda f: rescore(f, lambda a: a | {"charm": a["f1"]}, honest=False),
        "its metric 'charm' is not one that medbench computes",
    ),
    "another version": (
        lambda f: edit(f, another_version, rekey=True),
        "it is of version 2 of protocol wbc-sites, and this board is of version 1",
    ),
    "another protocol": (
        lambda f: edit(f, put("cell", "protocol", to="omniglot-5w1s")),
        "its protocol is 'omniglot-5w1s', and the suite of this board has wbc-sites",
    ),
    "another schema": (lambda f: edit(f, put("schema", to=9)), "record schema 9"),
    "changed ingredient": (
        lambda f: edit(f, put("ingredients", "algorithm", "params", "inner_lr", to=3.0)),
        "its key is not the hash of its ingredients",
    ),
    "changed seed": (
        lambda f: edit(f, put("cell", "seed", to=4)),
        "its cell says seed 4, and its ingredients 0",
    ),
    "other data": (
        lambda f: edit(f, put("ingredients", "target", "dataset", "digest", to="00ff"), rekey=True),
        "it was tested on other data than",
        "and there 45f7ae11f77a",
    ),
    "other episodes": (
        lambda f: edit(f, put("ingredients", "target", "episodes", to="00ff"), rekey=True),
        "its episodes of folder:wbc_sites@cellavision_blog",
    ),
    "fewer planned": (
        lambda f: edit(f, put("ingredients", "target", "n_episodes", to=60), rekey=True),
        "it has 60 episodes, and this board asks for 600",
    ),
    "no licence": (lambda f: edit(f, put("licences", to={})),
                   "it tells no licence of folder:wbc_sites"),
    "no hardware": (
        lambda f: edit(f, put("hardware", to={})),
        "it does not tell the class of its hardware",
        "its hardware lacks 'cpu'",
    ),
    "no versions": (lambda f: edit(f, put("versions", to={})), "its versions lack 'torch'"),
    "impossible time": (
        lambda f: edit(f, put("costs", "times", "adaptation_s", "median", to=-1.0)),
        "its adaptation_s has median -1.0",
    ),
    "a path": (
        lambda f: edit(f, put("backbone", "origin", to="/home/me/secret.pt")),
        "it names a path of a machine: '/home/me/secret.pt'",
    ),
    "scores elsewhere": (renamed_scores, "its scores file is called '../elsewhere.parquet'"),
    "groups of another accuracy": (
        lambda f: by_patient(f, one_more),
        "right answers of one, and its summary accuracy",
    ),
    "more right than answered": (lambda f: by_patient(f, more_than_all),
                                 "more right answers than answers"),
    "a group twice": (lambda f: by_patient(f, twice), "none of them twice"),
    "groups without answers": (
        lambda f: by_patient(f, lambda c: {"group": c["group"]}),
        "its groups file has ['group'], and must have answers, group and right",
    ),
    "groups of something": (lambda f: by_patient(f, kind="mood"), "its groups are of kind 'mood'"),
    "missing groups": (lambda f: by_patient(f).unlink(), "its groups file", "is missing"),
    "changed groups": (lambda f: by_patient(f, digest="00ff"), "the groups were changed after"),
    "groups elsewhere": (
        lambda f: by_patient(f, file="../x.groups.parquet"),
        "its groups file is called '../x.groups.parquet'",
    ),
    "picture elsewhere": (
        lambda f: with_picture(f, file="../x.webp"),
        "its picture is called '../x.webp'",
    ),
    "changed picture": (lambda f: with_picture(f, digest="00ff"), "the picture was changed after"),
    "no picture": (lambda f: with_picture(f, b"<svg onload=alert(1)>"), "is no WebP file"),
    "huge picture": (lambda f: with_picture(f, PICTURE * 20_000), "more than 200000 bytes"),
    "renamed": (
        lambda f: first(f).rename(f / "a-000000000000.json"),
        "its file name does not end with its key",
    ),
    "a part is missing": (
        lambda f: edit(f, lambda d: d.pop("summary")),
        "a part of it is missing or of another type than a record's (KeyError: 'summary')",
    ),
    "no JSON": (lambda f: first(f).write_text("{"), "not a readable record"),
    "silent failure": (
        lambda f: edit(f, lambda d: d.update(status="oom", error="")),
        "its status is oom, and it tells no error",
    ),
    "non-commercial": (
        lambda f: edit(f, put("request", "non_commercial", to=True)),
        "whose licence allows no commercial use",
    ),
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_sound_submission_is_added_and_the_tables_with_it(board, submission, capsys):
    assert "anil" not in (board / "LEADERBOARD.md").read_text()
    told = medbench("board", "add", board, submission, capsys=capsys)
    assert "2 records added, 0 were there already" in told
    assert "anil" in (board / "LEADERBOARD.md").read_text()
    assert len(list((board / "records").iterdir())) == 12
    before = contents(board)
    told = medbench("board", "add", board, submission, capsys=capsys)
    assert "0 records added, 2 were there already" in told
    assert contents(board) == before
    medbench("board", "check", board, capsys=capsys)


def test_answers_by_patient_are_added_with_their_record_and_belong_to_it(board, submission, capsys):
    groups = by_patient(submission)
    before = contents(board)
    medbench("board", "add", board, submission, capsys=capsys)
    assert (board / "records" / groups.name).read_bytes() == groups.read_bytes()
    told = medbench("board", "add", board, submission, capsys=capsys)
    assert "0 records added, 2 were there already" in told
    medbench("board", "check", board, capsys=capsys)
    # Tables of episodes alone are the same with and without them.
    texts = contents(board)
    for path in board.glob("records/*_anil_*"):
        path.unlink()
    medbench("board", "build", board, capsys=capsys)
    assert contents(board) == before
    by_patient(submission, kind="image")
    shutil.copytree(submission, board / "records", dirs_exist_ok=True)
    medbench("board", "build", board, capsys=capsys)
    assert contents(board)["leaderboard.csv"] == texts["leaderboard.csv"]
    first(submission).with_name(groups.name).rename(board / "records" / "a.groups.parquet")
    told = medbench("board", "check", board, code=1, capsys=capsys)
    assert "a.groups.parquet: it belongs to no record" in told


def test_query_images_are_published_only_when_asked_for(board, submission, capsys):
    picture = with_picture(submission)
    told = medbench("board", "add", board, submission, capsys=capsys)
    assert "2 records added" in told
    assert "1 picture of answers was left out" in told
    assert "licence" in told
    assert not (board / "records" / picture.name).exists()
    assert "data:image" not in (board / "index.html").read_text()
    medbench("board", "check", board, capsys=capsys)
    told = medbench("board", "add", board, submission, "--pictures", capsys=capsys)
    assert "0 records added, 2 were there already" in told
    assert "left out" not in told
    assert (board / "records" / picture.name).read_bytes() == PICTURE
    page = (board / "index.html").read_text()
    assert f"data:image/webp;base64,{base64.b64encode(PICTURE).decode()}" in page
    medbench("board", "check", board, capsys=capsys)
    (board / "records" / picture.name).write_bytes(PICTURE + b"more")
    told = medbench("board", "check", board, code=1, capsys=capsys)
    assert "the picture was changed after it was recorded" in told


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_record_is_refused_with_the_reason_and_nothing_is_added(
    board, submission, capsys, name
):
    tamper, *words = FAULTS[name]
    tamper(submission)
    before = contents(board)
    files = sorted(submission.glob("*.json"))
    told = medbench("board", "add", board, *files, code=1, capsys=capsys)
    assert contents(board) == before
    for text in words:
        assert text in told
    assert "nothing was added" in told


@pytest.mark.parametrize("name", FAULTS)
def test_a_check_finds_it_in_a_board(board, submission, capsys, name):
    tamper, *words = FAULTS[name]
    medbench("board", "add", board, submission, capsys=capsys)
    # The record that is tampered with is judged after those it must agree with.
    for path in [*board.glob("records/*_anil_*")]:
        path.rename(path.with_name("z" + path.name))
    tamper_z(board / "records", tamper, submission)
    told = medbench("board", "check", board, code=1, capsys=capsys)
    for text in words:
        assert text in told


def tamper_z(records: Path, tamper, submission: Path) -> None:
    """Tamper with a copy, and put it where the sound record was."""
    for path in records.glob("z*"):
        path.unlink()
    tamper(submission)
    for path in submission.iterdir():
        data = path.read_bytes()
        name = "z" + path.name
        if path.suffix == ".json":
            data = data.replace(b'"scores_file": "wbc', b'"scores_file": "zwbc')
            data = data.replace(b'"file": "wbc', b'"file": "zwbc')
        (records / name).write_bytes(data)


def test_an_edited_or_missing_table_is_found(board, capsys):
    table = board / "LEADERBOARD.md"
    text = table.read_text()
    table.write_text(text.replace("protonet", "pr0tonet", 1))
    told = medbench("board", "check", board, code=1, capsys=capsys)
    assert "LEADERBOARD.md: the records make another table. It has" in told
    assert "pr0tonet" in told
    (board / "leaderboard.csv").unlink()
    told = medbench("board", "check", board, code=1, capsys=capsys)
    assert "leaderboard.csv: it is missing" in told
    medbench("board", "build", board, capsys=capsys)
    assert table.read_text() == text
    medbench("board", "check", board, capsys=capsys)


def test_a_record_that_was_taken_away_changes_the_tables(board, capsys):
    path = first(board / "records")
    path.unlink()
    told = medbench("board", "check", board, code=1, capsys=capsys)
    assert f"{path.with_suffix('.parquet').name}: it belongs to no record" in told
    path.with_suffix(".parquet").unlink()
    told = medbench("board", "check", board, code=1, capsys=capsys)
    assert "the records make another table" in told


def test_boards_are_the_same_bytes_wherever_and_whenever_they_are_built(board, tmp_path, capsys):
    medbench("board", "build", board, "--also", "json", "--also", "latex", capsys=capsys)
    other = tmp_path / "else where"
    (other / "records").mkdir(parents=True)
    shutil.copy(board / "suite.yaml", other)
    # Files made in another order, at another time.
    for path in sorted((board / "records").iterdir(), reverse=True):
        shutil.copyfile(path, other / "records" / path.name)
    told = medbench("board", "build", other, "--also", "json", "--also", "latex", capsys=capsys)
    names = "LEADERBOARD.md, leaderboard.csv, index.html, leaderboard.json, leaderboard.tex"
    assert f"written: {names}" in told
    assert contents(other) == contents(board)
    again = medbench("board", "build", other, capsys=capsys)
    assert "all tables were as they should be" in again


def test_another_record_of_the_same_key_is_not_overwritten(board, tmp_path, capsys):
    own = first(board / "records")
    shutil.copy(own, tmp_path)
    shutil.copy(own.with_suffix(".parquet"), tmp_path)
    copy = tmp_path / own.name
    copy.write_text(copy.read_text().replace('"load_average": ', '"load_average": 1'))
    told = medbench("board", "add", board, copy, code=1, capsys=capsys)
    assert "the board has another record of this key" in told


def test_a_failed_cell_can_be_published(board, submission, capsys):
    def fail(data):
        for name in ("summary", "scores_file", "scores_digest", "costs", "traits", "hardware"):
            data.pop(name)
        data |= {"status": "oom", "stage": "adapt", "error": "MemoryError: 3 GiB"}

    edit(submission, fail)
    medbench("board", "add", board, submission, capsys=capsys)
    assert "FAILED (1 oom)" in (board / "LEADERBOARD.md").read_text()
    medbench("board", "check", board, capsys=capsys)


def test_what_is_no_board_or_no_record_is_explained(board, tmp_path, capsys):
    assert "is not a board" in medbench("board", "check", tmp_path, code=2, capsys=capsys)
    assert "is not a board" in medbench("board", "build", tmp_path, code=2, capsys=capsys)
    told = medbench("board", "add", board, tmp_path / "none", code=2, capsys=capsys)
    assert "none does not exist." in told
    told = medbench("board", "add", board, board / "suite.yaml", code=2, capsys=capsys)
    assert "is neither a record (.json) nor a folder of records" in told
    told = medbench("board", "init", board, "--suite", "sites", code=2, capsys=capsys)
    assert "is a board already" in told
    told = medbench("board", "init", tmp_path / "b", "--suite", "sitse", code=2, capsys=capsys)
    assert "Did you mean 'sites'" in told
