"""Handing a command to SLURM: the job is written and submitted by submitit, saves before its time is up, and goes on."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, MaeliftError
from .files import output_folder
from .optional_imports import require
from .signals import Interrupted

logger = logging.getLogger("maelift")

BEFORE_THE_END = signal.SIGUSR2
"""What SLURM sends the processes of a job some time before it ends it; SIGTERM comes when it makes room or is cancelled."""


@dataclass(frozen=True)
class Slurm:
    """What is asked of SLURM with launch=slurm."""

    nodes: int = 1
    """machines"""
    processes_per_node: int = 1
    """processes on each, one a GPU as a rule"""
    gpus_per_node: int = 0
    """GPUs on each"""
    cpus_per_process: int = 4
    """cores of each process, which its loaders share"""
    memory_gb: float | None = None
    """memory of each machine in GB; null: the partition's usual"""
    minutes: int = 1440
    """time limit of the job; it saves before, is queued again, and goes on"""
    save_seconds: int = 120
    """how long before the limit it is told to save"""
    partition: str | None = None
    """partition; null: the usual one"""
    account: str | None = None
    """account to charge; null: the usual one"""
    qos: str | None = None
    """quality of service; null: the usual one"""
    constraint: str | None = None
    """features that machines must have, as sbatch takes them; null: any"""

    def __post_init__(self) -> None:
        for key in ("nodes", "processes_per_node", "cpus_per_process", "minutes", "save_seconds"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "a whole number of at least 1")
        if self.gpus_per_node < 0:
            raise ConfigError("gpus_per_node", self.gpus_per_node, "0 or more")

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class Submitted:
    """A job that waits or runs: its number, and the file that its first process writes what it says to."""

    job: str
    log: Path

    def summary(self) -> str:
        """The result in two lines."""
        return f"submitted: SLURM job {self.job}\nwhat it says: {self.log} (squeue -j {self.job} shows where it is)"


@dataclass(frozen=True)
class Job:
    """What each process of the job does: join the others, run ``run`` on ``keys``, and see to it that it goes on."""

    run: Callable[[Mapping[str, Any]], Any]
    keys: Mapping[str, Any]

    def __call__(self) -> str:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        _log()
        try:
            result = self.run(self.keys)
        except Interrupted as stopped:
            if stopped.exit_code == 128 + BEFORE_THE_END and os.environ["RANK"] == "0":
                logger.info("%s", stopped)
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)
            return str(stopped)
        if os.environ["RANK"] == "0":
            logger.info("%s", result.summary())
        return str(result.summary())


def submit(
    run: Callable[[Mapping[str, Any]], Any], keys: Mapping[str, Any], slurm: Slurm, out: str, name: str
) -> Submitted:
    """Have SLURM run ``run`` on ``keys`` in all the processes asked for; what they say goes to ``out``/slurm.

    Raises MaeliftError where there is no SLURM, no submitit, or the job is refused.
    """
    executor = slurm_executor(slurm, out, name, "launch=slurm", "launch=here (several processes: torchrun)")
    import submitit  # is there, as an executor is

    executor.update_parameters(slurm_additional_parameters={"requeue": True})
    try:
        job = executor.submit(Job(run, keys))
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise MaeliftError(
            f"launch=slurm: the job was refused ({reason}). Nothing runs; change the slurm keys."
        ) from error
    return Submitted(job.job_id, Path(str(job.paths.stderr)))


def slurm_executor(slurm: Slurm, out: str | Path, name: str, key: str, instead: str) -> Any:
    """submitit's executor for jobs that are given this; what they say goes to ``out``/slurm.

    Raises MaeliftError, which names the user's ``key`` and what to give ``instead``, where there is no SLURM or no submitit;
    nothing is written then.
    """
    if shutil.which("sbatch") is None:
        raise MaeliftError(
            f"{key}: no sbatch on this machine's path. Give the command on a machine of the cluster, or {instead}."
        )
    require("submitit")
    import submitit

    executor = submitit.AutoExecutor(folder=output_folder(out) / "slurm", cluster="slurm")
    asked: dict[str, Any] = {
        "name": name,
        "nodes": slurm.nodes,
        "tasks_per_node": slurm.processes_per_node,
        "cpus_per_task": slurm.cpus_per_process,
        "gpus_per_node": slurm.gpus_per_node or None,
        "mem_gb": slurm.memory_gb,
        "timeout_min": slurm.minutes,
        "slurm_signal_delay_s": slurm.save_seconds,
        "slurm_partition": slurm.partition,
        "slurm_account": slurm.account,
        "slurm_qos": slurm.qos,
        "slurm_constraint": slurm.constraint,
    }
    executor.update_parameters(**{key: value for key, value in asked.items() if value is not None})
    return executor


def _log() -> None:
    """Have the first process say how things are, as a command does."""
    logger.setLevel(logging.INFO if os.environ["RANK"] == "0" else logging.WARNING)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
