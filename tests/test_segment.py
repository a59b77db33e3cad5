"""Where is the anomaly? SPADE and the memory bank against their definitions, written out here by full distance matrices."""

from collections.abc import Sequence

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.exceptions import NotFittedError
from small import images, normalised, plain_network, small_backbone

from pandalib import SPADE, FeatureCache, PatchCore, backbones, pixel_roc_auc, roc_auc
from pandalib.methods import distances as correspond, spade as segment
from pandalib.methods.spade import Pyramids, coreset, enlarged, image_scores, nearest_squared

LAYERS = ("layer1", "layer2", "layer3")
SIDE = 48
IMAGES, QUERIES = images(14, SIDE), images(5, SIDE, seed=1)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def fitted(backbone):
    return SPADE(backbone, n_images=4).fit(IMAGES)


@torch.no_grad()
def plain_layers(pictures, network=None) -> dict[str, np.ndarray]:
    """Of each layer (n, h, w, C) and the pooled feature (n, d), from the network with nothing folded."""
    network, x, found = network or plain_network(), normalised(pictures), {}
    for name in ("conv", *LAYERS, "layer4"):
        x = getattr(network, name)(x)
        found[name] = x.permute(0, 2, 3, 1).double().numpy()
    return found | {"pooled": x.mean(dim=(2, 3)).double().numpy()}


def squared(queries, gallery) -> np.ndarray:
    """All squared distances (n, m), from the differences."""
    return cdist(queries.astype(np.float64), gallery.astype(np.float64), "sqeuclidean")


def larger(small_map, size) -> np.ndarray:
    return F.interpolate(
        torch.from_numpy(np.float64(small_map))[None, None],
        size=size,
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()


def plain_spade(normal, pictures, *, n_images, kappa=1, sigma=4.0, layers=LAYERS) -> np.ndarray:
    """The definition: image by image, layer by layer, every position against all positions of the K nearest images."""
    gallery, queries = plain_layers(normal), plain_layers(pictures)
    maps = []
    for i in range(len(pictures)):
        nearest = np.argsort(squared(queries["pooled"][i : i + 1], gallery["pooled"])[0])[:n_images]
        whole = np.zeros(pictures.shape[2:])
        for layer in layers:
            _, high, wide, channels = queries[layer].shape
            distances = squared(
                queries[layer][i].reshape(-1, channels),
                gallery[layer][nearest].reshape(-1, channels),
            )
            whole += larger(
                np.sort(distances, axis=1)[:, :kappa].sum(axis=1).reshape(high, wide),
                pictures.shape[2:],
            )
        maps.append(gaussian_filter(whole / len(layers), sigma) if sigma else whole / len(layers))
    return np.stack(maps)


def close(maps, expected, tolerance):
    """Relative to the largest value of the expected maps."""
    assert maps.shape == expected.shape
    np.testing.assert_allclose(maps, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("kappa", [1, 3])
@pytest.mark.parametrize(
    ("n", "m", "channels"),
    [
        (1, 3, 1),
        (5, 7, 3),
        (255, 1023, 2),
        (256, 1024, 4),
        (257, 1025, 64),
        (300, 2051, 7),
        (700, 300, 5),
        (3, 5000, 65),
        (9000, 40, 2),
    ],
)
def test_nearest_positions(n, m, channels, kappa):
    rng = np.random.default_rng(n)
    queries, gallery = (
        rng.normal(1.0, 2.0, size=(rows, channels)).astype(np.float32) for rows in (n, m)
    )
    found = nearest_squared(torch.from_numpy(queries), torch.from_numpy(gallery), kappa)
    assert found.shape == (n,) and found.dtype == torch.float32
    expected = np.sort(squared(queries, gallery), axis=1)[:, :kappa].sum(axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=kappa * 1e-5 * channels)
    np.testing.assert_allclose(
        found.numpy(),
        faiss.knn(queries, gallery, kappa)[0].sum(axis=1),
        rtol=1e-4,
        atol=kappa * 4e-5 * channels,
    )


@pytest.mark.parametrize("kappa", [1, 3])
def test_a_common_offset_changes_nothing(kappa):
    rng = np.random.default_rng(0)
    queries, gallery = (
        1000 + rng.normal(size=(rows, 64)).astype(np.float32) for rows in (200, 1500)
    )
    found = nearest_squared(torch.from_numpy(queries), torch.from_numpy(gallery), kappa).numpy()
    np.testing.assert_allclose(
        found, np.sort(squared(queries, gallery), axis=1)[:, :kappa].sum(axis=1), rtol=1e-4
    )
    naive = (queries**2).sum(1)[:, None] + (gallery**2).sum(1) - 2 * queries @ gallery.T
    assert (
        np.abs(
            np.sort(naive, axis=1)[:, 0] / np.sort(squared(queries, gallery), axis=1)[:, 0] - 1
        ).max()
        > 0.01
    )  # without the mean taken off


def test_a_duplicate_is_at_nearly_zero_and_nothing_is_below():
    gallery = torch.randn(1300, 32, generator=torch.Generator().manual_seed(0))
    found = nearest_squared(gallery[::7], gallery)
    assert found.min() >= 0 and found.max() < 1e-4  # of a squared spread of 64
    twice = nearest_squared(gallery[:9], torch.cat([gallery, gallery]), kappa=2)
    assert twice.max() < 2e-4 and nearest_squared(gallery[:9], gallery, kappa=2).min() > 1


def test_more_neighbours_than_positions():
    with pytest.raises(ValueError, match="k = 4 neighbours were asked for"):
        nearest_squared(torch.zeros(5, 2), torch.zeros(3, 2), kappa=4)


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(kappa=3),
        dict(n_images=1, sigma=0.0),
        dict(n_images=50),
        dict(layers=("layer2",), sigma=1.5),
        dict(layers=("layer1", "layer4")),
    ],
)
@pytest.mark.parametrize("shape", ["square", "wide", "high"])
def test_maps_are_those_of_the_definition(backbone, changes, shape):
    crop = {"square": np.s_[:], "wide": np.s_[:, :, :32], "high": np.s_[:, :, :, :40]}[shape]
    normal, pictures = IMAGES[crop], QUERIES[crop]
    settings = dict(n_images=4) | changes
    detector = SPADE(backbone, **settings).fit(normal)
    maps = detector.maps(pictures)
    assert (
        maps.dtype == np.float32
        and maps.shape == (5, *pictures.shape[2:])
        and detector.normal_.rows.dtype == np.float16
    )
    expected = plain_spade(normal, pictures, **settings)
    close(maps, expected, 1e-3)
    np.testing.assert_allclose(detector.score(pictures), expected.max(axis=(1, 2)), rtol=1e-3)
    assert np.array_equal(detector.score(pictures), image_scores(maps))


