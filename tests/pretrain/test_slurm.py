"""Pretraining as a SLURM job, on a real SLURM of this machine: submitted, stopped, requeued, resumed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from maelift.tests.support import (
    ROOT,
    TINY,
    environment,
    framework,
    has_checkpoint,
    one_line_error,
    run_maelift,
    run_ranks,
    write_images,
)
from safetensors.torch import load_file

KEYS = [*TINY, "epochs=60", "checkpoint_minutes=60", "log_every=1"]
JOB = [
    "launch=slurm",
    "slurm.processes_per_node=2",
    "slurm.cpus_per_process=1",
    "slurm.minutes=10",
    "slurm.memory_gb=1",
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which sbatch finds a SLURM of this machine; in CI it must be there."""
    framework("submitit")
    script = ROOT / "tests" / "slurm.sh"
    can = os.geteuid() == 0 and (shutil.which("slurmctld") or shutil.which("apt-get"))
    if not os.environ.get("CI") and not can:
        pytest.skip("a SLURM of one's own needs root, and slurmctld or apt-get")
    folder = tmp_path_factory.mktemp("slurm")
    with (Path(tempfile.gettempdir()) / "maelift-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time: their ports are the same
        started = subprocess.run([script, "start", folder], capture_output=True, text=True, timeout=600)
        if started.returncode and not os.environ.get("CI"):
            pytest.skip(f"no SLURM here: {started.stderr[-300:]}")
        assert started.returncode == 0, started.stderr
        yield {**environment(), "SLURM_CONF": str(folder / "slurm.conf")}
        subprocess.run(["scancel", "--user=root"], env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")})
        time.sleep(2)
        subprocess.run([script, "stop", folder], check=True)


def maelift(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maelift", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def wait_for(what: str, happened: object, log: Path, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        said = log.read_text()[-3000:] if log.exists() else "nothing"
        assert time.monotonic() < end, f"{what} never came; the job said: {said}"
        time.sleep(0.1)


def about(job: str, environment: dict[str, str]) -> str:
    """What SLURM says of a job."""
    return subprocess.run(["scontrol", "show", "job", job], env=environment, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_is_queued_again_and_ends_with_the_same_bits(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    data = write_images(tmp_path / "data", 44)
    whole, out = tmp_path / "whole", tmp_path / "job"
    assert run_ranks(2, "pretrain", f"data={data}", f"out={whole}", *KEYS).returncode == 0
    done = maelift(slurm, "pretrain", f"data={data}", f"out={out}", *KEYS, *JOB)
    assert done.returncode == 0, done.stderr
    job, log = done.stdout.split("SLURM job ")[1].split()[0], Path(done.stdout.split("log: ")[1].split()[0])

    def steps() -> int:
        metrics = out / "metrics.jsonl"
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    wait_for("the first steps", lambda: steps() > 20, log)
    subprocess.run(["scancel", "--signal=USR2", job], check=True, env=slurm)  # as SLURM does before the time is up
    wait_for("the checkpoint", lambda: has_checkpoint(out) or (out / "encoder.safetensors").exists(), log)
    wait_for("the requeue", lambda: "JobState=PENDING" in about(job, slurm), log)
    # A job that is queued again waits two minutes by SLURM's own rule, and may be held; ask for it to begin now.
    for request in (["release", job], ["update", f"jobid={job}", "StartTime=now"]):
        subprocess.run(["scontrol", *request], env=slurm, capture_output=True)
    wait_for("the encoder", lambda: (out / "encoder.safetensors").exists(), log, seconds=240)
    said = log.read_text()
    assert "saved. The same command goes on from there" in said and "resuming from step" in said, said
    expected, found = (load_file(run / "encoder.safetensors") for run in (whole, out))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_without_a_cluster_the_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_images(tmp_path / "data", 20)
    monkeypatch.setenv("PATH", "/nowhere")
    words = ["pretrain", f"data={data}", f"out={tmp_path / 'run'}", *TINY, "launch=slurm"]
    one_line_error(run_maelift(*words), "no sbatch", "launch=here")
    assert not (tmp_path / "run").exists()
    dry = run_maelift(*words, "slurm.nodes=2", "slurm.processes_per_node=4", "--dry-run")
    assert dry.returncode == 0 and "8 processes on 2 machines of SLURM" in dry.stdout
    one_line_error(run_maelift(*words, "slurm.processes_per_node=3"), "batch_size", "multiple of 3")


@pytest.mark.slow
def test_a_job_that_slurm_refuses_is_told(slurm: dict[str, str], tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 20)
    done = maelift(slurm, "pretrain", f"data={data}", f"out={tmp_path / 'run'}", *TINY, *JOB, "slurm.partition=absent")
    one_line_error(done, "refused", "invalid partition")
