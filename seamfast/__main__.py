"""``python -m seamfast``: the command line."""

import sys

from seamfast.launch import main

if __name__ == "__main__":
    sys.exit(main())
