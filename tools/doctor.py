"""`multigrid doctor` as a script: python tools/doctor.py --help"""

import sys

from multigrid.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
