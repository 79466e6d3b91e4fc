from itertools import product

import pytest
import torch
from torch import nn

from ttepretrain.models.config import ModelConfig
from ttepretrain.models.conv import SmallMapConv3d, StandardisedConv3d, multiply_small_maps, standardise_kernels
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
    """Groups, dilation, other paddings and kernels of one voxel keep PyTorch's own class."""
    others = nn.Sequential(
        nn.Conv3d(2, 2, 3, padding=1, groups=2), nn.Conv3d(2, 2, 1), nn.Conv3d(2, 2, 3, dilation=2, padding=1),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="replicate"), nn.Conv3d(2, 2, 3, padding="same"),
    )  # fmt: skip
    multiply_small_maps(others)
    assert {type(module) for module in others} == {nn.Conv3d}
    assert any(isinstance(m, SmallMapConv3d) for m in build_encoder(ModelConfig(encoder="resnet18"), 1, 0).modules())


SMALL_MAPS = [*product((1, 2, 3), repeat=3), (2, 6, 6), (5, 1, 1), (3, 5, 2), (6, 6, 2), (7, 4, 5)]
NATIVE_BF16 = torch.cpu._is_avx512_bf16_supported()


def _output_and_gradients(layer, x, bf16=False):
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = layer(x)
    slope = torch.linspace(-8, 8, y.numel()).sin().view_as(y) + 1.5
    return [y.double(), *(g.double() for g in torch.autograd.grad(y, [x, *layer.parameters()], slope.to(y.dtype)))]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (7, 2), ((3, 7, 7), (1, 2, 2))])
@pytest.mark.parametrize(
    "bf16", [False, pytest.param(True, marks=pytest.mark.skipif(not NATIVE_BF16, reason="no bf16 in this processor"))]
)
def test_maps_shorter_than_the_kernel_give_right_values_and_gradients(kernel, stride, bf16):
    """Against float64, in fp32 and bf16. oneDNN's own differ by 1 to infinity, for example on 2 x 6 x 6."""
    torch.manual_seed(0)
    padding = tuple(size // 2 for size in kernel) if isinstance(kernel, tuple) else kernel // 2
    layer = nn.Conv3d(16, 16, kernel, stride=stride, padding=padding)
    exact = nn.Conv3d(16, 16, kernel, stride=stride, padding=padding).double()
    exact.load_state_dict(layer.state_dict())
    multiply_small_maps(layer)
    for shape_DHW in SMALL_MAPS:
        x = torch.randn(2, 16, *shape_DHW)
        for expected, got in zip(_output_and_gradients(exact, x.double()), _output_and_gradients(layer, x, bf16)):
            assert (got - expected).norm() <= (1e-2 if bf16 else 1e-5) * expected.norm(), shape_DHW


@pytest.mark.parametrize("shape_DHW", [(2, 2, 2), (5, 4, 3)])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"kernel_size": 1, "stride": 2}])
def test_a_standardised_convolution_is_one_with_kernels_of_mean_0_and_norm_root_2(shape_DHW, options):
    """Against the definition with torch.std_mean, outputs and gradients, small maps too; the first layer stays."""
    torch.manual_seed(0)
    first, layer = nn.Conv3d(1, 3, 1), nn.Conv3d(3, 5, **{"kernel_size": 3, **options})
    network = nn.Sequential(first, layer).double()
    standardise_kernels(network)
    assert [type(module) for module in network] == [nn.Conv3d, StandardisedConv3d]
    x = torch.randn(2, 3, *shape_DHW, dtype=torch.float64, requires_grad=True)
    kernels = layer.weight.flatten(1)
    deviation, mean = torch.std_mean(kernels, dim=1, keepdim=True, correction=0)
    defined = ((kernels - mean) / deviation * (2 / kernels.shape[1]) ** 0.5).view_as(layer.weight)
    expected = nn.functional.conv3d(x, defined, layer.bias, layer.stride, layer.padding)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(0, 1, found.numel(), dtype=torch.float64).view_as(found)
    inputs = [x, layer.weight, layer.bias]
    for a, b in zip(torch.autograd.grad((found * weights).sum(), inputs),
                    torch.autograd.grad((expected * weights).sum(), inputs)):  # fmt: skip
        torch.testing.assert_close(a, b)


def test_standardised_kernels_do_not_see_a_level_that_all_inputs_share():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 1), nn.Conv3d(4, 5, 3))
    standardise_kernels(network)
    x = torch.randn(2, 4, 5, 5, 5)
    torch.testing.assert_close(network[1](x + 30), network[1](x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.037, 1.0])
def test_a_kernel_of_equal_weights_becomes_zero_and_gets_no_gradient(level):
    """Rounding leaves differences between equal weights; scaled up they would be noise of full size."""
    network = nn.Sequential(nn.Conv3d(1, 3, 1), nn.Conv3d(3, 2, 3, bias=False))
    standardise_kernels(network)
    nn.init.constant_(network[1].weight, level)
    found = network[1](torch.randn(1, 3, 4, 4, 4))
    assert (found == 0).all()
    (slope,) = torch.autograd.grad(found.sum(), network[1].weight)
    assert (slope == 0).all()


# the compiler's own, of how it looks at our function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_compiler_takes_a_network_of_standardised_kernels_as_one_graph():
    """`compiled` of `make bench-gpu`: forward and backward as in eager mode, here without generated code."""
    encoder = build_encoder(ModelConfig("resnet18", norm="group_ws"), in_channels=1, seed=0)
    x_BCDHW = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = []
    for run in (encoder.features, torch.compile(encoder.features, backend="aot_eager", fullgraph=True)):
        encoder.zero_grad()
        features_BF = run(x_BCDHW)
        features_BF.square().sum().backward()
        found.append([features_BF.detach(), *(weight.grad.clone() for weight in encoder.parameters())])
    for eager, compiled in zip(*found):
        torch.testing.assert_close(compiled, eager)
