"""`python -m shmarray`.

Owns: nothing; the commands are in `shmarray.cli`.
"""

from __future__ import annotations

import sys

from shmarray.cli import main

if __name__ == "__main__":
    sys.exit(main())
