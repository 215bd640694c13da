"""What ``--slurm KEY=VALUE`` may say, and what is asked of SLURM for it."""

from __future__ import annotations

import pytest

from medbench.cli.engine import size
from medbench.engine.slurmoptions import slurm_options
from medbench.errors import UsageError


def options(*settings, gpu=False, threads=1, memory_bytes=None):
    return slurm_options(
        settings,
        gpu=gpu,
        threads=threads,
        memory_bytes=memory_bytes,
        cell_timeout_s=3600.0,
        size=size,
    )


def test_what_is_not_said_follows_from_the_run():
    found = options(gpu=True, threads=4, memory_bytes=3 * 2**30).sbatch()
    assert found["cpus_per_task"] == 4
    assert found["gpus_per_node"] == 1
    assert found["mem"] == "4096M"  # the job's, and what hosts it
    assert found["time"] == 70  # the cell's limit, and ten minutes
    assert found["additional_parameters"]["requeue"] is True
    assert "gpus_per_node" not in options().sbatch()


def test_what_is_said_goes_to_sbatch():
    found = options(
        "partition=gpu", "account=lab", "reservation=night", "array-parallelism=8",
        "setup=module load cuda", "setup=export A=1", "exclusive=true", "mem=16G",
    ).sbatch()  # fmt: skip
    assert found["partition"] == "gpu"
    assert found["account"] == "lab"
    assert found["array_parallelism"] == 8
    assert found["setup"] == ["module load cuda", "export A=1"]
    assert found["exclusive"] is True
    assert found["mem"] == "16384M"  # SLURM's G is 2 to the 30
    assert found["additional_parameters"] == {"requeue": True, "reservation": "night"}


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("02:30:00", 150), ("1-12", 2160), ("1-12:30", 2190), ("5:30", 5.5)],
)
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert options(f"time={text}").minutes == pytest.approx(minutes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["partitoin=gpu"], "Did you mean 'partition'"),
        (["partition"], "write KEY=VALUE"),
        (["partition="], "write KEY=VALUE"),
        (["time=soon"], "90 or 1-12:00:00"),
        (["time=0"], "90 or 1-12:00:00"),
        (["cpus_per_task=two"], "a whole number"),
        (["mem=much"], "is not a size"),
        (["partition=a", "partition=b"], "given twice"),
        (["cluster=pbs"], "slurm, or local"),
        (["exclusive=maybe"], "true or false"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, words):
    import click

    with pytest.raises((UsageError, click.BadParameter), match=words):
        options(*settings)


def test_settings_that_contradict_the_run_are_refused():
    with pytest.raises(UsageError, match="computes on a GPU"):
        options("gpus_per_node=0", gpu=True)
    with pytest.raises(UsageError, match="4 threads"):
        options("cpus_per_task=2", threads=4)
    with pytest.raises(UsageError, match="less than --memory"):
        options("mem=1GiB", memory_bytes=2 * 2**30)
