"""Names, types and shapes of a safetensors file, from its header alone. No torch here: `ttepretrain info` reads it.

8 bytes: length n of the header | n bytes: JSON, name -> dtype, shape, [begin, end) | tensors, back to back
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ttepretrain.config import is_of
from ttepretrain.documents import open_regular, parse_json, require_keys
from ttepretrain.errors import ConfigError
from ttepretrain.models.config import MOST_WEIGHT_BYTES
from ttepretrain.plain_text import plain, shown

MOST_HEADER_BYTES = 8 << 20  # ResNet-152's takes 80 KiB
MOST_TENSORS = 20_000
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor of the file."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{shown(list(self.shape))}"


def read_header(path: Path) -> dict[str, Stored]:
    """Tensors by name. Raises ConfigError unless they fill the file without a gap or an overlap."""
    with open_regular(path, MOST_WEIGHT_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
            raise ConfigError(f"its header takes {length} bytes of {size}; at most {MOST_HEADER_BYTES} are read")
        document = parse_json(file.read(length).rstrip(b" "))
    if not isinstance(document, dict) or len(document) > MOST_TENSORS:
        raise ConfigError(f"its header is no mapping of at most {MOST_TENSORS} tensors")
    document.pop("__metadata__", None)
    tensors, places = {}, []
    for name, entry in document.items():
        tensors[name], place = _stored(name, entry)
        places.append(place)
    end = 0
    for begin, behind in sorted(places):
        if begin != end:
            raise ConfigError("its tensors overlap or leave gaps")
        end = behind
    if 8 + length + end != size:
        raise ConfigError(f"it has {size} bytes and its header describes {8 + length + end}")
    return tensors


def _stored(name: str, entry: object) -> tuple[Stored, tuple[int, int]]:
    which = f"the tensor {plain(name, 120)}"
    values = require_keys(which, entry, ("dtype", "shape", "data_offsets"))
    dtype, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ConfigError(f"{which} has the unknown dtype {shown(dtype)}")
    if not is_of(shape, list[int]) or len(shape) > 8 or any(not 0 <= n <= MOST_WEIGHT_BYTES for n in shape):
        raise ConfigError(f"{which} has the impossible shape {shown(shape)}")
    if not is_of(offsets, list[int]) or len(offsets) != 2:
        raise ConfigError(f"{which} has the impossible data_offsets {shown(offsets)}")
    begin, end = offsets
    if not 0 <= begin <= end or end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ConfigError(f"{which} of shape {shown(shape)} in {dtype} does not take {shown(offsets)}")
    return Stored(dtype, tuple(shape)), (begin, end)