def plain_scales(normal, *, n_images, layers=LAYERS) -> list[float]:
    """Mean of each layer's distances when every normal image is held against the others."""
    parts = [
        [
            plain_spade(
                np.delete(normal, i, axis=0),
                normal[i : i + 1],
                n_images=n_images,
                sigma=0.0,
                layers=(layer,),
            )
            for i in range(len(normal))
        ]
        for layer in layers
    ]
    return [np.mean([map.mean() for map in maps]) for maps in parts]


def test_balanced_layers_are_on_one_scale(backbone, fitted):
    detector = SPADE(backbone, n_images=4, balanced=True).fit(IMAGES)
    scales = plain_scales(IMAGES, n_images=4)
    # Enlarging weighs the positions nearly alike, not quite.
    np.testing.assert_allclose(detector.scales_, scales, rtol=0.05)
    assert max(scales) > 2 * min(scales) and fitted.scales_.tolist() == [1, 1, 1]
    expected = np.mean(
        [
            plain_spade(IMAGES, QUERIES, n_images=4, layers=(layer,)) / scale
            for layer, scale in zip(LAYERS, detector.scales_)
        ],
        axis=0,
    )
    close(detector.maps(QUERIES), expected, 1e-3)
    assert np.corrcoef(detector.maps(QUERIES).ravel(), fitted.maps(QUERIES).ravel())[0, 1] < 0.999
    assert 0.5 < detector.leave_one_out_maps(progress=False).mean() < 2  # what is usual is about 1


