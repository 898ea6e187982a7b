"""`python -m multigrid.cli`."""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main())
