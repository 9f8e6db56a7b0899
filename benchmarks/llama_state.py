"""Makes a deep llama.cpp context out of a short one, by its saved state: seconds instead of minutes.

In: the bytes that llama_state_seq_get_data wrote, a depth. Out: bytes for llama_state_seq_set_data. What the
positions hold does not matter to time. Does not know: llama.cpp itself.
"""

import struct
from typing import Any

import numpy as np


def repeat_state(state: Any, depth: int) -> Any:
    """A sequence's state (uint8) that holds `depth` tokens: those of `state` over and over, at their new
    positions. None where the bytes are not laid out as below.

    4 words (the fourth: tokens n), n times 3 words (position, 1, sequence), 2 words (values transposed?,
    layers); for each layer of keys: type (4 bytes), bytes of a token (8), tokens; then the values alike, or,
    transposed: type, bytes of a number, rows (4 each), rows of n numbers.
    """
    data, head = state.tobytes(), struct.unpack_from("<4I", state)
    n, at = head[3], 16
    copies = -(-depth // max(n, 1))
    if n == 0 or len(data) < at + 12 * n + 8:
        return None
    cells = np.zeros((depth, 3), np.uint32)
    cells[:] = np.frombuffer(data, np.uint32, 3, at)
    cells[:, 0] = np.arange(depth)
    at += 12 * n
    transposed, layers = struct.unpack_from("<2I", data, at)
    pieces = [np.frombuffer(struct.pack("<4I", *head[:3], depth), np.uint8), cells.view(np.uint8).ravel()]
    pieces.append(state[at : at + 8])
    at += 8
    for part in range(2 * layers):
        turned = transposed and part >= layers
        if len(data) < at + 12:
            return None
        if turned:
            rows, width = struct.unpack_from("<8xI", data, at)[0], struct.unpack_from("<4xI", data, at)[0] * n
        else:
            rows, width = 1, struct.unpack_from("<4xQ", data, at)[0] * n
        body = state[at + 12 : at + 12 + rows * width]
        if body.size != rows * width:
            return None
        pieces.append(state[at : at + 12])
        pieces.append(np.tile(body.reshape(rows, width), copies)[:, : width // n * depth].ravel())
        at += 12 + rows * width
    return np.concatenate(pieces) if at == len(data) else None
