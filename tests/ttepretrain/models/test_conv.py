import pytest
import torch
from torch import nn

from ttepretrain.models.config import ModelConfig
from ttepretrain.models.conv import SmallMapConv3d, multiply_small_maps
from ttepretrain.models.encoder import build_encoder


@pytest.mark.parametrize("shape_DHW", [(1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 3, 2), (1, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_matrix_product_equals_convolution(shape_DHW, bias):
    """Output and all gradients in float64, on both sides of the size limit."""
    torch.manual_seed(0)
    reference = nn.Conv3d(3, 5, 3, padding=1, bias=bias).double()
    small = nn.Conv3d(3, 5, 3, padding=1, bias=bias).double()
    small.load_state_dict(reference.state_dict())
    multiply_small_maps(small)
    assert type(small) is SmallMapConv3d
    x = torch.randn(2, 3, *shape_DHW, dtype=torch.float64, requires_grad=True)
    results = []
    for network in (reference, small):
        y = network(x)
        gradients = torch.autograd.grad(
            (y * torch.linspace(0, 1, y.numel()).view_as(y)).sum(), [x, *network.parameters()]
        )
        results.append([y, *gradients])
    for expected, got in zip(*results):
        torch.testing.assert_close(got, expected)


def test_other_convolutions_are_left_alone():
    """Strides, groups, dilation and other kernels keep PyTorch's own class."""
    others = nn.Sequential(
        nn.Conv3d(2, 2, 3, padding=1, stride=2), nn.Conv3d(2, 2, 3, padding=1, groups=2), nn.Conv3d(2, 2, 1),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="replicate"), nn.Conv3d(2, 2, 3),
        nn.Conv3d(2, 2, 3, dilation=2, padding=1),
    )  # fmt: skip
    multiply_small_maps(others)
    assert {type(module) for module in others} == {nn.Conv3d}
    assert any(isinstance(m, SmallMapConv3d) for m in build_encoder(ModelConfig(encoder="resnet18"), 1, 0).modules())
