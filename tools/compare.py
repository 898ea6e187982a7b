"""`multigrid compare` as a script: python tools/compare.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
