"""`multigrid weights` as a script: python tools/weights.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["weights", *sys.argv[1:]]))
