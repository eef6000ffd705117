"""One peer by its name, one workload, one process: prints its figures as a line of JSON.

python -m benchmarks.one PEER WORKLOAD COUNT
"""

from __future__ import annotations

import sys

from benchmarks.peers import PEERS
from hivewire.bench.one import main

if __name__ == "__main__":
    main([PEERS[sys.argv[1]], *sys.argv[2:]])
