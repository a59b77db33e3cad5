"""The exercises of the course by their keys, one file a lesson."""

from importlib import import_module

from pandalib.teach.exercises.base import Exercise

EXERCISES: dict[str, Exercise] = {
    exercise.key: exercise
    for number in range(11)
    for exercise in import_module(f"{__name__}.lesson_{number:02d}").EXERCISES
}
