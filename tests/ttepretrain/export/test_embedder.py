"""Embedder: a scan's features are its own, whatever was embedded before or with it."""

import torch
from torch import nn

from ttepretrain.export.embedder import Embedder
from ttepretrain.models.encoder import Encoder
from ttepretrain.volume.spec import LUNG, VolumeSpec

SPEC = VolumeSpec((3.0, 2.0, 1.0), (9, 10, 11), (-1024, 3071), (LUNG,))


def test_batch_norm_is_used_as_it_was_left_by_training():
    """Nor does embedding move its statistics."""
    encoder = Encoder(nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU()), 4, 1, freeze_statistics=False)
    volume_BDHW = torch.randint(-1024, 500, (3, 9, 10, 11), generator=torch.Generator().manual_seed(0)).short()
    with torch.no_grad():
        encoder.train().features(volume_BDHW[:, None] / 1000)
    left = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    embedder = Embedder(encoder, SPEC)
    together, again, alone = (embedder.embed_hu(volume) for volume in (volume_BDHW, volume_BDHW, volume_BDHW[1:2]))
    assert torch.equal(together, again)
    torch.testing.assert_close(together[1:2], alone)
    assert all(torch.equal(tensor, left[name]) for name, tensor in encoder.state_dict().items())
