"""`multigrid evaluate` as a script: python tools/evaluate.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
