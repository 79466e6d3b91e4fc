"""A prepared folder whose volumes show which study they are of."""

import numpy as np

from data.prepared.random_folder import random_tables
from data.prepared.write import write_prepared
from ttepretrain.volume.spec import VolumeSpec

SPEC = VolumeSpec((14.0, 13.0, 12.0), (4, 5, 6), (-1024, 3071), ((-600.0, 1500.0),))
NUM_STUDIES = 31
UNLABELLED, WITHOUT_VOLUME = (3,), (0, 7)  # studies by their number


def write_folder(folder, split_of=lambda n: "tuning" if n % 6 == 5 else "train"):
    """prepared/ of 31 studies whose voxels all equal their number; labels random but reproducible."""
    splits = [split_of(n) for n in range(NUM_STUDIES)]
    tables, labels = random_tables(
        folder, splits, SPEC, lambda n: np.full(SPEC.shape_DHW, n, np.int16),
        unlabelled=UNLABELLED, without_volume=WITHOUT_VOLUME,
    )  # fmt: skip
    write_prepared(folder, tables, ["tasks.json"], SPEC)
    return folder, labels
