"""`ttepretrain doctor`: what would become of scans, before anything is spent on them.

    find_scans -> preprocess_ct, one scan at a time -> reasons, flags, geometry, HU -> table, JSON, montage

Scans are named by their position in find_scans' order (sorted paths), never by key or path.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ttepretrain.commands.scans import Scan, find_scans, most_bad
from ttepretrain.errors import BadDataError, BadStudy, unexpected
from ttepretrain.files import write_json
from ttepretrain.volume.preprocess import Volume, preprocess_ct
from ttepretrain.volume.spec import VolumeConfig, VolumeSpec

LINE_SECONDS = 10.0
DUPLICATE_CONTENT = "DUPLICATE_CONTENT"  # the flag that jobs.prepare writes too
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
    """What one scan is; `position` counts from 0. A refused scan has a code and a detail, a usable one the rest."""

    position: int
    code: str | None = None
    detail: str | None = None
    flags: tuple[str, ...] = ()
    acquisition: dict | None = None
    quantities: dict[str, float] | None = None  # QUANTITIES: of the scan's own grid; HU: on the network's grid


def diagnose(inputs: Sequence[Path], preset: str, json_file: Path | None, montage: Path | None, shown: int) -> None:
    """Print the table, write JSON and montage. Raises BadDataError when more are bad than jobs.prepare would accept."""
    from ttepretrain.commands.montage import Montage

    spec = VolumeConfig(preset=preset).resolve()
    scans = find_scans(inputs)
    pictures = Montage(spec, len(scans), shown) if montage else None
    findings = examine(scans, spec, pictures)
    unsealed = sum(scan.path.name.lower().endswith(".nii") for scan in scans)
    print("\n".join(table(findings, unsealed)), flush=True)
    if json_file:
        write_json(json_file, document(findings, spec, preset, unsealed))
    if pictures:
        print(pictures.save(montage))
    bad, limit = sum(finding.code is not None for finding in findings), most_bad(len(findings))
    if bad > limit:
        raise BadDataError(f"{bad} of {len(findings)} scans cannot be used; jobs.prepare would accept {limit:g}")


def examine(scans: Sequence[Scan], spec: VolumeSpec, pictures=None) -> list[Finding]:
    """One finding per scan; each volume that is read is shown to `pictures` (a Montage) and dropped."""
    findings: list[Finding] = []
    content: dict[str, list[Finding]] = {}
    start = shown = time.monotonic()
    for position, scan in enumerate(scans):
        try:
            volume = preprocess_ct(scan.path, spec)
        except BadStudy as refusal:
            findings.append(Finding(position, str(refusal.code), refusal.detail))
        except OSError as error:
            findings.append(Finding(position, "UNREADABLE", error.strerror or type(error).__name__))
        except Exception as error:
            refusal = unexpected(error)
            findings.append(Finding(position, refusal.code, refusal.detail))
        else:
            finding = Finding(position, None, None, volume.flags, dict(volume.acquisition), _quantities(volume))
            findings.append(finding)
            content.setdefault(hashlib.sha256(volume.hu_DHW).hexdigest(), []).append(finding)
            if pictures is not None:
                pictures.add(position, volume.hu_DHW)
        if (now := time.monotonic()) - shown >= LINE_SECONDS:
            shown, done = now, position + 1
            left = (now - start) / done * (len(scans) - done)
            print(f"{done}/{len(scans)} scans, {left:.0f} s left", file=sys.stderr, flush=True)
    for equal in content.values():
        for finding in equal if len(equal) > 1 else ():
            finding.flags = (*finding.flags, DUPLICATE_CONTENT)
    return findings


def _quantities(volume: Volume) -> dict[str, float]:
    values = {}
    for axis, mm, size in zip("DHW", volume.source_spacing_mm, volume.source_shape_DHW):
        values |= {f"spacing_{axis}_mm": mm, f"size_{axis}": size, f"extent_{axis}_mm": mm * size}
    levels = np.quantile(volume.hu_DHW[::2, ::2, ::2], list(HU_QUANTILES.values()))
    return {key: round(float(value), 3) for key, value in (values | dict(zip(HU_QUANTILES, levels))).items()}


def document(findings: Sequence[Finding], spec: VolumeSpec, preset: str, unsealed: int) -> dict:
    """Contents of the JSON file."""
    counts = _counts(findings)
    usable = [finding for finding in findings if finding.code is None]
    acquisition = {
        key: _count([str(finding.acquisition[key]) for finding in usable])
        for key in ("manufacturer", "kvp", "contrast")
    }
    return {
        "volume_spec": {"preset": preset} | spec.to_json(),
        "scans": len(findings),
        "usable": len(usable),
        **counts,
        "summary": _summary(usable),
        "acquisition": acquisition,
        "without_checksum": unsealed,
        "findings": [asdict(finding) for finding in findings],
    }


def table(findings: Sequence[Finding], unsealed: int) -> list[str]:
    """Lines for a person."""
    counts, usable = _counts(findings), [finding for finding in findings if finding.code is None]
    lines = [f"{len(findings)} scans, {len(usable)} of them usable"]
    for title in ("reasons", "flags"):
        lines += (
            [f"{title}: none"] if not counts[title] else [title, *(f"  {n:6}  {k}" for k, n in counts[title].items())]
        )
    if usable:
        lines.append(f"{'of the usable':18}{'lowest':>10}{'median':>10}{'highest':>10}")
        lines += [
            f"  {name:16}" + "".join(f"{row[key]:10.4g}" for key in ("lowest", "median", "highest"))
            for name, row in _summary(usable).items()
        ]
    if unsealed:
        lines.append(
            f"{unsealed} scans are uncompressed NIfTI, which carries no checksum: damage in the voxels is not seen"
        )
    return lines


def _counts(findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    return {
        "reasons": _count([finding.code for finding in findings if finding.code]),
        "flags": _count([flag for finding in findings for flag in finding.flags]),
    }


def _count(names: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _summary(usable: Sequence[Finding]) -> dict[str, dict[str, float]]:
    summary = {}
    for name in QUANTITIES if usable else ():
        values = [finding.quantities[name] for finding in usable]
        summary[name] = {"lowest": min(values), "median": statistics.median(values), "highest": max(values)}
    return summary
