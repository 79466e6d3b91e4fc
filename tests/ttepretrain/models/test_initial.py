"""Public weights: files in each layout, made here, and the networks they were published with, written out here."""

import logging
import os
import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from ttepretrain.errors import ConfigError, IntegrityError
from ttepretrain.export.initial_weights import initial_digest
from ttepretrain.models.config import ModelConfig
from ttepretrain.models.encoder import build_encoder
from ttepretrain.models.initial import inflate, read_weight_file, spread_over_windows
from ttepretrain.models.model import build_model
from ttepretrain.training.precision import bf16_difference
from ttepretrain.volume.spec import VolumeSpec

PATCHES = "patch_embed.proj.weight"


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_statistics(network: nn.Module) -> nn.Module:
    """Eval mode, with BatchNorm statistics and gains that are not those of a new network."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1), (module.running_var, 0.5, 2), (module.weight.data, 0.5, 1.0),
                (module.bias.data, -0.1, 0.1),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    return network.eval()


def trained(name: str, channels: int, seed: int = 7) -> nn.Module:
    """Trunk with weights that look trained."""
    norm = "group" if name == "swin_unetr" else "batch"
    return with_statistics(build_encoder(ModelConfig(encoder=name, norm=norm), channels, seed).trunk)


def load(name: str, layout: str, path, channels: int) -> nn.Module:
    norm = "group" if name == "swin_unetr" else "batch"
    config = ModelConfig(encoder=name, norm=norm, init=f"{layout}:{path}")
    return build_encoder(config, channels, 0, weights=read_weight_file(path))


@pytest.fixture
def said(caplog):
    """Returns the messages of the log so far."""
    caplog.set_level(logging.INFO, "ttepretrain")
    return lambda: caplog.messages


class TestInflation:
    """2D torchvision layout -> 3D. torchvision is not installed: MONAI's 2D networks under torchvision's names."""

    @staticmethod
    def network_2d(name: str) -> nn.Module:
        from monai.networks import nets

        torch.manual_seed(0)
        if name == "densenet121":
            return with_statistics(nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=10))
        make = getattr(nets, name)
        return with_statistics(
            make(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, num_classes=10, bias_downsample=False)
        )

    @staticmethod
    def torchvision_state(network: nn.Module, old_names: bool) -> dict:
        state = {
            n.replace(".layers.", ".").replace("class_layers.out.", "classifier."): t
            for n, t in network.state_dict().items()
        }
        if old_names:  # densenet121-a639ec97.pth
            state = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", n): t for n, t in state.items()}
            state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
        return state

    @staticmethod
    def features_2d(name: str, network: nn.Module, x_BCHW: torch.Tensor) -> torch.Tensor:
        if name == "densenet121":
            return functional.relu(network.features(x_BCHW)).mean((2, 3))
        network.fc = nn.Identity()
        return network(x_BCHW)

    @pytest.mark.parametrize(
        ("name", "channels"), [("resnet18", 2), ("resnet50", 3), ("densenet121", 1), ("densenet121", 3)]
    )
    def test_a_volume_constant_along_depth_gives_the_2d_networks_features(self, name, channels, tmp_path, said):
        """Where the ends of the depth axis are replicated instead of filled with zeros."""
        network = self.network_2d(name)
        torch.save(self.torchvision_state(network, old_names=channels == 1), tmp_path / "weights.pth")
        encoder = load(name, "inflate", tmp_path / "weights.pth", channels).eval()
        missing, left_out = "num_batches_tracked 121" if channels == 1 else "none", name[:3] == "res" and "fc"
        matched = f"weights matched, 0 unexpected, missing: {missing}, left out: {left_out or 'classifier'} 2"
        assert said()[-1].endswith(matched)
        replicate_depth(encoder.trunk)
        x_BCHW = noise(2, 3 if channels == 3 else 1, 64, 40)  # a grey image, where the windows are not RGB's
        with torch.no_grad():
            expected = self.features_2d(name, network, x_BCHW.expand(-1, 3, -1, -1))
            found = encoder.features(x_BCHW[:, :, None].expand(-1, channels, 32, -1, -1).contiguous())
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)

    def test_loaded_statistics_are_frozen(self, tmp_path):
        torch.save(self.torchvision_state(self.network_2d("resnet18"), False), tmp_path / "weights.pth")
        encoder = load("resnet18", "inflate", tmp_path / "weights.pth", 3).train()
        before = encoder.trunk.bn1.running_mean.clone()
        encoder.features(noise(2, 3, 16, 16, 16))
        assert torch.equal(encoder.trunk.bn1.running_mean, before)
        assert before.abs().max() > 0.01

    def test_loaded_statistics_are_frozen_from_the_start_and_the_self_test_changes_none(self, tmp_path):
        torch.save(self.torchvision_state(self.network_2d("resnet18"), False), tmp_path / "weights.pth")
        config = ModelConfig("resnet18", norm="batch", init=f"inflate:{tmp_path / 'weights.pth'}")
        spec = VolumeSpec((4.0, 4.0, 4.0), (32, 32, 32), (-1024, 3071), ((40.0, 400.0),) * 3)
        model = build_model(config, spec, torch.zeros(2, 3), 0, read_weight_file(tmp_path / "weights.pth"))
        assert not model.encoder.trunk.bn1.training
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        bf16_difference(model, (noise(2, 32, 32, 32) * 1000).to(torch.int16))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_a_flat_file_loads_as_nothing_else_and_no_other_file_as_flat(self, tmp_path):
        torch.save(self.torchvision_state(self.network_2d("resnet50"), False), tmp_path / "flat.pth")
        with pytest.raises(IntegrityError, match=r"model\.init=medicalnet: .*weights of another shape"):
            load("resnet50", "medicalnet", tmp_path / "flat.pth", 3)
        torch.save(trained("resnet50", 1).state_dict(), tmp_path / "deep.pth")
        with pytest.raises(IntegrityError, match=r"conv1\.weight is no 2D kernel"):
            load("resnet50", "inflate", tmp_path / "deep.pth", 1)


def replicate_depth(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.padding[0]:
            depth = module.padding[0]
            module.__class__ = nn.Conv3d  # the small-map product pads by itself
            module.padding = (0, *module.padding[1:])
            module.register_forward_pre_hook(
                lambda _, inputs, depth=depth: functional.pad(inputs[0], (0, 0, 0, 0, depth, depth), mode="replicate")
            )


def test_inflated_kernels_sum_to_the_2d_kernel():
    kernel = noise(4, 3, 5, 7)
    torch.testing.assert_close(inflate(kernel, 7).sum(2), kernel)


@pytest.mark.parametrize(("stored", "windows"), [(3, 1), (3, 2), (3, 3), (1, 3), (1, 1)])
def test_windows_that_agree_give_what_a_grey_image_gave(stored, windows):
    kernel, grey = noise(4, stored, 3, 3, 3), noise(1, 1, 5, 6, 7)
    spread = spread_over_windows(kernel, windows)
    assert spread.shape[1] == windows
    expected = functional.conv3d(grey.expand(-1, stored, -1, -1, -1), kernel)
    torch.testing.assert_close(functional.conv3d(grey.expand(-1, windows, -1, -1, -1), spread), expected)
    assert (windows == stored) == (spread is kernel)


class TestMerlin:
    @staticmethod
    def file(trunk: nn.Module, path) -> dict:
        """What Merlin's checkpoint holds: the image tower, its two heads, the text tower, the temperature."""
        prefix = "encode_image.i3_resnet."
        state = {prefix + name: tensor.clone() for name, tensor in trunk.state_dict().items()}
        state |= {
            f"{prefix}classifier.weight": torch.zeros(1692, 2048, 1, 1, 1),
            f"{prefix}classifier.bias": torch.zeros(1692),
            f"{prefix}contrastive_head.weight": torch.zeros(512, 2048, 1, 1, 1),
            f"{prefix}contrastive_head.bias": torch.zeros(512),
            "encode_text.linear_layer.weight": torch.zeros(512, 768), "logit_scale": torch.ones([]),
        }  # fmt: skip
        torch.save(state, path)
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    @staticmethod
    def published_features(state: dict, x_BRAS: torch.Tensor) -> torch.Tensor:
        """I3ResNet-152 from its state dict: RAS volume in [0, 1], three equal channels, slices first."""

        def norm(x, name):
            values = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
            return functional.batch_norm(x, *values)

        x = x_BRAS[:, None].permute(0, 1, 4, 2, 3).repeat(1, 3, 1, 1, 1)
        x = functional.conv3d(x, state["conv1.weight"], stride=(1, 2, 2), padding=(1, 3, 3))
        x = functional.max_pool3d(functional.relu(norm(x, "bn1")), 3, 2, 1)
        for layer, blocks in enumerate((3, 8, 36, 3), 1):
            for block in range(blocks):
                name = f"layer{layer}.{block}"
                stride = 2 if block == 0 and layer > 1 else 1
                y = functional.relu(norm(functional.conv3d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
                y = functional.conv3d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1)
                y = functional.conv3d(functional.relu(norm(y, f"{name}.bn2")), state[f"{name}.conv3.weight"])
                if block == 0:
                    x = functional.conv3d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                    x = norm(x, f"{name}.downsample.1")
                x = functional.relu(x + norm(y, f"{name}.bn3"))
        return x.mean((2, 3, 4))

    def test_a_file_of_its_layout_gives_its_features_on_the_same_body(self, tmp_path, said):
        """The published network reads R A S in [0, 1]; ours S A R in windows of [-1, 1]. Unequal axes."""
        state = self.file(trained("i3resnet152", 3), tmp_path / "merlin.pt")
        encoder = load("i3resnet152", "merlin", tmp_path / "merlin.pt", 1).eval()
        assert "merlin: 930 weights matched, 0 unexpected, missing: none" in said()[0]
        assert "left out: classifier 2, contrastive_head 2, encode_text 1, logit_scale 1" in said()[0]
        x_BRAS = torch.rand(1, 40, 36, 24, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = encoder.features(x_BRAS[:, None].permute(0, 1, 4, 3, 2) * 2 - 1)
            expected = self.published_features(state, x_BRAS)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        assert expected.std() > 1e-3


def test_medicalnet_prefixes_and_its_segmentation_head_are_known(tmp_path, said):
    trunk = trained("resnet50", 1)
    state = {f"module.{name}": tensor.clone() for name, tensor in trunk.state_dict().items()}
    state["module.conv_seg.0.weight"] = torch.zeros(2048, 32, 2, 2, 2)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "resnet_50.pth")
    loaded = load("resnet50", "medicalnet", tmp_path / "resnet_50.pth", 2).trunk
    assert "0 unexpected, missing: none, left out: conv_seg 1" in said()[0]
    expected = trunk.state_dict()
    for name, tensor in loaded.state_dict().items():
        if name == "conv1.weight":
            torch.testing.assert_close(tensor, expected[name].repeat(1, 2, 1, 1, 1) / 2)
        else:
            assert torch.equal(tensor, expected[name]), name


def test_ct_fm_extractor_and_segmentation_files_load_alike(tmp_path, said):
    """ct_fm_feature_extractor has the encoder's names; ct_fm_segresnet the prefix `encoder.` and a decoder."""
    state = trained("segresnet", 1).state_dict()
    save_file(state, tmp_path / "extractor.safetensors")
    decoder = {"up_layers.0.upsample.weight": torch.zeros(2), "up_layers.0.head.weight": torch.zeros(2)}
    save_file({f"encoder.{name}": t for name, t in state.items()} | decoder, tmp_path / "segresnet.safetensors")
    extractor, segmentation = (
        load("segresnet", "ctfm", tmp_path / f"{name}.safetensors", 1).trunk.state_dict()
        for name in ("extractor", "segresnet")
    )
    assert said()[0].endswith("left out: none")
    assert said()[1].endswith("left out: up_layers 2")
    assert all(torch.equal(extractor[name], state[name]) for name in state)
    assert all(torch.equal(segmentation[name], state[name]) for name in state)


class TestSwinViT:
    @staticmethod
    def published_names(state: dict) -> dict:
        """model_swinvit.pt: `module.` in front, fc1 and fc2 for MONAI's linear1 and linear2."""
        return {f"module.{name.replace('.linear', '.fc')}": tensor.clone() for name, tensor in state.items()}

    def test_monais_own_loader_and_ours_agree(self, tmp_path):
        from monai.networks.nets import SwinUNETR

        state = self.published_names(trained("swin_unetr", 1).state_dict())
        torch.save({"state_dict": state}, tmp_path / "model_swinvit.pt")
        network = SwinUNETR(in_channels=1, out_channels=1, feature_size=48)
        network.load_from(torch.load(tmp_path / "model_swinvit.pt", weights_only=True))
        ours = load("swin_unetr", "swinvit", tmp_path / "model_swinvit.pt", 1).trunk.state_dict()
        theirs = network.swinViT.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_heads_of_self_supervision_are_left_out_and_said(self, tmp_path, said):
        state = {f"module.swinViT.{name}": t for name, t in trained("swin_unetr", 1).state_dict().items()}
        state |= {"module.rotation_head.weight": torch.zeros(4, 768), "module.conv.weight": torch.zeros(1)}
        torch.save({"state_dict": state}, tmp_path / "ssl.pt")
        load("swin_unetr", "swinvit", tmp_path / "ssl.pt", 3)
        assert "0 unexpected, missing: none, left out: conv 1, rotation_head 1" in said()[0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop(PATCHES), f"swinvit: 125 of 126 weights match; missing: {PATCHES}; unknown: none"),
            (lambda s: s.update(decoder=torch.zeros(1)), "missing: none; unknown: decoder"),
            (lambda s: s.update({PATCHES: torch.zeros(48, 1, 4, 4, 4)}), rf"{PATCHES} float32\[48, 1, 4, 4, 4\], exp"),
            (lambda s: s[PATCHES].fill_(torch.nan), f"1 weights hold NaN or infinity: {PATCHES}"),
            (
                lambda s: s.clear() or s.update(other=torch.zeros(1)),
                "swinvit: 0 of 126 weights match; missing: .*unknown: other",
            ),
        ],
        ids=["missing", "unexpected", "shape", "nan", "nothing"],
    )
    def test_a_file_that_does_not_match_wholly(self, change, message, tmp_path):
        state = {name: tensor.clone() for name, tensor in trained("swin_unetr", 1).state_dict().items()}
        change(state)
        save_file(state, tmp_path / "weights.safetensors")
        with pytest.raises(IntegrityError, match=message):
            load("swin_unetr", "swinvit", tmp_path / "weights.safetensors", 1)

    def test_a_variance_below_zero(self, tmp_path):
        state = {name: tensor.clone() for name, tensor in trained("resnet50", 1).state_dict().items()}
        state["bn1.running_var"][3] = -0.5
        torch.save(state, tmp_path / "weights.pth")
        with pytest.raises(IntegrityError, match=r"1 variances are negative: bn1\.running_var"):
            load("resnet50", "medicalnet", tmp_path / "weights.pth", 1)

    def test_batch_statistics_are_not_counted_as_matched_by_themselves(self, tmp_path):
        save_file({"other": torch.zeros(1)}, tmp_path / "weights.safetensors")
        with pytest.raises(IntegrityError, match="inflate: 0 of 120 weights match"):
            load("resnet18", "inflate", tmp_path / "weights.safetensors", 1)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"init": "inflat:x.pth"}, "model.init must be one of .* did you mean 'inflate'"),
            ({"init": "inflate:"}, "model.init needs a path after the colon"),
            (
                {"init": "merlin:x.pt", "norm": "batch"},
                "model.encoder must be one of i3resnet152 for model.init=merlin:",
            ),
            ({"init": "medicalnet:x.pt", "encoder": "resnet18"}, "model.encoder must be one of resnet50, resnet152"),
            ({"init": "inflate:x.pt"}, "model.norm must be batch for model.init=inflate"),
        ],
    )
    def test_a_layout_that_does_not_fit_the_configuration(self, values, message):
        with pytest.raises(ConfigError, match=message):
            ModelConfig(**values)

    def test_files_that_are_not_there_not_weights_or_hold_code(self, tmp_path):
        (tmp_path / "cut.safetensors").write_bytes(b"\x08")
        (tmp_path / "code.pt").write_bytes(pickle.dumps(Canary(), protocol=2))
        torch.save({"weights": Canary()}, tmp_path / "object.pt")
        torch.save([1, 2], tmp_path / "list.pt")
        (tmp_path / "weights.h5").touch()
        for name, error, message in (
            ("absent.pt", ConfigError, "weight file cannot be read: No such file"),
            ("weights.h5", ConfigError, r"a weight file ends in .safetensors, .pt"),
            ("cut.safetensors", IntegrityError, "damaged, or holds more than tensors"),
            ("code.pt", IntegrityError, "damaged, or holds more than tensors"),
            ("object.pt", IntegrityError, "damaged, or holds more than tensors"),
            ("list.pt", IntegrityError, "holds no state dict"),
        ):
            with pytest.raises(error, match=message) as caught:
                load("swin_unetr", "swinvit", tmp_path / name, 1)
            assert str(tmp_path) not in str(caught.value)
        assert not Canary.sung

    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_what_is_no_regular_file_of_a_sensible_size_is_never_read(self, tmp_path, name):
        """A pipe would block, /dev/zero never ends."""
        path, far = tmp_path / name, tmp_path / "far"
        config = ModelConfig("resnet18", norm="batch", init=f"inflate:{path}")
        far.touch()
        os.truncate(far, 1 << 40)
        for make, message in (
            (lambda: os.mkfifo(path), f"model.init: {name} is not a regular file"),
            (lambda: path.symlink_to("/dev/zero"), f"model.init: {name} is not a regular file"),
            (lambda: path.symlink_to(name), "cannot be read: Too many levels of symbolic links"),
            (lambda: path.symlink_to(far), f"model.init: {name} has {1 << 40} bytes; at most"),
        ):
            make()
            with pytest.raises(ConfigError, match=message):
                read_weight_file(path)
            with pytest.raises(ConfigError, match=message):
                initial_digest(config)
            path.unlink()

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.zeros(1).half().expand(1 << 20, 1 << 20),
            torch.sparse_coo_tensor(
                torch.zeros(2, 1, dtype=torch.int64), torch.zeros(1), (1 << 40, 1 << 20), check_invariants=True
            ),
            torch.empty(1 << 20, 1 << 20, device="meta"),
        ],
        ids=["expanded", "sparse", "meta"],
    )
    def test_a_small_file_cannot_hold_a_tensor_of_terabytes(self, tmp_path, tensor):
        torch.save({"conv1.weight": tensor}, tmp_path / "weights.pth")
        with pytest.raises(IntegrityError, match=r"conv1.weight is no plain tensor|damaged, or holds more than"):
            read_weight_file(tmp_path / "weights.pth")

    def test_an_archive_that_inflates_is_refused_unread(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "weights.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
        with pytest.raises(IntegrityError, match=r"the weight file has \d+ bytes and holds 67108864"):
            read_weight_file(tmp_path / "weights.pth")

    @pytest.mark.parametrize(
        "content", [b"", b"PK", b"\x80\x02.", b"\x80\x02K\x01.", b"\x80\x02}q\x00(X\xff\xff\xff\x7f", b"(" * 1000]
    )
    def test_a_pickle_that_is_none_is_a_declared_error(self, tmp_path, content):
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(IntegrityError, match=r"model\.init: the weight file"):
            read_weight_file(tmp_path / "weights.pth")


class Canary:
    sung = False

    def __reduce__(self):
        return (setattr, (Canary, "sung", True))
