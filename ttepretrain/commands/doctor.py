"""`ttepretrain doctor`: check scans before any work is spent on them.

    find_scans -> preprocess_ct, one scan at a time -> reasons, flags, geometry, HU -> table, JSON, montage

Scans are identified by their position in find_scans' order (sorted paths), never by key or path.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttepretrain.commands.arguments import INPUT, path_given, written_alone
from ttepretrain.commands.say import say
from ttepretrain.commands.scans import Scan, find_scans
from ttepretrain.errors import BadDataError, BadStudy, ConfigError, most_bad
from ttepretrain.files import write_json
from ttepretrain.log import log

if TYPE_CHECKING:
    from ttepretrain.commands.montage import Montage
    from ttepretrain.volume.preprocess import Volume
    from ttepretrain.volume.spec import VolumeSpec

SUMMARY = "check scans: usable or not and why, geometry, HU, a picture"
DESCRIPTION = """\
Read every scan as jobs.prepare and embed would, and report which ones cannot be
used and why, what was repaired, and the range of spacing, size and HU. Scans are
numbered in the order of their sorted paths; the output contains no names.

Exits with 3 when more scans are bad than jobs.prepare would accept."""
EXAMPLE = "scans/ --json report.json --montage montage.png"

LINE_SECONDS = 10.0
# In the first bytes of the files this command writes; it replaces no other.
JSON_MARK, MONTAGE_MARK, MARK_BYTES = b'{\n "volume_spec": {', b"ttepretrain doctor", 256
SCANNER = ("manufacturer", "kvp", "contrast")  # counted in the JSON
HU_QUANTILES = {"hu_p01": 0.01, "hu_p50": 0.5, "hu_p99": 0.99}
QUANTITIES = (
    *(f"spacing_{axis}_mm" for axis in "DHW"),
    *(f"size_{axis}" for axis in "DHW"),
    *(f"extent_{axis}_mm" for axis in "DHW"),
    *HU_QUANTILES,
)


@dataclass
class Finding:
    """One scan; `position` counts from 0. A refused scan has a code and a detail, a usable one the rest."""

    position: int
    code: str | None = None
    detail: str | None = None
    flags: tuple[str, ...] = ()
    acquisition: dict[str, Any] | None = None
    quantities: dict[str, float] | None = None  # QUANTITIES; HU of the network's grid, the rest of the scan's own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", type=path_given, nargs="+", metavar="INPUT", help=INPUT)
    parser.add_argument(
        "--preset", default="default", help="read the scans as with this volume.preset (default: default)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this JSON file")
    parser.add_argument(
        "--montage", type=Path, metavar="FILE.png", help="write a picture of some scans as the network sees them"
    )
    parser.add_argument("--montage-scans", type=int, default=6, metavar="N", help="scans in the montage (default: 6)")


def run(parsed: argparse.Namespace) -> None:
    """Raises ConfigError for an impossible option before any scan is read."""
    if parsed.montage_scans < 1:
        raise ConfigError(f"--montage-scans must be at least 1; got {parsed.montage_scans}")
    if parsed.json and parsed.montage and os.path.realpath(parsed.json) == os.path.realpath(parsed.montage):
        raise ConfigError("--json and --montage name the same file; name two")
    outputs = {"--json": (parsed.json, JSON_MARK), "--montage": (parsed.montage, MONTAGE_MARK)}
    with ExitStack() as alone:
        files = {
            option: alone.enter_context(written_alone(option, path, partial(_has, mark)))
            for option, (path, mark) in outputs.items()
            if path
        }
        diagnose(parsed.inputs, parsed.preset, files.get("--json"), files.get("--montage"), parsed.montage_scans)


def _has(mark: bytes, path: Path) -> bool:
    """Whether a file is one that this command wrote."""
    with path.open("rb") as file:
        return mark in file.read(MARK_BYTES)


def diagnose(inputs: Sequence[Path], preset: str, json_file: Path | None, montage: Path | None, shown: int) -> None:
    """Print the table, write JSON and montage. Raises BadDataError when more are bad than jobs.prepare would accept."""
    from ttepretrain.commands.montage import Montage
    from ttepretrain.volume.spec import VolumeConfig

    spec = VolumeConfig(preset=preset).resolve()
    scans = find_scans(inputs)
    pictures = Montage(spec, len(scans), shown) if montage else None
    findings = examine(scans, spec, pictures)
    unsealed = sum(scan.path.name.lower().endswith(".nii") for scan in scans)
    if json_file:
        write_json(json_file, document(findings, spec, preset, unsealed))
    say("\n".join(table(findings, unsealed)))
    if montage and pictures:
        say(pictures.save(montage))
    bad, limit = sum(finding.code is not None for finding in findings), most_bad(len(findings))
    if bad > limit:
        raise BadDataError(f"{bad} of {len(findings)} scans cannot be used; jobs.prepare would accept {limit:g}")


def examine(scans: Sequence[Scan], spec: VolumeSpec, pictures: Montage | None = None) -> list[Finding]:
    """One finding per scan. Each volume is shown to `pictures` and then dropped."""
    from ttepretrain.volume.checks import Flag
    from ttepretrain.volume.preprocess import preprocess_ct
    from ttepretrain.volume.refusal import read_or_refuse

    findings: list[Finding] = []
    content: dict[str, list[Finding]] = {}
    start = shown = time.monotonic()
    for position, scan in enumerate(scans):
        volume = read_or_refuse(preprocess_ct, scan.path, spec)
        if isinstance(volume, BadStudy):
            findings.append(Finding(position, str(volume.code), volume.detail))
        else:
            finding = Finding(position, None, None, volume.flags, dict(volume.acquisition), _quantities(volume))
            findings.append(finding)
            content.setdefault(hashlib.sha256(volume.hu_DHW.data).hexdigest(), []).append(finding)
            if pictures is not None:
                pictures.add(position, volume.hu_DHW)
        if (now := time.monotonic()) - shown >= LINE_SECONDS:
            shown, done = now, position + 1
            left = (now - start) / done * (len(scans) - done)
            log.info("%d/%d scans, %.0f s left", done, len(scans), left)
    for equal in content.values():
        for finding in equal if len(equal) > 1 else ():
            finding.flags = (*finding.flags, str(Flag.DUPLICATE_CONTENT))
    return findings


def _quantities(volume: Volume) -> dict[str, float]:
    import numpy as np

    values: dict[str, float] = {}
    for axis, mm, size in zip("DHW", volume.source_spacing_mm, volume.source_shape_DHW):
        values |= {f"spacing_{axis}_mm": mm, f"size_{axis}": size, f"extent_{axis}_mm": mm * size}
    levels = np.quantile(volume.hu_DHW[::2, ::2, ::2], list(HU_QUANTILES.values()))
    return {key: round(float(value), 3) for key, value in (values | dict(zip(HU_QUANTILES, levels))).items()}


def document(findings: Sequence[Finding], spec: VolumeSpec, preset: str, unsealed: int) -> dict[str, Any]:
    """Contents of the JSON file."""
    acquisitions = [finding.acquisition for finding in findings if finding.acquisition is not None]
    return {
        "volume_spec": {"preset": preset} | spec.to_json(),
        "scans": len(findings),
        "usable": len(acquisitions),
        **_counts(findings),
        "summary": _summary(findings),
        "acquisition": {key: _count(str(said[key]) for said in acquisitions) for key in SCANNER},
        "without_checksum": unsealed,
        "findings": [asdict(finding) for finding in findings],
    }


def table(findings: Sequence[Finding], unsealed: int) -> list[str]:
    """Lines for a person."""
    counts, summary = _counts(findings), _summary(findings)
    lines = [f"{len(findings)} scans, {sum(finding.code is None for finding in findings)} of them usable"]
    for title in ("reasons", "flags"):
        lines += (
            [f"{title}: none"] if not counts[title] else [title, *(f"  {n:6}  {k}" for k, n in counts[title].items())]
        )
    if summary:
        lines.append(f"{'of the usable':18}{'lowest':>10}{'median':>10}{'highest':>10}")
        lines += [
            f"  {name:16}" + "".join(f"{row[key]:10.4g}" for key in ("lowest", "median", "highest"))
            for name, row in summary.items()
        ]
    if unsealed:
        lines.append(f"{unsealed} scans are uncompressed NIfTI without a checksum: damaged voxels cannot be detected")
    return lines


def _counts(findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    return {
        "reasons": _count(finding.code for finding in findings if finding.code),
        "flags": _count(flag for finding in findings for flag in finding.flags),
    }


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _summary(findings: Sequence[Finding]) -> dict[str, dict[str, float]]:
    """Lowest, median and highest of every quantity over the usable scans; empty where there are none."""
    usable = [finding.quantities for finding in findings if finding.quantities is not None]
    summary = {}
    for name in QUANTITIES if usable else ():
        values = [quantities[name] for quantities in usable]
        summary[name] = {"lowest": min(values), "median": statistics.median(values), "highest": max(values)}
    return summary
