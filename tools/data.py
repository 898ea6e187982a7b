"""`multigrid data` as a script: python tools/data.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
