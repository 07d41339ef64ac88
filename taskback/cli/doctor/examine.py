"""The examination: all checks, one after the other."""

import sys
from typing import Final

from taskback.cli.doctor import limits, mechanism, report, service
from taskback.cli.doctor.trial import tried
from taskback.cli.streams import write_text

SECTIONS: Final = (
    ("mechanism", mechanism.CHECKS),
    ("limits", limits.CHECKS),
    ("the real thing", service.CHECKS),
)


def examine(seconds: float, for_machines: bool) -> int:
    """Try everything, write what was found to standard output, and give the exit status.

    Args:
        seconds (float): That each check may take.
        for_machines (bool): Whether it is written as JSON.
    """
    found = [(title, [(check, tried(check, seconds)) for check in checks]) for title, checks in SECTIONS]
    write_text(sys.stdout, report.as_json(found) if for_machines else report.as_text(found))
    return report.exit_status(found)
