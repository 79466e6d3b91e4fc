"""A tiny export and some scans for the commands."""

import nibabel
import numpy as np
import pyarrow.parquet as parquet
import pytest

from ttepretrain.testing import write_tiny_export


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "export"
    write_tiny_export(folder)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three phantoms, oblique and anisotropic, and a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    for i, name in enumerate(["a.nii.gz", "sub/b.nii", "sub/c.nii.gz"]):
        shape = (56, 47, 41)
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
        radius = np.sqrt(((grid / np.array([0.8, 0.6 - 0.1 * i, 0.9])[:, None, None, None]) ** 2).sum(0))
        hu = np.where(radius < 0.4, -800, np.where(radius < 1, 40 + 20 * i, -1000)).astype(np.int16)
        affine = np.diag([5.0, 6.0, 7.0, 1.0])
        affine[0, 1] = 0.3
        (folder / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(hu, affine), folder / name)
    (folder / "bad.nii").write_bytes(b"not a scan")
    return folder


@pytest.fixture
def quarantine():
    """Rows of quarantine.parquet beside an output."""

    def read(output) -> list[dict]:
        return parquet.read_table(output.with_name("quarantine.parquet")).to_pylist()

    return read
