"""How the network is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ttepretrain.config import require, require_choice

ARMS = ("tte", "visit", "mtl", "ssl")  # ttepretrain/training/objectives
STARTS = ("base_random", "base")  # in evaluations: encoders before their first step, of random weights or loaded ones

DEFAULT_LR, DEFAULT_LR_OF = 0.01, {"swin_unetr": 0.001}  # at .01 its first steps make all studies alike
# Fields of TrainConfig that may change between two starts of a run; every other one decides the weights.
# The arm names the run's folder, and the checkpoint checks the ZeRO stage itself.
NOT_IDENTITY = frozenset(
    {
        "arm", "max_steps", "zero_stage", "checkpoint_minutes", "keep_checkpoints", "max_bad_steps", "log_seconds",
        "allow_change",
    }
)  # fmt: skip


@dataclass
class TrainConfig:
    arm: str = "tte"  # what the encoder learns: tte | visit | mtl | ssl (docs/reference/training.md)
    epochs: int = 20  # passes over the train studies
    max_steps: int | None = None  # stop after this many steps; None: `train.epochs` decides
    batch_size: int = 8  # studies per optimizer step, over all processes together
    # peak rate of the encoder; a kernel with n inputs takes lr / n, a standardised one lr / sqrt(n)
    lr: float | None = None  # None: .01, for swin_unetr .001; set .001 for deep networks with group_ws
    head_lr: float = 0.02  # peak rate of the head; a matrix with n inputs takes head_lr / n
    warmup_fraction: float = 0.05  # share of the steps with a linear rise; then a cosine to 1 % of the peak
    head_fit_studies: int = 1024  # train studies to fit the head to before the first step; 0: no fit
    head_fit_deviation: float = 0.5  # prior of that fit: standard deviation of a task's log hazard between studies
    weight_decay: float = 0.05  # of matrices and kernels; none on norms, biases and the bias table
    grad_clip: float = 1.0  # largest global norm of the gradient
    precision: str = "auto"  # fp32 | bf16 | auto: bf16 where the device computes it and a self-test agrees with fp32
    zero_stage: int = 0  # DeepSpeed ZeRO, what is sharded: 0 nothing, 1 optimizer, 2 and gradients, 3 and weights
    augment: float = 1.0  # share of the augmentation's limits (docs/reference/volumes.md), 0 to 2; 0: none
    augment_flip: float = 0.0  # share of views mirrored left to right; 0: none, since the sides of a body differ
    augment_blur: float = 0.0  # largest standard deviation of a view's Gaussian blur, in voxels; 0: none
    seed: int = 0  # of weights, order of the studies and augmentation
    checkpoint_minutes: float = 10.0  # minutes between checkpoints, 0: after every step; one more after every epoch
    keep_checkpoints: int = 3  # number of newest checkpoints to keep
    max_bad_steps: int = 10  # skipped steps (loss or gradient not finite) before the run ends with exit code 6
    log_seconds: float = 10.0  # seconds between progress lines in a log file
    allow_change: list[str] | None = None  # keys that may differ from those of the checkpoint; None: none

    def __post_init__(self) -> None:
        require_choice("train.arm", self.arm, ARMS)
        require_choice("train.precision", self.precision, ("auto", "fp32", "bf16"))
        require(self.epochs >= 1, "train.epochs", self.epochs, "must be at least 1")
        require(self.max_steps is None or self.max_steps >= 1, "train.max_steps", self.max_steps, "must be at least 1")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, "must be at least 1")
        require(self.lr is None or 0 < self.lr < 1, "train.lr", self.lr, "must lie between 0 and 1")
        require(0 < self.head_lr < 1, "train.head_lr", self.head_lr, "must lie between 0 and 1")
        require(self.head_fit_studies >= 0, "train.head_fit_studies", self.head_fit_studies, "must not be negative")
        require(self.head_fit_deviation > 0, "train.head_fit_deviation", self.head_fit_deviation, "must be positive")
        require(0 <= self.warmup_fraction < 1, "train.warmup_fraction", self.warmup_fraction, "must lie in [0, 1)")
        require(0 <= self.augment <= 2, "train.augment", self.augment, "must lie between 0 and 2")
        require(0 <= self.augment_flip <= 1, "train.augment_flip", self.augment_flip, "must lie between 0 and 1")
        require(0 <= self.augment_blur <= 5, "train.augment_blur", self.augment_blur, "must lie between 0 and 5")
        require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "must not be negative")
        require(self.seed >= 0, "train.seed", self.seed, "must not be negative")
        require(
            self.checkpoint_minutes >= 0, "train.checkpoint_minutes", self.checkpoint_minutes, "must not be negative"
        )
        require(self.max_bad_steps >= 0, "train.max_bad_steps", self.max_bad_steps, "must not be negative")
        require(self.log_seconds > 0, "train.log_seconds", self.log_seconds, "must be positive")
        require(self.grad_clip > 0, "train.grad_clip", self.grad_clip, "must be positive")
        require(self.zero_stage in (0, 1, 2, 3), "train.zero_stage", self.zero_stage, "must be 0, 1, 2 or 3")
        require(self.keep_checkpoints >= 1, "train.keep_checkpoints", self.keep_checkpoints, "must be at least 1")

    def peak_lr(self, encoder: str) -> float:
        """`lr`, or this encoder's default where it is None."""
        return DEFAULT_LR_OF.get(encoder, DEFAULT_LR) if self.lr is None else self.lr

    def resolve(self, encoder: str, precision: str) -> TrainConfig:
        """A copy with what None and `auto` stand for: the encoder's rate, and the precision that was chosen."""
        return replace(self, lr=self.peak_lr(encoder), precision=precision)

    @property
    def encoder_lr(self) -> float:
        """Peak rate of the encoder, of a configuration that is resolved."""
        assert self.lr is not None, "resolve sets the rate"
        return self.lr

    def identity(self) -> dict[str, object]:
        """The values that decide the weights, of a configuration that is resolved."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_IDENTITY}
