"""Progress: lines in a log where nobody watches a bar."""

import sys
import time

from pandalib import progress
from pandalib.progress import progress as bar


def test_a_log_gets_lines_and_nothing_else_does(monkeypatch, capsys):
    monkeypatch.delenv("PANDALIB_QUIET", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # nbval brings it
    monkeypatch.setattr(progress, "EVERY", 0.02)

    def slow(items):
        for item in items:
            time.sleep(0.03)
            yield item

    assert list(bar(slow(range(3)), "score", total=3, log=True)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"score: {n} of 3, about a minute in all" for n in (1, 2, 3)]
    assert list(bar(slow(range(2)), "score", log=True)) == [0, 1]
    assert capsys.readouterr().err.splitlines() == ["score: 1", "score: 2"]
    for options in (dict(log=False), dict(log=True, shown=False)):
        assert list(bar(slow(range(3)), "score", **options)) == [0, 1, 2]
    monkeypatch.setenv("PANDALIB_QUIET", "1")
    assert list(bar(slow(range(3)), "score", log=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
