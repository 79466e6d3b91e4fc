"""DeepSpeed engine, AdamW and the learning rate."""

from __future__ import annotations

import logging
import math
import os

import torch
from torch import nn

from ttepretrain.training.distributed import Ranks

FINAL_LR = 0.01  # of the peak, where the cosine ends
# The loss is a mean over thousands of tasks and bins: an encoder weight's gradient is near 2e-9 (ResNet-18, 513 tasks),
# and AdamW's default of 1e-8 would all but stop it.
EPSILON = 1e-12


def learning_rate(step: int, total_steps: int, warmup_fraction: float, peak: float) -> float:
    """Rate of step 0 <= step < total: linear from 0 (excluded) to the peak, then half a cosine to FINAL_LR * peak."""
    warmup = round(warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * (FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay on matrices and kernels; none on norms, biases and the head's bias table (a table of log rates)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim >= 2 and name.rpartition(".")[2] == "weight"]
    kept = {id(p) for p in decayed}
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for _, p in named if id(p) not in kept], "weight_decay": 0.0},
    ]


def start_engine(
    model: nn.Module, ranks: Ranks, zero_stage: int, batch_size: int, weight_decay: float, grad_clip: float
):
    """DeepSpeed engine around `model`. It updates fp32 weights; lower precision is the model's own autocast."""
    deepspeed = _import_deepspeed()
    # fused: 21 ms for the 33 M parameters of a ResNet-18 on two cores, against 214 ms for foreach (November 2026).
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=0.0, eps=EPSILON, fused=True)
    settings = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // ranks.world,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Stage 0 is clipped by apply_gradients: DeepSpeed keeps the norm it computes there to itself.
        "gradient_clipping": grad_clip if zero_stage else 0.0,
        "steps_per_print": None,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    # Nothing to reduce in one process: saves a copy of all gradients.
    engine.enable_backward_allreduce = ranks.world > 1 or zero_stage > 0
    return engine


def set_learning_rate(engine, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def apply_gradients(engine, grad_clip: float) -> float | None:
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


def _import_deepspeed():
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # No operator of its own is wanted: else init_distributed runs the compiler to see which ones could be built, and
    # then compiles a shared-memory all-reduce for 90 s. gloo and NCCL reduce our gradients.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(verbose=False)  # takes over the process group that exists
    return deepspeed
