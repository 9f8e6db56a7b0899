"""What the fuzzers of model files share: how many examples, junk to put in, and what must hold of every file.

In: FUZZ_EXAMPLES in the environment (`make fuzz` sets it; a plain run takes few). Out: settings, strategies.
Does not know: any file format.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from deepfast.types import ModelError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 0)
SLOW = 20.0  # seconds that one small file may take on a busy machine
GREEDY = 64 * 2**20  # bytes that it may take

many = settings(
    max_examples=EXAMPLES or 25,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)

numbers = st.sampled_from(
    [0, 1, -1, 2, 3, 31, 33, 127, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 10**9, 2**63, 2**64, 10**40]
)
junk = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def harmless(read: Callable[[], Any]) -> bool:
    """Read a file: did it succeed? Anything but success or a ModelError of one readable line is a failure of
    the test, and so is much memory or time."""
    began = time.monotonic()
    tracemalloc.start()
    try:
        read()
        return True
    except ModelError as error:
        text = str(error)
        assert text and text.isprintable() and len(text) < 1500, text[:2000]
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < GREEDY, f"{peak / 1e6:.0f} MB"
        assert time.monotonic() - began < SLOW
