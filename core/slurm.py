"""Submitting a command to SLURM through submitit: the job saves before its time limit, is requeued and resumes."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .errors import ConfigError, MaeliftError
from .files import output_folder
from .optional_imports import require
from .signals import Interrupted

logger = logging.getLogger("maelift")

TIME_LIMIT_SIGNAL = signal.SIGUSR2
"""Sent by SLURM to the processes of a job before its time limit; on preemption or scancel it sends SIGTERM."""


@dataclass(frozen=True)
class SlurmConfig:
    """The resources that launch=slurm requests."""

    nodes: int = 1
    """nodes (machines)"""
    processes_per_node: int = 1
    """processes on each node, usually one per GPU"""
    gpus_per_node: int = 0
    """GPUs on each node"""
    cpus_per_process: int = 4
    """CPU cores of each process, shared by its loader workers"""
    memory_gb: float | None = None
    """memory of each node in GB; null: the partition's default"""
    minutes: int = 1440
    """time limit of the job in minutes; it saves before, is requeued and resumes"""
    save_seconds: int = 120
    """how long before the limit it is signalled to save, in seconds"""
    partition: str | None = None
    """partition; null: the default"""
    account: str | None = None
    """account to charge; null: the default"""
    qos: str | None = None
    """quality of service; null: the default"""
    constraint: str | None = None
    """features that nodes must have, as for sbatch --constraint; null: any"""

    def __post_init__(self) -> None:
        for key in ("nodes", "processes_per_node", "cpus_per_process", "minutes", "save_seconds"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "an integer of at least 1")
        if self.gpus_per_node < 0:
            raise ConfigError("gpus_per_node", self.gpus_per_node, "0 or more")

    @property
    def processes(self) -> int:
        """Processes on all nodes together."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class SubmittedJob:
    """A job in the queue: its number, and the log file of its first process."""

    job: str
    log: Path

    def summary(self) -> str:
        """The job's number and log file, in two lines."""
        return f"submitted: SLURM job {self.job}\nlog: {self.log} (squeue -j {self.job} shows its state)"


class Result(Protocol):
    """What a command returns: it can be printed."""

    def summary(self) -> str:
        """The result in a few lines."""


@dataclass(frozen=True)
class Job:
    """What each process of the job does: join the others, call ``run`` with ``keys``, requeue the job at its time limit."""

    run: Callable[[Mapping[str, Any]], Result]
    keys: Mapping[str, Any]

    def __call__(self) -> str:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        _set_up_logging()
        try:
            result = self.run(self.keys)
        except Interrupted as stopped:
            if stopped.exit_code == 128 + TIME_LIMIT_SIGNAL and os.environ["RANK"] == "0":
                logger.info("%s", stopped)
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)
            return str(stopped)
        if os.environ["RANK"] == "0":
            logger.info("%s", result.summary())
        return result.summary()


def submit(
    run: Callable[[Mapping[str, Any]], Result], keys: Mapping[str, Any], slurm: SlurmConfig, out: str, name: str
) -> SubmittedJob:
    """Submit a job that calls ``run`` with ``keys`` in all its processes; their logs go to ``out``/slurm.

    Raises MaeliftError where there is no SLURM, no submitit, or the job is refused.
    """
    executor = slurm_executor(slurm, out, name, "launch=slurm", "launch=here (several processes: torchrun)")
    import submitit  # installed, as slurm_executor requires it

    executor.update_parameters(slurm_additional_parameters={"requeue": True})
    try:
        job = executor.submit(Job(run, keys))
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise MaeliftError(
            f"launch=slurm: the job was refused ({reason}). Nothing runs; change the slurm keys."
        ) from error
    return SubmittedJob(job.job_id, Path(str(job.paths.stderr)))


def slurm_executor(slurm: SlurmConfig, out: str | Path, name: str, key: str, instead: str) -> Any:
    """submitit's executor for jobs with these resources; their logs go to ``out``/slurm.

    Raises MaeliftError where there is no SLURM or no submitit; it names the user's ``key`` and what to use ``instead``, and
    nothing is written.
    """
    if shutil.which("sbatch") is None:
        raise MaeliftError(
            f"{key}: no sbatch on this machine's path. Run the command on a machine of the cluster, or use {instead}."
        )
    require("submitit")
    import submitit

    executor = submitit.AutoExecutor(folder=output_folder(out) / "slurm", cluster="slurm")
    resources: dict[str, Any] = {
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
    executor.update_parameters(**{key: value for key, value in resources.items() if value is not None})
    return executor


def _set_up_logging() -> None:
    """Log as a command does: the first process everything, the others warnings only."""
    logger.setLevel(logging.INFO if os.environ["RANK"] == "0" else logging.WARNING)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
