"""Shows every component of the loss, per scale, before any weight moves: python tests/probe_multigrid_loss.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["probe", *sys.argv[1:]]))
