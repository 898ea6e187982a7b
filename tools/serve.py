"""`multigrid serve` as a script: python tools/serve.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
