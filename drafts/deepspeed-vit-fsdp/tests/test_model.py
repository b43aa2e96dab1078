"""Models: mimetic initialisation, groups of parameters, what is said when there is no model to be had."""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from deepspeed_vit_fsdp import model
from deepspeed_vit_fsdp.config import TrainConfig
from deepspeed_vit_fsdp.data import Preparation
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.testing import run
from transformers import BertConfig, ResNetConfig, ViTConfig

NAMES = [f"class {i}" for i in range(5)]


def tiny(initialization: str = "standard", **settings: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = TrainConfig(**({"hidden_size": 64, "num_layers": 3, "patch_size": 8} | settings))
    return model.make_tiny(model.tiny_settings(config, 32, NAMES), initialization)


def test_mimetic_weights_have_the_structure_of_trained_ones() -> None:
    made = tiny("mimetic", hidden_size=96)
    attention = made.vit.layers[0].attention
    dim = 96
    per_head = [attention.q_proj.weight[h : h + 32].T @ attention.k_proj.weight[h : h + 32] for h in range(0, dim, 32)]
    outer = attention.o_proj.weight @ attention.v_proj.weight
    eye = torch.eye(dim)
    # Mean of the diagonal: the share of the identity that is in the product.
    for product in per_head:
        assert product.diagonal().mean() > 0.25
        assert product.diagonal().mean() > 10 * product[eye == 0].mean().abs()
    assert outer.diagonal().mean().item() == pytest.approx(-0.4, abs=0.05)
    standard = tiny("standard", hidden_size=96).vit.layers[0].attention
    assert abs((standard.o_proj.weight @ standard.v_proj.weight).diagonal().mean()) < 0.01


def test_patches_that_do_not_fit_the_images() -> None:
    with pytest.raises(UsageError, match="patch_size: 5 is not allowed: it must divide the 32 pixels of a side"):
        tiny(patch_size=5)


def test_positions_of_sines_are_nearest_to_their_neighbours() -> None:
    positions = model._sines(4, 64)
    likeness = positions @ positions.T
    assert likeness[5].argsort(descending=True)[0] == 5
    assert set(likeness[5].argsort(descending=True)[1:5].tolist()) == {1, 4, 6, 9}


def test_each_layer_further_from_the_head_learns_more_slowly() -> None:
    made = tiny()
    groups = model.parameter_groups(made, weight_decay=0.1, layer_decay=0.5)
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(scale_of) == len(list(made.parameters()))
    assert scale_of[id(made.classifier.weight)] == 1
    assert scale_of[id(made.vit.layernorm.weight)] == 1
    assert [scale_of[id(layer.mlp.fc1.weight)] for layer in made.vit.layers] == [0.125, 0.25, 0.5]
    assert scale_of[id(made.vit.embeddings.cls_token)] == 0.0625
    assert decay_of[id(made.classifier.weight)] == 0.1
    for parameter in (made.classifier.bias, made.vit.embeddings.position_embeddings, made.vit.layernorm.weight):
        assert decay_of[id(parameter)] == 0
    assert len(model.parameter_groups(made, 0.1, 1.0)) == 2


def test_exported_model_gives_the_same_logits(tmp_path: Path) -> None:
    made = tiny("mimetic").eval()
    model.save(tmp_path, made.config, made.state_dict(), Preparation(32).processor())
    images = torch.randn(3, 3, 32, 32)
    loaded = model.load_trained(tmp_path).eval()
    assert torch.equal(loaded(pixel_values=images).logits, made(pixel_values=images).logits)
    assert loaded.config.id2label[3] == "class 3"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]


def saved(folder: Path) -> Path:
    made = tiny()
    model.save(folder, made.config, made.state_dict(), Preparation(32).processor())
    return folder


def test_what_is_wrong_with_a_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder has no config\.json"):
        model.pretrained_settings(str(tmp_path / "empty"), NAMES, 0.0)
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(DataError, match="a model of type bert does not classify images"):
        model.pretrained_settings(str(tmp_path / "bert"), NAMES, 0.0)
    ResNetConfig().save_pretrained(tmp_path / "resnet")
    with pytest.raises(DataError, match="is no vision transformer"):
        model.pretrained_settings(str(tmp_path / "resnet"), NAMES, 0.0)
    folder = saved(tmp_path / "vit")
    settings = model.pretrained_settings(str(folder), NAMES, 0.0)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(DataError, match="no weights in safetensors to be had in this folder"):
        model.load_pretrained(str(folder), settings, 0)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(DataError, match="no weights in safetensors"):
        model.load_pretrained(str(folder), settings, 0)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        model.processor_of(str(folder))


def test_weights_that_lack_parts_of_the_encoder_are_refused(tmp_path: Path) -> None:
    made = tiny()
    weights = {name: t for name, t in made.state_dict().items() if "layers.1" not in name}
    model.save(tmp_path, made.config, weights, Preparation(32).processor())
    settings = model.pretrained_settings(str(tmp_path), NAMES, 0.0)
    with pytest.raises(DataError, match=r"its weights lack 16 tensors of the encoder, such as vit\.layers\.1"):
        model.load_pretrained(str(tmp_path), settings, 0)


def test_an_unknown_name_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_OFFLINE", "1")
    with pytest.raises(DataError, match="--model nobody/no-such-vit: no config to be had in the cache"):
        model.pretrained_settings("nobody/no-such-vit", NAMES, 0.0)


def test_sizes_of_plan_are_those_of_the_papers() -> None:
    from deepspeed_vit_fsdp.config import PlanConfig
    from deepspeed_vit_fsdp.plan import count_parameters, settings_of

    # ViT-B/16 with 1000 classes has 86.6 million parameters, L 304 million, H/16 about 632 million.
    for name, millions in (("tiny", 5.7), ("small", 22.1), ("base", 86.6), ("large", 304.3), ("huge", 632.4)):
        settings = settings_of(PlanConfig(model=name, num_classes=1000))
        assert isinstance(settings, ViTConfig)
        assert count_parameters(settings) / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_model_from_the_hub(tmp_path: Path) -> None:
    """From a small server on this machine that answers as the Hub does, through HF_ENDPOINT."""
    folder = saved(tmp_path / "served")

    class Hub(BaseHTTPRequestHandler):
        def answer(self) -> None:
            file = folder / self.path.rpartition("/")[2].partition("?")[0]
            found = self.path.startswith("/somebody/small-vit/resolve/main/") and file.is_file()
            content = file.read_bytes() if found else b"{}"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", hashlib.sha256(content).hexdigest())
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    code = (
        "from deepspeed_vit_fsdp import model\n"
        "name = 'somebody/small-vit'\n"
        "settings = model.pretrained_settings(name, ['a', 'b'], 0.0)\n"
        "made, fresh = model.load_pretrained(name, settings, 0)\n"
        "print(fresh, made.vit.layernorm.weight.numel(), model.processor_of(name)['size'])"
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        done = run([sys.executable, "-c", code], tmp_path, **environment)
    finally:
        server.shutdown()
        server.server_close()
    assert done.status == 0, done.stderr
    assert "looking for somebody/small-vit in the cache of the Hugging Face Hub and on the Hub" in done.stdout
    assert "['classifier.bias', 'classifier.weight'] 64 {'height': 32, 'width': 32}" in done.stdout