def test_scales_of_many_and_of_equal_images(backbone):
    many = images(60, SIDE)
    some = SPADE(backbone, balanced=True).fit(many)
    everyone = np.array(
        [
            float(some._layer_map(some.normal_[:], some._others(), layer).mean())
            for layer in range(3)
        ]
    )
    np.testing.assert_allclose(some.scales_, everyone, rtol=0.1)  # a part of them tells
    assert SPADE(backbone, balanced=True).fit(IMAGES[[0] * 5]).scales_.tolist() == [
        1,
        1,
        1,
    ]  # and not what rounding leaves
    with pytest.raises(ValueError, match=r"the gallery holds 1 image \(0 with one left out\)"):
        SPADE(backbone, balanced=True).fit(IMAGES[:1])


def test_without_rounding_the_maps_are_closer(backbone, tmp_path):
    """What is left of the difference is the float16 of the gallery."""
    expected = plain_spade(IMAGES, QUERIES, n_images=4)
    close(
        SPADE(backbone, n_images=4, cache=FeatureCache(tmp_path, dtype="float32"))
        .fit(IMAGES)
        .maps(QUERIES),
        expected,
        1e-5,
    )


def test_as_many_images_as_there_are(backbone):
    for n_images in (14, 15, 500):
        detector = SPADE(backbone, n_images=n_images).fit(IMAGES)
        close(detector.maps(QUERIES), plain_spade(IMAGES, QUERIES, n_images=14), 1e-3)
    assert SPADE(backbone).fit(IMAGES[:1]).maps(QUERIES[:1]).shape == (1, SIDE, SIDE)


def test_fewer_images_leave_larger_distances(backbone):
    one, some, all_ = (SPADE(backbone, n_images=n).fit(IMAGES).maps(QUERIES) for n in (1, 4, 14))
    assert (
        (one >= some - 1e-3).all()
        and (some >= all_ - 1e-3).all()
        and one.mean() > 1.05 * some.mean() > 1.1 * all_.mean()
    )


@pytest.mark.parametrize(
    ("small", "size"),
    [((14, 14), (224, 224)), ((7, 5), (48, 33)), ((1, 1), (9, 9)), ((3, 1), (20, 4))],
)
@pytest.mark.parametrize("sigma", [0.0, 4.0])
def test_enlarged_is_interpolation_and_blur(small, size, sigma):
    maps = np.random.default_rng(0).normal(size=(3, *small)).astype(np.float32)
    expected = np.stack(
        [gaussian_filter(larger(map, size), sigma) if sigma else larger(map, size) for map in maps]
    )
    np.testing.assert_allclose(enlarged(maps, size, sigma), expected, atol=1e-5)


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


@pytest.mark.parametrize(
    "make",
    [
        lambda network, **options: SPADE(network, n_images=4, **options),
        lambda network, **options: PatchCore(network, progress=False, **options),
    ],
)
def test_memory_sets_the_size_of_a_batch_and_changes_no_map(backbone, make):
    pictures = images(23, SIDE, seed=3)
    large, small = (make(backbone, memory_mb=memory).fit(IMAGES) for memory in (64, 1e-9))
    whole = large.maps(pictures)
    close(small.maps(pictures), whole, 1e-5)
    for detector, step in (
        (small, 1),
        (make(backbone, memory_mb=5.5 * large._bytes_per_image() / 1e6).fit(IMAGES), 5),
    ):
        lazy = Lazy(pictures)
        parts = detector.iter_maps(lazy)
        first = next(parts)
        assert (
            len(first) == step == max(lazy.asked) and sum(lazy.asked) <= 2 * step + 2
        )  # nothing is drawn ahead
        close(np.concatenate([first, *parts]), whole, 1e-5)
        assert max(lazy.asked) == step
        np.testing.assert_allclose(detector.score(lazy), image_scores(whole), rtol=1e-4)


def test_normal_images_may_be_drawn_on_demand(backbone, fitted, monkeypatch):
    monkeypatch.setattr(backbones, "PIXELS_PER_BATCH", 3 * SIDE * SIDE)
    lazy = Lazy(IMAGES)
    close(
        SPADE(backbone, n_images=4).fit(lazy).maps(torch.from_numpy(QUERIES)),
        fitted.maps(QUERIES),
        1e-5,
    )
    assert max(lazy.asked) == 3


