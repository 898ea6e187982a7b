"""`multigrid anchors` as a script: python tools/anchors.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["anchors", *sys.argv[1:]]))
