"""What every job needs, loaded once in the server that jobs are forked from.

Importing this module is its purpose: a fork then has all of it in memory, and a cell begins within
milliseconds. Of plugins none is loaded here, as each job must fail alone by what it imports.
"""

from __future__ import annotations

import atexit
import gc

# What writes a record's scores.
import pyarrow.parquet  # noqa: F401

import medbench.worker  # noqa: F401

# A collection in a job would else walk the whole of torch, and copy the pages it touches.
gc.collect()
gc.freeze()
# At its own end the server lets libraries find their objects, or some complain of leaks.
atexit.register(gc.unfreeze)
