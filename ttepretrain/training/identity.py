"""What a run is: the values that decide its weights. A checkpoint of another run is refused.

Each configuration class returns those values itself: `identity()` of TrainConfig, ModelConfig and
VolumeSpec. A field is among them unless its class lists it in NOT_IDENTITY.

Checkpoints outlive releases. A key that a checkpoint lacks, or has as null, had its default when the checkpoint was
written: a new field's default must therefore mean what was done before the field was there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ttepretrain.errors import ConfigError

# Same shapes or not, weights trained on other tasks or another grid mean something else: no permission changes that.
NEVER = ("model.", "volume.", "tasks.")


def check_identity(
    saved: Mapping[str, object],
    current: Mapping[str, object],
    defaults: Mapping[str, object],
    allow_change: Sequence[str],
) -> None:
    """Raise ConfigError with a line per difference, except those `allow_change` permits.

    saved: of the checkpoint; keys that it lacks have the value in `defaults`.
    """
    before = {key: _or_default(saved.get(key), defaults.get(key)) for key in saved.keys() | current.keys()}
    now = {key: _or_default(current.get(key), defaults.get(key)) for key in before}
    differing = [key for key in sorted(before) if before[key] != now[key]]
    allowed = [key for key in allow_change if not key.startswith(NEVER)]
    refused = [key for key in differing if key not in allowed]
    if not refused:
        return
    lines = [f"  {key}: {before[key]} in the checkpoint, {now[key]} now" for key in refused]
    if any(key.startswith(NEVER) for key in refused):
        remedy = "set them back, or start another run with name=..."
    else:
        remedy = (
            f"set them back, start another run with name=..., or permit it: train.allow_change=[{','.join(refused)}]"
        )
    raise ConfigError("\n".join([f"the run in this folder is another one; {remedy}", *lines]))


def _or_default(value: object, default: object) -> object:
    """The value, with defaults for what it lacks; a section's keys one by one."""
    if value is None:
        return default
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        return {key: _or_default(value.get(key), default.get(key)) for key in value.keys() | default.keys()}
    return value
