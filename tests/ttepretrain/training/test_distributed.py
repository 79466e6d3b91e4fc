import sys
from pathlib import Path

import pytest

from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.testing import run_distributed
from ttepretrain.training.distributed import connect, place

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (3, 4, 1)),
        (SRUN | {"MASTER_ADDR": "h", "MASTER_PORT": "1"}, (3, 4, 1)),
        (TORCHRUN | SRUN | {"SLURM_PROCID": "0"}, (3, 4, 1)),  # torchrun inside of srun
        (BATCH_SCRIPT, (0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0)),
    ],
)
def test_place_of_a_process(environment, expected):
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "RANK, WORLD_SIZE, LOCAL_RANK must all be set"),
        (TORCHRUN | {"WORLD_SIZE": "four"}, "whole numbers"),
        (SRUN, "MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_half_an_environment_is_refused(environment, message):
    with pytest.raises(ConfigError, match=message):
        place(environment)


def fail_on_first() -> str:
    ranks = connect()
    assert ranks.sum(ranks.rank + 1, 2**40) == [3.0, 2.0**41]
    assert ranks.first(lambda: f"from {ranks.rank}") == "from 0"

    def refuse() -> None:
        raise IntegrityError("in use")

    try:
        ranks.first(refuse)
    except IntegrityError as error:
        return str(error)
    finally:
        ranks.close()
    return "nothing"


@pytest.mark.slow
def test_sums_and_errors_reach_every_rank():
    assert run_distributed(fail_on_first, 2) == ["in use", "in use"]


def listening() -> list[str]:
    """Addresses that a process of its own listens on, as /proc/net/tcp has them."""
    ranks = connect()
    ranks.sum(1.0)
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    own = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    ranks.close()
    return [row[1].split(":")[0] for row in rows if row[9] in own and row[3] == "0A"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_single_process_listens_on_loopback_alone():
    ((*addresses,),) = run_distributed(listening, 1)
    assert set(addresses) <= {"0100007F"}