def test_the_gallery_on_disk(backbone, fitted, tmp_path, monkeypatch):
    passed, forward = [], backbones.Backbone.forward
    monkeypatch.setattr(
        backbones.Backbone,
        "forward",
        lambda self, pictures, layers=(), **how: (
            passed.append(len(pictures)) or forward(self, pictures, layers, **how)
        ),
    )
    maps = []
    for expected in (1 + 14, 1):  # the first image tells the sizes; the second time that is all
        passed.clear()
        detector = SPADE(backbone, n_images=4, cache=FeatureCache(tmp_path)).fit(IMAGES)
        assert sum(passed) == expected and isinstance(detector.normal_.rows, np.memmap)
        maps.append(detector.maps(QUERIES))
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(
        maps[0], fitted.maps(QUERIES)
    )  # float16 either way
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_allclose(
        detector.leave_one_out_maps(progress=False),
        fitted.leave_one_out_maps(progress=False),
        rtol=1e-6,
    )


def test_what_the_gallery_on_disk_depends_on(backbone, tmp_path):
    other_head = small_backbone(seed=1).trainable
    for number, (network, layers, pictures) in enumerate(
        [
            (backbone, LAYERS, IMAGES),
            (backbone.with_trainable(other_head), LAYERS, IMAGES),
            (backbone, LAYERS[:2], IMAGES),
            (backbone, LAYERS, IMAGES[::-1]),
            (small_backbone(seed=2), LAYERS, IMAGES),
        ]
    ):
        cached, plain = (
            SPADE(network, layers=layers, n_images=4, cache=cache).fit(pictures)
            for cache in (FeatureCache(tmp_path), None)
        )
        assert len(list(tmp_path.iterdir())) == number + 1
        assert np.array_equal(cached.maps(QUERIES), plain.maps(QUERIES))


def test_leave_one_out_is_by_index(backbone):
    """A twin is another image: it may be met. The image itself may not."""
    pictures = np.concatenate([IMAGES, IMAGES[3:4]])
    detector = SPADE(backbone, n_images=4).fit(pictures)
    maps = detector.leave_one_out_maps(progress=False)
    assert maps.shape == (15, SIDE, SIDE)
    scores, usual = image_scores(maps), np.median(image_scores(maps))
    twins = np.isin(np.arange(15), [3, 14])
    assert scores[twins].max() < 1e-4 * usual and scores[~twins].min() > 0.2 * usual
    for i in (0, 7, 13):
        others = SPADE(backbone, n_images=4).fit(np.delete(pictures, i, axis=0))
        close(maps[i : i + 1], others.maps(pictures[i : i + 1]), 1e-3)
    detector.memory_mb = 1e-9
    close(detector.leave_one_out_maps(progress=False), maps, 1e-5)
    detector.n_images = 99
    close(
        detector.leave_one_out_maps(progress=False)[:1],
        SPADE(backbone).fit(pictures[1:]).maps(pictures[:1]),
        1e-3,
    )


def test_one_image_cannot_be_left_out(backbone):
    with pytest.raises(ValueError, match=r"the gallery holds 1 image \(0 with one left out\)"):
        SPADE(backbone).fit(IMAGES[:1]).leave_one_out_maps()


def shaded(n, seed=0, side=SIDE) -> np.ndarray:
    """Normal: a shade from dark to light with some noise, uint8 (n, 3, side, side)."""
    rng = np.random.default_rng(seed)
    ground = np.linspace(60, 180, side)[:, None] + rng.uniform(-15, 15, size=(n, 3, 1, 1))
    return np.clip(ground + rng.normal(0, 8, size=(n, 3, side, side)), 0, 255).astype(np.uint8)


def painted(n, seed=1, side=SIDE) -> tuple[np.ndarray, np.ndarray]:
    """The same with a square of another colour in every second image, and its mask."""
    pictures, masks, rng = (
        shaded(n, seed),
        np.zeros((n, side, side), bool),
        np.random.default_rng(seed),
    )
    for picture, mask in list(zip(pictures, masks))[1::2]:
        top, left = rng.integers(4, side - 16, size=2)
        mask[top : top + 12, left : left + 12] = True
        picture[:, mask] = np.array([[250], [30], [40]])
    return pictures, masks


