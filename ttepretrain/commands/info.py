"""`ttepretrain info`: what an export contains."""

from __future__ import annotations

import argparse

from ttepretrain.commands.arguments import path_given
from ttepretrain.commands.say import say
from ttepretrain.plain_text import MOST, plain

SUMMARY = "show what an export contains"
DESCRIPTION = """\
Show the encoder, the volume spec, the tasks and the provenance of an export.
Every checksum of the export is verified first."""
EXAMPLE = "runs/default/pretrain/tte/export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=path_given, metavar="EXPORT", help="export folder, as written by pretraining")


def run(parsed: argparse.Namespace) -> None:
    """Print one line per property."""
    from ttepretrain.export.folder import read_export

    export = read_export(parsed.export)
    spec, tasks = export.spec, export.tasks
    lines = {
        "encoder": f"{export.model.encoder}, norm {export.model.norm}, {export.feature_dim} features",
        "shape D H W": " x ".join(map(str, spec.shape_DHW)) + " voxels",
        "spacing D H W": " x ".join(f"{mm:g}" for mm in spec.spacing_mm) + " mm",
        "HU": f"{spec.hu_range[0]} to {spec.hu_range[1]}",
        "windows": ", ".join(f"centre {centre:g} width {width:g}" for centre, width in spec.windows),
        "tasks": f"{tasks.num_tasks}; the first: {', '.join(plain(code, MOST) for code in tasks.codes[:3])}",
        "bin edges": ", ".join(f"{edge:g}" for edge in tasks.bin_edges_days) + " days",
        "at risk": f"after day {tasks.blackout_days:g}, recurrence {tasks.recurrence}",
        "fitted on": f"{tasks.fitted_on.get('count')} train subjects",
        **{f"provenance {key}": value for key, value in export.provenance.items()},
        **{f"version {key}": value for key, value in export.versions.items()},
        "fingerprint": export.fingerprint,
    }
    shown = {plain(key, 40): plain(value, 4 * MOST) for key, value in lines.items()}  # an export is somebody else's
    width = max(map(len, shown))
    say("\n".join(f"{key:{width}}  {value}" for key, value in shown.items()))
    if export.synthetic:
        say("Trained on synthetic data: the weights know nothing about patients.")
