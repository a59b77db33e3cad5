"""What turns a script into a lesson: predictions, checks that answer back, hints, results with their bands, a card."""

from pandalib.teach.card import card
from pandalib.teach.checks import CheckFailed, check
from pandalib.teach.lesson import OutOfBand, hint, predict, report, reveal

__all__ = ["CheckFailed", "OutOfBand", "card", "check", "hint", "predict", "report", "reveal"]