@pytest.mark.parametrize(
    "make",
    [
        lambda network: SPADE(network, n_images=10, sigma=2.0),
        lambda network: PatchCore(network, layers=("layer1", "layer2"), sigma=2.0, progress=False),
    ],
)
def test_a_painted_square_is_found(backbone, make):
    pictures, masks = painted(20)
    detector = make(backbone).fit(shaded(20))
    maps = detector.maps(pictures)
    assert pixel_roc_auc(masks, maps) > 0.95
    assert roc_auc(masks.any(axis=(1, 2)), detector.score(pictures)) == 1
    for mask, map in zip(masks[1::2], maps[1::2]):
        assert binary_dilation(mask, iterations=4)[
            np.unravel_index(map.argmax(), map.shape)
        ]  # the peak is at the square


def test_the_threshold_keeps_its_promise_on_normal_images(backbone):
    detector = SPADE(backbone, n_images=20).fit(shaded(60))
    new = detector.score(shaded(150, seed=5))
    assert (new > detector.threshold(0.2)).mean() == pytest.approx(0.2, abs=0.12)
    assert (new > detector.threshold(0.05)).mean() < 0.12
    assert (detector.score(painted(20)[0][1::2]) > detector.threshold(0.05)).all()


def test_coreset_is_greedy():
    features = torch.randn(150, 9, generator=torch.Generator().manual_seed(0))
    chosen = coreset(features, 40, seed=3, progress=False).tolist()
    distances = squared(features.numpy(), features.numpy())
    for number in range(1, 40):
        farthest = distances[:, chosen[:number]].min(axis=1).argmax()
        assert chosen[number] == farthest
    assert coreset(features, 15, seed=3, progress=False).tolist() == chosen[:15]
    assert len({coreset(features, 1, seed=seed, progress=False).item() for seed in range(9)}) > 3


