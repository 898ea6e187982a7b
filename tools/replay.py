"""`multigrid replay` as a script: python tools/replay.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["replay", *sys.argv[1:]]))
