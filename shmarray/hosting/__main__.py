"""First lines of a host process: `python -P __main__.py`, with what it has to know on standard input.

Owns: finding the same modules as the process that asked for the host.
Must not know: what a host does.

No secret stands on the command line. The guardian keeps its end of standard input open for as long as the host may live.
"""

from __future__ import annotations

import pickle
import sys

if __name__ == "__main__":
    preparation = pickle.load(sys.stdin.buffer)  # noqa: S301  from the guardian
    sys.path[:] = preparation["sys_path"]
    from shmarray.hosting import host

    host.main(preparation)
