"""The exercises of the course by their keys, one file a lesson."""

import pkgutil
from importlib import import_module

from pandalib.teach.exercises.base import Exercise

EXERCISES: dict[str, Exercise] = {
    exercise.key: exercise
    for module in sorted(one.name for one in pkgutil.iter_modules(__path__))
    if module.startswith("lesson_")
    for exercise in import_module(f"{__name__}.{module}").EXERCISES
}
