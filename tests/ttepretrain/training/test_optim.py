from itertools import pairwise

import numpy as np
import pytest
import torch

from ttepretrain.testing import tiny_model
from ttepretrain.training.optim import learning_rate, parameter_groups
from ttepretrain.training.trainer import augmentation_seeds


def test_learning_rate_warms_up_then_falls_on_a_cosine():
    """100 steps with 10 of warm-up: the peak is reached at the end of warm-up, the last step is near 1 % of it."""
    rates = [learning_rate(step, 100, 0.1, 2.0) for step in range(100)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert 0.02 < rates[99] < 0.022
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_one_step_without_warmup_is_at_the_peak():
    assert learning_rate(0, 1, 0.05, 0.5) == 0.5


def test_decay_is_on_matrices_and_kernels_only():
    """Every parameter is in one group; norms, biases and the table of log hazards are never pulled to zero."""
    model = tiny_model(np.zeros((4, 5), np.float32))
    decayed, kept = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)] for p in decayed["params"]} == {
        "encoder.trunk.0.weight", "encoder.trunk.3.weight", "head.expand.weight", "head.project.weight",
    }  # fmt: skip
    assert "head.bias_TK" in {names[id(p)] for p in kept["params"]}
    assert len(names) == len(decayed["params"]) + len(kept["params"])


def test_augmentation_seeds_depend_on_study_epoch_and_run_alone():
    seeds = augmentation_seeds(3, 5, torch.tensor([7, 8, 9]))
    assert torch.equal(augmentation_seeds(3, 5, torch.tensor([9, 7])), seeds[[2, 0]])
    others = [augmentation_seeds(*key, torch.tensor([7])).item() for key in ((3, 5), (5, 3), (3, 6), (4, 5))]
    assert len(set(others)) == 4
    assert (seeds >= 0).all()
