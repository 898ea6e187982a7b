"""`multigrid train` as a script: python tools/train.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
