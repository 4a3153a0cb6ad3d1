"""``maelift data check`` for every task of the table, those of other packages too."""

from __future__ import annotations

from ..core.dry_run import Plan
from ..core.tools import check_data
from ..core.tools.check_data import DataCheckConfig
from ..core.tools.check_report import DataCheck
from . import tasks


def data_check(config: DataCheckConfig) -> DataCheck:
    """Scan a data set and name all that is wrong in it; raises DataError where no data set is found at all."""
    return check_data.data_check(config, tasks.annotated_tasks())


def plan(config: DataCheckConfig) -> Plan:
    """What ``data_check`` would read."""
    return check_data.plan(config, tasks.annotated_tasks())
