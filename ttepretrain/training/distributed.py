"""The processes of one run: who this one is, and the few collectives training needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ttepretrain.errors import ConfigError, DeclaredError

Result = TypeVar("Result")
TIMEOUT = timedelta(minutes=10)  # a rank that waits longer for its peers gives up


class Ranks:
    """This process among `world`. Every method is collective: all ranks call it, in the same order."""

    def __init__(self, rank: int, world: int, device: torch.device):
        self.rank, self.world, self.device = rank, world, device

    def sum(self, *values: torch.Tensor | float) -> list[float]:
        """Sums over ranks. float64: counts of cells are exact up to 2^53, and one message carries them all."""
        packed = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values])
        dist.all_reduce(packed)
        return packed.tolist()

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks, bit for bit the same on all of them."""
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def first(self, function: Callable[[], Result]) -> Result:
        """What `function` returns on rank 0; a DeclaredError there is raised on every rank."""
        outcome: list = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except DeclaredError as error:
                outcome[1] = error
        if self.world > 1:
            dist.broadcast_object_list(outcome, src=0, device=self.device)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def barrier(self) -> None:
        self.sum(0.0)

    def close(self) -> None:
        dist.destroy_process_group()


def place(environment: dict[str, str]) -> tuple[int, int, int]:
    """(rank, world, local rank) from the environment of torchrun, deepspeed or srun; (0, 1, 0) without a launcher."""
    try:
        if "RANK" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        elif "SLURM_STEP_ID" in environment:  # a step, not the batch script: that one also has SLURM_PROCID
            names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        else:
            return 0, 1, 0
        rank, world, local = (int(environment[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{', '.join(names)} must all be set to whole numbers; {error}") from None
    if world > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise ConfigError(f"{world} processes need MASTER_ADDR and MASTER_PORT; start them with torchrun or deepspeed")
    return rank, world, local


def connect() -> Ranks:
    """Join the run's process group (NCCL on GPUs, gloo on CPUs) and take this process's device."""
    rank, world, local = place(dict(os.environ))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True  # a resumed run repeats the uninterrupted one bit for bit
    backend = "nccl" if cuda else "gloo"
    os.environ["LOCAL_RANK"] = str(local)  # DeepSpeed wants it set, also under srun or alone
    if (world == 1 or os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost")) and sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    if world == 1:
        # In-process store: one process connects to nothing. Gloo still listens, on loopback, for peers it has not.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=TIMEOUT)
    return Ranks(rank, world, device)
