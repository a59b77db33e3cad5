"""`python -m pandalib COMMAND`."""

import sys

from pandalib.cli import main

if __name__ == "__main__":
    sys.exit(main())
