"""Where an encoder's weights start: an export of ours, or a weight file in a public layout.

A layout maps the file's names to ours and names the parts that the encoder does not have. All else must match.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ttepretrain.documents import open_regular
from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.log import log
from ttepretrain.models.config import MOST_WEIGHT_BYTES, ModelConfig
from ttepretrain.models.weights import load_strict
from ttepretrain.plain_text import plain

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar")
COUNTER = "num_batches_tracked"  # of BatchNorm: files of before 2018 lack it, and frozen statistics do not read it


@dataclass(frozen=True)
class Layout:
    """How the names of a public weight file become the names of our trunk."""

    rename: Callable[[str], str]
    left_out: str  # regular expression: start of the renamed parts that the encoder does not have


def _torchvision_2d(name: str) -> str:
    # DenseNet's first files have norm.1 where later ones have norm1; MONAI has one module more.
    name = re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", name.removeprefix("features."))
    return re.sub(r"(denselayer\d+)\.(norm|conv)", r"\1.layers.\2", name)


def _swinvit(name: str) -> str:
    return name.removeprefix("swinViT.").replace(".mlp.fc", ".mlp.linear")


def _merlin(name: str) -> str:
    return name.removeprefix("encode_image.i3_resnet.")


def _ctfm(name: str) -> str:
    return name.removeprefix("encoder.")


LAYOUTS = {
    "inflate": Layout(_torchvision_2d, r"(fc|classifier)\."),
    "medicalnet": Layout(str, r"(fc|conv_seg)\."),
    "merlin": Layout(_merlin, r"(encode_text|classifier|contrastive_head)\.|logit_scale$"),
    "ctfm": Layout(_ctfm, r"up_layers\."),
    "swinvit": Layout(_swinvit, r"((rotation|contrastive)_(head|pre)|convTrans3d|conv|norm|out|(en|de)coder\d+)\."),
}


def load_initial(encoder: nn.Module, config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Load into the encoder the weights that `config.init` names (names as in their file), and log what matched.

    Raises IntegrityError unless every weight of the encoder is there and nothing but the layout's own heads is left.
    """
    layout = config.init_kind
    left_out: list[str] = []
    counters: dict[str, Tensor] = {}
    if layout == "export":
        load_strict(encoder, weights, "model.init")
    else:
        weights, left_out = _renamed(weights, LAYOUTS[layout])
        trunk = encoder.get_submodule("trunk")
        own = trunk.state_dict()
        counters = _absent_counters(weights, own)
        load_strict(trunk, _fitted(weights, own, layout == "inflate") | counters, f"model.init={layout}")
    parts = Counter(name.partition(".")[0] for name in left_out)
    log.info(
        "model.init: %s: %d weights matched, 0 unexpected, missing: %s, left out: %s",
        layout,
        len(weights),
        f"{COUNTER} {len(counters)}" if counters else "none",
        ", ".join(f"{part} {count}" for part, count in sorted(parts.items())) or "none",
    )


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch file, without the prefix of DataParallel. Nothing in the file can run."""
    if path.suffix not in (".safetensors", *PICKLED):
        raise ConfigError(f"model.init: a weight file ends in .safetensors, {', '.join(PICKLED)}")
    try:
        with open_regular(path, MOST_WEIGHT_BYTES) as file:
            if zipfile.is_zipfile(file):
                _refuse_inflated(file)
        state: object = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except OSError as error:
        raise ConfigError(f"model.init: the weight file cannot be read: {error.strerror or 'no such file'}") from None
    except ConfigError as error:
        raise ConfigError(f"model.init: {error}") from None
    except IntegrityError:
        raise
    except Exception:  # a hostile pickle makes torch raise anything
        raise IntegrityError(
            "model.init: the weight file is damaged, or holds more than tensors and numbers; "
            "write its state dict as .safetensors"
        ) from None
    named = state.get("state_dict", state) if isinstance(state, dict) else {}
    tensors = {name: tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise IntegrityError("model.init: the weight file holds no state dict")
    _refuse_unstored(tensors)
    prefix = "module."
    if all(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _refuse_inflated(file: BufferedReader) -> None:
    """torch stores its tensors as they are: an archive that holds more than its own size is a bomb."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        content = sum(entry.file_size for entry in archive.infolist())
    if content > size:
        raise IntegrityError(f"model.init: the weight file has {size} bytes and holds {content}")


def _refuse_unstored(tensors: dict[str, Tensor]) -> None:
    """A dense tensor on the CPU lies in the file, value by value; any other could be of any size."""
    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise IntegrityError(f"model.init: {plain(name, 200)} is no plain tensor, value by value in the file")


def _renamed(state: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    weights, left_out = {}, []
    for name, tensor in state.items():
        name = layout.rename(name)
        if re.match(layout.left_out, name):
            left_out.append(name)
        elif name in weights:
            raise IntegrityError(f"model.init: the weight file has {name} twice")
        else:
            weights[name] = tensor
    return weights, left_out


def _absent_counters(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in own.items()
        if name.endswith(COUNTER) and name not in weights and name.replace(COUNTER, "running_mean") in weights
    }


def _fitted(weights: dict[str, Tensor], own: dict[str, Tensor], flat: bool) -> dict[str, Tensor]:
    """The weights in fp32, the first kernel on our windows; of a `flat` file the 2D kernels inflated."""
    first = next(name for name, tensor in own.items() if tensor.ndim == 5)
    fitted = {}
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            tensor = tensor.float()
        if flat and name in own and own[name].ndim == 5:
            if tensor.ndim != 4:
                raise IntegrityError(f"model.init=inflate: {name} is no 2D kernel; name the layout of the file")
            tensor = inflate(tensor, own[name].shape[2])
        if name == first and tensor.ndim == 5:
            tensor = spread_over_windows(tensor, own[name].shape[1])
        fitted[name] = tensor.contiguous()
    return fitted


def inflate(kernel_OIHW: Tensor, depth: int) -> Tensor:
    """3D kernel that answers a volume constant along D as the 2D one answers its slices."""
    return kernel_OIHW[:, :, None].expand(-1, -1, depth, -1, -1) / depth


def spread_over_windows(kernel_OIDHW: Tensor, windows: int) -> Tensor:
    """First kernel for our windows: as it is when the file has as many channels.

    Else the sum over the file's channels, an equal share for each: windows that agree give what a grey image gave.
    """
    if kernel_OIDHW.shape[1] == windows:
        return kernel_OIDHW
    return kernel_OIDHW.sum(1, keepdim=True).expand(-1, windows, -1, -1, -1) / windows
