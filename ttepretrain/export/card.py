"""README.md of an export: a model card in the Hub's layout, without institution, dates or places."""

from __future__ import annotations

from ttepretrain.models.config import ModelConfig
from ttepretrain.tasks import TaskSet
from ttepretrain.volume.spec import VolumeSpec

CARD = """\
---
library_name: ttepretrain
pipeline_tag: image-feature-extraction
tags:
- computed-tomography
- medical-imaging
- survival-analysis
- time-to-event
---
# {encoder}, pretrained on {supervision}
{synthetic}
{content}

| | |
|---|---|
| bin edges | {edges} days |
| at risk | after day {blackout:g}; recurrence: {recurrence} |
| input | CT in HU, {shape} voxels of {spacing} mm (D H W: inferior-superior, posterior-anterior, left-right) |
| channels (centre, width in HU) | {windows} |
| output of the encoder | {feature_dim} features |
| normalisation | {norm} |

## Use

```python
from ttepretrain import load_encoder

encoder = load_encoder("this/folder")
features = encoder.embed(["scan.nii.gz", "dicom_folder"])  # reads, orients, resamples and windows as in training
```

or `ttepretrain embed this/folder scans/ -o embeddings.parquet`.

`tasks.json` lists the codes{prepared} with prevalence, events and rate in the training data; `manifest.json` has the
checksums.

## Limits

- Research use; not a medical device. Hazards are those of the training population and need recalibration elsewhere.
- Features may encode scanner, protocol and demographics as well as disease. Check before relying on them.
- Embeddings of patients are personal data. Keep them as you keep the scans.

## To be completed by the publisher

Training population and follow-up, licence, evaluation, contact.
"""

SYNTHETIC = """
> **Trained on synthetic data.** The weights show that the software works. They know nothing about patients.
"""


TTE = """\
A 3D CT encoder and the head that trained it: for {num_tasks} codes of health records, the hazard of the first
occurrence after the scan in {num_bins} time bins."""

SUPERVISION = {
    "tte": "time-to-event supervision",
    "visit": "the codes of the scan's own visit",
    "mtl": "clinical phenotypes",
    "ssl": "masked reconstruction",
}


def model_card(
    config: ModelConfig, feature_dim: int, spec: VolumeSpec, tasks: TaskSet, synthetic: bool, arm: str
) -> str:
    content = TTE.format(num_tasks=tasks.num_tasks, num_bins=tasks.num_bins)
    return CARD.format(
        supervision=SUPERVISION[arm],
        content=content if arm == "tte" else f"A 3D CT encoder alone; what trained it (arm `{arm}`) stayed behind.",
        prepared="" if arm in ("tte", "visit") else ", which took no part in the training,",
        encoder=config.encoder,
        norm=config.norm,
        feature_dim=feature_dim,
        synthetic=SYNTHETIC if synthetic else "",
        edges=", ".join(f"{edge:g}" for edge in tasks.bin_edges_days),
        blackout=tasks.blackout_days,
        recurrence=tasks.recurrence,
        shape=" x ".join(str(n) for n in spec.shape_DHW),
        spacing=" x ".join(f"{mm:g}" for mm in spec.spacing_mm),
        windows="; ".join(f"({centre:g}, {width:g})" for centre, width in spec.windows),
    )
