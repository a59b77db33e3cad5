"""What several files of tests share."""

import pytest
from hypothesis import settings
from small import small_backbone

# The same examples each time.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("same")


@pytest.fixture(scope="module")
def backbone():
    """A small network, which no test changes."""
    return small_backbone()
