"""What makes a lesson of a script: predictions, checks that answer, hints, bands, a card."""

from pandalib.teach.checks import CheckFailed, check
from pandalib.teach.lesson import OutOfBand, card, hint, predict, report, reveal

__all__ = ["CheckFailed", "OutOfBand", "card", "check", "hint", "predict", "report", "reveal"]
