from itertools import pairwise

import numpy as np
import pytest
import torch

from ttepretrain.models.config import ModelConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.testing import tiny_model
from ttepretrain.training.config import TrainConfig
from ttepretrain.training.optim import parameter_groups, schedule
from ttepretrain.training.trainer import study_seeds


def test_rates_warm_up_then_fall_on_a_cosine():
    """100 steps with 10 of warm-up: the peak is reached at the end of warm-up, the last step is near 1 % of it."""
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert shares[9] == shares[10] == 1.0
    assert shares[55] == pytest.approx(0.01 + 0.99 / 2)
    assert 0.01 < shares[99] < 0.011
    assert all(a >= b for a, b in pairwise(shares[10:]))


def test_one_step_without_warmup_is_at_the_peak():
    assert schedule(0, 1, 0.05) == 1.0


def test_every_parameter_has_its_rate_and_decay_by_what_it_is():
    """Matrices and kernels: rate / fan-in (standardised: its root) and decay; norms, biases and the table: neither."""
    config = TrainConfig(lr=0.02, head_lr=0.3, weight_decay=0.1)
    model = tiny_model(np.zeros((4, 5), np.float32))
    model.encoder = build_encoder(ModelConfig(encoder="resnet18", norm="group_ws"), 1, 0)
    found = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, config):
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["peak_lr"], group["weight_decay"])
    assert found.keys() == set(names.values())
    parameters = dict(model.named_parameters())
    for name, (peak, decay) in found.items():
        in_head = name.startswith("head.")
        if name.endswith(".weight") and parameters[name].ndim >= 2:
            fan_in = parameters[name].numel() / parameters[name].shape[0]
            standardised = not in_head and name != "encoder.trunk.conv1.weight"
            assert peak == pytest.approx((0.3 if in_head else 0.02) / (fan_in**0.5 if standardised else fan_in))
            assert decay == 0.1
        else:
            assert (peak, decay) == (pytest.approx(0.003 if in_head else 0.002), 0.0)


def test_study_seeds_depend_on_study_epoch_and_run_alone():
    seeds = study_seeds(3, 5, torch.tensor([7, 8, 9]))
    assert torch.equal(study_seeds(3, 5, torch.tensor([9, 7])), seeds[[2, 0]])
    others = [study_seeds(*key, torch.tensor([7])).item() for key in ((3, 5), (5, 3), (3, 6), (4, 5))]
    assert len(set(others)) == 4
    assert (seeds >= 0).all()
