"""`multigrid export` as a script: python tools/export.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
