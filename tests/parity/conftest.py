"""Keeps the parity tests quiet and, where PyTorch is not installed, lets each file say that it was skipped.

In: an environment with or without the extra `parity`. Out: nothing. Does not know: what is compared.
"""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # tiny models; more threads only wait for each other
    logging.disable_progress_bar()
    logging.set_verbosity_error()
