"""What a run is: the values that decide its weights. A checkpoint of another run is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ttepretrain.errors import ConfigError

# Same shapes or not, weights trained on other tasks or another grid mean something else: no permission changes that.
NEVER = ("model.", "volume.", "tasks.")


def check_identity(saved: Mapping[str, object], current: Mapping[str, object], allow_change: Sequence[str]) -> None:
    """Raise ConfigError with a line per difference, except those `allow_change` permits."""
    differing = [key for key in sorted(saved.keys() | current.keys()) if saved.get(key) != current.get(key)]
    allowed = [key for key in allow_change if not key.startswith(NEVER)]
    refused = [key for key in differing if key not in allowed]
    if not refused:
        return
    lines = [f"  {key}: {saved.get(key)} in the checkpoint, {current.get(key)} now" for key in refused]
    if any(key.startswith(NEVER) for key in refused):
        remedy = "set them back, or start another run with name=..."
    else:
        remedy = (
            f"set them back, start another run with name=..., or permit it: train.allow_change=[{','.join(refused)}]"
        )
    raise ConfigError("\n".join([f"the run in this folder is another one; {remedy}", *lines]))
