"""SPADE against its definition, written out here by full distance matrices in numpy."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small import images, normalised, plain_network, small_backbone

from pandalib import SPADE
from pandalib.methods import spade
from pandalib.methods.distances import image_scores
from pandalib.methods.spade import Pyramids, spade_reference

LAYERS = ("layer1", "layer2", "layer3")
SIDE = 48
IMAGES, QUERIES = images(14, SIDE), images(5, SIDE, seed=1)


@torch.no_grad()
def plain_layers(pictures) -> dict[str, np.ndarray]:
    """Of each layer (n, h, w, C) and the pooled feature (n, d), the network with nothing folded."""
    network, x, found = plain_network(), normalised(pictures), {}
    for name in ("conv", *LAYERS, "layer4"):
        x = getattr(network, name)(x)
        found[name] = x.permute(0, 2, 3, 1).double().numpy()
    return found | {"pooled": x.mean(dim=(2, 3)).double().numpy()}


def plain_spade(normal, pictures, *, n_images, kappa=1, sigma=4.0, layers=LAYERS) -> np.ndarray:
    """Every position against all positions of the K nearest images."""
    gallery, queries = plain_layers(normal), plain_layers(pictures)
    maps = []
    for i in range(len(pictures)):
        to_images = cdist(queries["pooled"][i : i + 1], gallery["pooled"])[0]
        nearest = np.argsort(to_images)[:n_images]
        layer_maps = []
        for layer in layers:
            _, high, wide, channels = queries[layer].shape
            positions = queries[layer][i].reshape(-1, channels)
            candidates = gallery[layer][nearest].reshape(-1, channels)
            table = np.sort(cdist(positions, candidates, "sqeuclidean"), axis=1)
            small = torch.from_numpy(table[:, :kappa].sum(axis=1).reshape(1, 1, high, wide))
            size = pictures.shape[2:]
            layer_maps.append(F.interpolate(small, size, mode="bilinear")[0, 0].numpy())
        mean = np.mean(layer_maps, axis=0)
        maps.append(gaussian_filter(mean, sigma) if sigma else mean)
    return np.stack(maps)


def close(maps, expected, tolerance):
    """Relative to the largest value of the expected maps."""
    assert maps.shape == expected.shape
    np.testing.assert_allclose(maps, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("changes", "crop"),
    [
        (dict(kappa=3), np.s_[:]),
        (dict(n_images=1, sigma=0.0), np.s_[:, :, :32]),
        (dict(n_images=50), np.s_[:, :, :, :40]),  # more than there are
        (dict(layers=("layer1", "layer4"), sigma=1.5), np.s_[:]),
    ],
)
def test_maps_are_those_of_the_definition(backbone, changes, crop):
    normal, pictures = IMAGES[crop], QUERIES[crop]
    options = dict(n_images=4, layers=LAYERS) | changes
    expected = plain_spade(normal, pictures, **options)
    reference = spade_reference(backbone, normal, pictures, **options)
    assert reference.dtype == np.float32
    close(reference, expected, 1e-5)

    detector = SPADE(backbone, **options).fit(normal)
    maps = detector.maps(pictures)
    assert maps.dtype == np.float32 and detector.normal_.rows.dtype == np.float16
    close(maps, reference, 1e-3)  # the difference is the float16 of the gallery
    scores = detector.score(pictures)
    np.testing.assert_allclose(scores, expected.max(axis=(1, 2)), rtol=1e-3)
    np.testing.assert_array_equal(scores, image_scores(maps))
    exact = Pyramids.of(backbone, normal, options["layers"], dtype=np.float32)
    detector.fit_pyramids(exact, normal.shape[2:])
    close(detector.maps(pictures), reference, 1e-5)


def test_balanced_layers_are_on_one_scale(backbone):
    def layer_maps(layer, **options):
        return spade_reference(backbone, layers=(layer,), n_images=4, **options)

    detector = SPADE(backbone, n_images=4, balanced=True).fit(IMAGES)
    scales = []
    for layer in LAYERS:
        one_by_one = [
            layer_maps(layer, normal_images=np.delete(IMAGES, i, axis=0), images=IMAGES[[i]])
            for i in range(len(IMAGES))
        ]
        scales.append(np.mean(one_by_one))
    # Enlarging weighs the positions nearly alike, not quite.
    np.testing.assert_allclose(detector.scales_, scales, rtol=0.05)
    assert max(scales) > 2 * min(scales)
    # Not what rounding leaves.
    assert SPADE(backbone, balanced=True).fit(IMAGES[[0] * 5]).scales_.tolist() == [1, 1, 1]
    assert SPADE(backbone).fit(IMAGES).scales_.tolist() == [1, 1, 1]
    expected = np.mean(
        [
            layer_maps(layer, normal_images=IMAGES, images=QUERIES) / scale
            for layer, scale in zip(LAYERS, detector.scales_)
        ],
        axis=0,
    )
    close(detector.maps(QUERIES), expected, 1e-3)
    again = SPADE(backbone, n_images=4).fit_pyramids(
        detector.normal_, (SIDE, SIDE), scales=detector.scales_
    )
    np.testing.assert_array_equal(again.maps(QUERIES), detector.maps(QUERIES))


class Lazy(Sequence):
    """Images on demand; remembers how many were asked for at once."""

    def __init__(self, pictures):
        self.pictures, self.asked = pictures, []

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        part = self.pictures[index]
        self.asked.append(len(part))
        return part


def test_memory_sets_the_size_of_a_batch_and_changes_no_map(backbone):
    pictures = images(23, SIDE, seed=3)
    detector = SPADE(backbone, n_images=4).fit(IMAGES)
    whole = detector.maps(torch.from_numpy(pictures))
    for memory_mb, step in ((1e-9, 1), (5.5 * detector._bytes_per_image() / 1e6, 5)):
        detector.set_params(memory_mb=memory_mb)
        lazy = Lazy(pictures)
        close(detector.maps(lazy), whole, 1e-5)
        assert max(lazy.asked) == step
        np.testing.assert_allclose(detector.score(lazy), image_scores(whole), rtol=1e-4)


@pytest.mark.parametrize("together", [1, 40, 300])
def test_how_many_normal_images_go_together_changes_no_map(backbone, monkeypatch, together):
    detectors = [SPADE(backbone, n_images=n).fit(IMAGES) for n in (4, 50)]
    expected = [detector.maps(QUERIES) for detector in detectors]
    monkeypatch.setattr(spade, "TOGETHER", together)  # positions; layers have 144, 36, 9 an image
    for detector, maps in zip(detectors, expected):
        close(detector.maps(QUERIES), maps, 1e-5)


def test_leave_one_out_is_by_index(backbone):
    """A twin is another image: it may be met. The image itself may not."""
    pictures = np.concatenate([IMAGES, IMAGES[3:4]])
    detector = SPADE(backbone, n_images=4).fit(pictures)
    maps = detector.leave_one_out_maps(progress=False)
    assert maps.shape == (15, SIDE, SIDE)
    scores, typical = image_scores(maps), np.median(image_scores(maps))
    twins = np.isin(np.arange(15), [3, 14])
    assert scores[twins].max() < 1e-4 * typical and scores[~twins].min() > 0.2 * typical
    for i in (0, 7, 13):
        others = SPADE(backbone, n_images=4).fit(np.delete(pictures, i, axis=0))
        close(maps[i : i + 1], others.maps(pictures[i : i + 1]), 1e-3)
    assert detector.threshold(0.2) == pytest.approx(np.sort(scores)[-3])  # rank 13 of 15
    detector.memory_mb = 1e-9
    close(detector.leave_one_out_maps(progress=False), maps, 1e-5)
    detector.n_images = 99
    expected = SPADE(backbone).fit(pictures[1:]).maps(pictures[:1])
    close(detector.leave_one_out_maps(progress=False)[:1], expected, 1e-3)


def test_features_beyond_float16_are_refused():
    """An overflow would be an infinite distance, or none at all."""
    network = small_backbone()
    with torch.no_grad():
        network.trainable.layer3[0].bn2.weight.mul_(3e5)
    bright = np.concatenate([np.zeros_like(IMAGES[:9]), IMAGES[:2]])
    with pytest.raises(ValueError, match=r"features reach \d.*: expected at most 65504"):
        SPADE(network).fit(bright)
    assert Pyramids.of(network, bright, LAYERS, dtype=np.float32).pooled.max() > 65504
    with torch.no_grad():
        network.trainable.layer3[0].bn2.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="features reach nan"):
        SPADE(network).fit(bright)


def test_spade_is_an_estimator(backbone):
    detector = clone(SPADE(backbone, kappa=2)).set_params(n_images=3)
    assert detector.get_params()["kappa"] == 2 and detector.layers == LAYERS
    for call in (lambda: detector.maps(QUERIES), detector.leave_one_out_maps):
        with pytest.raises(NotFittedError, match="This SPADE has seen no normal images yet"):
            call()
    assert detector.fit(IMAGES[:1], None) is detector
    assert detector.score(QUERIES).shape == (5,)  # one normal image is enough
    for option in ("n_images", "kappa"):
        with pytest.raises(ValueError, match=f"{option}=0: expected a whole number"):
            SPADE(backbone, **{option: 0}).fit(IMAGES)


def test_images_and_layers_that_cannot_be(backbone):
    detector = SPADE(backbone).fit(IMAGES[:1])
    for wrong, message in (
        (images(2), "images are of 32 x 32 pixels: expected 48 x 48"),
        (QUERIES[:0], "no images"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.maps(wrong)
    balanced = SPADE(backbone, balanced=True)
    for alone in (detector.leave_one_out_maps, lambda: balanced.fit(QUERIES[:1])):
        with pytest.raises(ValueError, match="1 with one left out"):
            alone()
    with pytest.raises(ValueError, match="layer5"):
        SPADE(backbone, layers=("layer1", "layer5")).fit(IMAGES)
    with pytest.raises(ValueError, match="kappa=10: .*positions"):  # layer3 has 3 x 3
        SPADE(backbone, kappa=10, layers=("layer3",)).fit(IMAGES[:1]).maps(QUERIES)
