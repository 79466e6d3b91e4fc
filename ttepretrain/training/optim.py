"""DeepSpeed engine, AdamW and the learning rates."""

from __future__ import annotations

import logging
import math
import os
from types import ModuleType

import torch
from torch import nn

from ttepretrain.models.conv import StandardisedConv3d
from ttepretrain.training.config import TrainConfig
from ttepretrain.training.distributed import Ranks
from ttepretrain.training.engine import Engine

FINAL_LR = 0.01  # of the peak, where the cosine ends
# The loss is a mean over thousands of tasks and bins: an encoder weight's gradient is near 2e-9 (ResNet-18, 513 tasks),
# and AdamW's default of 1e-8 would all but stop it.
EPSILON = 1e-12
# Of train.lr and of train.head_lr: gains, biases and the bias table, which have no fan-in.
VECTOR_LR = 0.1
HEAD_VECTOR_LR = 0.01


def schedule(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Share of the peak at step 0 <= step < total: linear to 1, then half a cosine to FINAL_LR."""
    warmup = round(warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict]:
    """Groups of equal decay and peak rate.

    Adam moves every weight by about its rate, so the output of a layer with n inputs moves by about n times that. A
    matrix or kernel therefore takes rate / n (maximal update parametrisation, arXiv 2203.03466). With one rate for all,
    the widest layers drown the differences between studies in a common shift within 40 steps (docs/lab-log.md).
    A standardised kernel cannot do that; rate / sqrt(n) moves it, of norm 1 to 4 at the start, by at most the rate.
    Decay is on matrices and kernels alone.
    """
    standardised = {id(module.weight) for module in model.modules() if isinstance(module, StandardisedConv3d)}
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_head = "head" in name.split(".")
        rate = config.head_lr if in_head else config.encoder_lr
        if parameter.ndim >= 2 and name.endswith(".weight"):
            # The key is the network's alone, so that a run may resume under other rates.
            fan_in = parameter[0].numel()
            is_standardised = id(parameter) in standardised
            key: tuple = (in_head, fan_in, is_standardised)
            peak, decay = rate / (math.sqrt(fan_in) if is_standardised else fan_in), config.weight_decay
        else:
            key, peak, decay = (in_head,), rate * (HEAD_VECTOR_LR if in_head else VECTOR_LR), 0.0
        groups.setdefault(key, {"params": [], "weight_decay": decay, "peak_lr": peak})["params"].append(parameter)
    return list(groups.values())


def start_engine(model: nn.Module, ranks: Ranks, config: TrainConfig) -> Engine:
    """DeepSpeed engine around `model`. It updates fp32 weights; lower precision is the model's own autocast."""
    deepspeed = _import_deepspeed()
    # fused: on CPUs foreach takes several times as long.
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=0.0, eps=EPSILON, fused=True)
    settings = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // ranks.world,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Stage 0 is clipped by apply_gradients: DeepSpeed keeps the norm it computes there to itself.
        "gradient_clipping": config.grad_clip if config.zero_stage else 0.0,
        "steps_per_print": None,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    # Nothing to reduce in one process: saves a copy of all gradients.
    engine.enable_backward_allreduce = ranks.world > 1 or config.zero_stage > 0
    return engine


def refresh_groups(engine: Engine, config: TrainConfig) -> None:
    """Peak rates and decay of this configuration; loading a checkpoint brings back those it was written with."""
    for group, fresh in zip(engine.optimizer.param_groups, parameter_groups(engine.module, config), strict=True):
        group |= {key: fresh[key] for key in ("weight_decay", "peak_lr")}


def set_learning_rates(engine: Engine, step: int, total_steps: int, config: TrainConfig) -> float:
    """Rates of this step for every group; returns `train.lr`'s own, for the record."""
    share = schedule(step, total_steps, config.warmup_fraction)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    return config.encoder_lr * share


def apply_gradients(engine: Engine, grad_clip: float) -> float | None:
    """Clip, step, and return the gradient's norm before clipping; None when it is not finite: no rank has stepped."""
    if engine.zero_optimization_stage() > 0:
        engine.step()
        return float(engine.get_global_grad_norm()) if engine.was_step_applied() else None
    norm = nn.utils.clip_grad_norm_(engine.module.parameters(), grad_clip)
    if not torch.isfinite(norm):
        engine.zero_grad()
        return None
    engine.step()
    return float(norm)


def _import_deepspeed() -> ModuleType:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # No operator of its own is wanted: else init_distributed runs the compiler to see which ones could be built, and
    # then compiles a shared-memory all-reduce for 90 s. gloo and NCCL reduce our gradients.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(verbose=False)  # takes over the process group that exists
    return deepspeed
