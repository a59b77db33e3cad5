"""What `check` has to know of an exercise."""


class Exercise:
    """Inputs, the solution, and the usual mistakes, each of which has its sentence in `strings/`.

    A mistake is recognised when the reader's results equal its results on every case, so the cases
    have to tell all of them apart.

    Attributes
    ----------
    key : str
        The name of the exercise in its lesson and in `strings/`.
    tolerance : float
        Relative to the largest number in a result, and no wider than the lesson's own.
    given : str
        "tensors" where the lesson hands over tensors, "tensors_with_gradients" where it
        differentiates the result too; empty: the cases as they are.
    returns : str
        "array" where a later cell needs an array's methods, "whole" where it needs an index, "page"
        where the result is a text: then `read` makes numbers of it, and `rung` says how far it got.
    by_name : tuple of str
        The last arguments, where the lesson passes them by name.
    """

    key: str
    tolerance = 1e-5
    given = ""
    returns = ""
    by_name = ()

    def read(self, answer, case):
        """The result of a case as the check compares it: as it is, or a page made into numbers."""
        return answer

    def cases(self):
        """Yield tuples of arguments, of every size and kind that matters."""
        raise NotImplementedError

    def solution(self, *case):
        """The right result. It also stands in for a stub, so it takes what the lesson passes."""
        raise NotImplementedError

    def mistakes(self, *case):
        """Name of a mistake -> the result that it gives."""
        raise NotImplementedError
