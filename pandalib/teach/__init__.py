"""What turns a script into a lesson: predictions, checks that answer back, hints, results with their bands."""

from pandalib.teach.checks import CheckFailed, check
from pandalib.teach.lesson import OutOfBand, hint, predict, report, reveal

__all__ = ["CheckFailed", "OutOfBand", "check", "hint", "predict", "report", "reveal"]