@pytest.mark.parametrize("width", [16, 300])
def test_coreset_covers_better_than_chance(width):
    """With and without a projection: fewer dimensions than features have in truth would not do."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(600, 6, generator=generator).exp()  # a dense middle and thin borders
    features = 50 + spread @ torch.randn(6, width, generator=generator)
    distances = squared(features.numpy(), features.numpy())
    chosen = coreset(features, 60, progress=False)
    assert chosen.dtype == torch.int64 and len(set(chosen.tolist())) == 60
    radius = distances[:, chosen].min(axis=1).max()
    by_chance = [
        distances[:, np.random.default_rng(seed).choice(600, 60, replace=False)].min(axis=1).max()
        for seed in range(20)
    ]
    assert radius < 0.5 * min(by_chance)


@pytest.mark.parametrize("width", [5, 200])
def test_no_patch_is_chosen_twice(width):
    features = (
        torch.randn(12, width, generator=torch.Generator().manual_seed(0)).repeat(10, 1) + 100
    )
    chosen = coreset(features, 120, progress=False).tolist()
    assert (
        sorted(chosen) == list(range(120)) and len({number % 12 for number in chosen[:12]}) == 12
    )  # different ones first
    assert sorted(coreset(torch.ones(7, width), 7, progress=False).tolist()) == list(range(7))


@pytest.mark.parametrize("n_kept", [0, -1, 8])
def test_a_coreset_that_cannot_be(n_kept):
    with pytest.raises(
        ValueError, match=f"n_kept={n_kept}: expected 1 to 7, the number of features"
    ):
        coreset(torch.zeros(7, 2), n_kept)


def plain_patches(pictures, layers) -> np.ndarray:
    """(n, h, w, C): means over 3 x 3 positions, zero where there is none, at the resolution of the first layer."""
    found, parts = plain_layers(pictures), []
    size = found[layers[0]].shape[1:3]
    for layer in layers:
        values = found[layer]
        means = np.empty_like(values)
        for row in range(values.shape[1]):
            for column in range(values.shape[2]):
                means[:, row, column] = (
                    values[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].sum(
                        axis=(1, 2)
                    )
                    / 9
                )
        parts.append(
            F.interpolate(
                torch.from_numpy(means).permute(0, 3, 1, 2),
                size=size,
                mode="bilinear",
                align_corners=False,
            )
            .permute(0, 2, 3, 1)
            .numpy()
        )
    return np.concatenate(parts, axis=3)


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize(
    ("layers", "share"),
    [(("layer2", "layer3"), 1.0), (("layer1", "layer2", "layer3"), 0.1), (("layer2",), 0.3)],
)
def test_maps_of_the_bank_are_those_of_the_definition(backbone, layers, share, shape):
    normal, pictures = (part[:, :, :32] if shape == "wide" else part for part in (IMAGES, QUERIES))
    detector = PatchCore(backbone, layers=layers, coreset_ratio=coreset_ratio, progress=False).fit(
        normal
    )
    patches = plain_patches(normal, layers)
    everything, high, wide = patches.reshape(-1, patches.shape[3]), *patches.shape[1:3]
    assert (
        detector.bank_.shape == (round(share * len(everything)), patches.shape[3])
        and detector.bank_.dtype == torch.float32
    )
    apart = squared(detector.bank_.numpy(), everything)
    assert apart.min(axis=1).max() < 1e-6 * apart.max() and len(set(apart.argmin(axis=1))) == len(
        detector.bank_
    )  # some of them, none twice
    bank = everything[apart.argmin(axis=1)]
    queries = plain_patches(pictures, layers)
    expected = [
        gaussian_filter(
            larger(
                squared(q.reshape(-1, q.shape[2]), bank).min(axis=1).reshape(high, wide),
                pictures.shape[2:],
            ),
            4.0,
        )
        for q in queries
    ]
    close(detector.maps(pictures), np.stack(expected), 1e-4)
    np.testing.assert_allclose(detector.score(pictures), np.max(expected, axis=(1, 2)), rtol=1e-3)
    assert (detector.maps(normal).max() < 1e-3 * np.max(expected)) == (share == 1)


def test_one_seed_one_bank(backbone):
    first, again, other = (
        PatchCore(backbone, seed=seed, progress=False).fit(IMAGES) for seed in (0, 0, 1)
    )
    assert torch.equal(first.bank_, again.bank_) and not torch.equal(first.bank_, other.bank_)


def test_pyramids(backbone):
    pyramids = Pyramids.of(backbone, IMAGES, LAYERS, dtype=np.float32)
    found = plain_layers(IMAGES)
    assert len(pyramids) == 14 and pyramids.shapes == [found[name].shape[1:] for name in LAYERS]
    np.testing.assert_allclose(pyramids.pooled, found["pooled"], atol=1e-4)
    for number, name in enumerate(LAYERS):
        np.testing.assert_allclose(
            pyramids.positions(5, number),
            found[name][5].reshape(-1, found[name].shape[3]),
            atol=1e-4,
        )
        np.testing.assert_allclose(
            pyramids.mean(number), found[name].mean(axis=(0, 1, 2)), atol=1e-4
        )
        assert torch.equal(
            pyramids.positions(slice(2, 4), number), pyramids[2:4].positions(slice(None), number)
        )


@pytest.mark.parametrize("cached", [False, True])
def test_features_beyond_float16_are_refused(tmp_path, cached):
    """An overflow would be an infinite distance, or none at all."""
    network = small_backbone()
    with torch.no_grad():
        network.trainable.layer3[0].bn2.weight.mul_(3e5)
    bright = np.concatenate([np.zeros_like(IMAGES[:9]), IMAGES[:2]])
    cache = FeatureCache(tmp_path) if cached else None
    with pytest.raises(
        ValueError,
        match=r"features reach \d.*: expected finite numbers below 65,504, the largest in float16",
    ):
        SPADE(network, cache=cache).fit(bright)
    assert not list(tmp_path.iterdir())
    assert np.isfinite(
        SPADE(network, cache=FeatureCache(tmp_path, dtype="float32")).fit(bright).maps(QUERIES)
    ).all()
    with torch.no_grad():
        network.trainable.layer3[0].bn2.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="features reach nan"):
        SPADE(network).fit(bright)


@pytest.mark.parametrize("make", [SPADE, PatchCore])
def test_images_that_cannot_be(backbone, make):
    detector = make(backbone)
    with pytest.raises(NotFittedError, match=f"This {make.__name__} has seen no normal images yet"):
        detector.maps(QUERIES)
    for wrong, message in (
        (IMAGES[:0], "there are no images"),
        (IMAGES.astype(np.float32), "images are float32"),
        (IMAGES[0], "images are uint8 .3, 48, 48.|images are uint8 .1, 48, 48."),
    ):
        with pytest.raises(ValueError, match=message):
            detector.fit(wrong)
    detector.fit(IMAGES[:3])
    for wrong, message in (
        (images(2), "^images are 32 x 32 pixels: expected 48 x 48, as the normal images"),
        (QUERIES[:, :, :32], "^images are 32 x 48 pixels"),
        (QUERIES[:0], "^there are no images: expected uint8"),
        (QUERIES.astype(np.float32), "^images are float32"),
        (QUERIES[0], "^images are uint8 .1, 48, 48.: expected uint8"),
        (np.zeros(3, np.uint8), "^images are uint8 .1,.: expected uint8"),
    ):
        for look in (
            detector.maps,
            detector.score,
            lambda pictures: next(detector.iter_maps(pictures)),
        ):
            with pytest.raises(ValueError, match=message):
                look(wrong)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            SPADE,
            dict(layers="layer1"),
            r"^layers='layer1': expected a list of names, as \('layer1', 'layer2'\)",
        ),
        (PatchCore, dict(layers=()), r"^layers=\(\): expected a list of names"),
        (SPADE, dict(sigma=-1), "^sigma=-1: expected the width of the blur in pixels, 0 or more"),
        (PatchCore, dict(sigma=np.nan), "^sigma=nan"),
        (SPADE, dict(memory_mb=0), "^memory_mb=0: expected megabytes, above 0"),
        (PatchCore, dict(memory_mb=np.nan), "^memory_mb=nan"),
        (SPADE, dict(n_images=0), "^n_images=0: expected a whole number of at least 1"),
        (SPADE, dict(n_images=2.5), "^n_images=2.5: expected a whole number"),
        (SPADE, dict(kappa=0), "^kappa=0: expected a whole number"),
        (PatchCore, dict(coreset_ratio=0), "^share=0: expected the part of the patches"),
        (PatchCore, dict(coreset_ratio=1.5), "^share=1.5"),
    ],
)
def test_settings_that_cannot_be(backbone, make, options, message):
    with pytest.raises(ValueError, match=message):
        make(backbone, **options)


def test_layers_and_neighbours_that_cannot_be(backbone):
    for make in (SPADE, PatchCore):
        with pytest.raises(ValueError, match="small up to layer4 has no layer layer5"):
            make(backbone, layers=("layer1", "layer5")).fit(IMAGES)
    detector = SPADE(backbone, kappa=10, layers=("layer3",)).fit(images(1))  # 2 x 2 positions
    with pytest.raises(ValueError, match="kappa=10: a gallery has fewer positions than that"):
        detector.maps(images(1))


@pytest.mark.parametrize("together", [1, 40, 300])
def test_how_many_normal_images_go_together_changes_no_map(backbone, fitted, monkeypatch, together):
    everyone = SPADE(backbone).fit(IMAGES).maps(QUERIES)
    monkeypatch.setattr(
        segment, "TOGETHER", together
    )  # positions; a layer has 144, 36 or 9 an image
    close(SPADE(backbone).fit(IMAGES).maps(QUERIES), everyone, 1e-5)
    close(SPADE(backbone, n_images=4).fit(IMAGES).maps(QUERIES), fitted.maps(QUERIES), 1e-5)


def test_a_tile_stays_a_tile(monkeypatch):
    """However many positions there are, the distances in hand are those of one tile."""
    sizes, addmm = [], torch.addmm
    monkeypatch.setattr(
        torch,
        "addmm",
        lambda *parts, out, **options: (
            sizes.append(out.numel()) or addmm(*parts, out=out, **options)
        ),
    )
    nearest_squared(torch.randn(3000, 4), torch.randn(5000, 4))
    assert (
        max(sizes) <= correspond.TILE_ROWS * correspond.TILE_COLUMNS and sum(sizes) == 3000 * 5000
    )
