from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
import torch

from pandalib import pixel_roc_auc, pro, pro_curve
from pandalib.metrics import roc_auc
from pandalib.pixel_metrics import regions


def regions_by_flood_fill(masks):
    """The pixels (image, row, column) of every 8-connected region, by walking from neighbour to neighbour."""
    left, found = {tuple(pixel) for pixel in np.argwhere(masks)}, []
    while left:
        region, border = set(), [left.pop()]
        while border:
            image, row, column = border.pop()
            region.add((image, row, column))
            near = {(image, row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            border += near
        found.append(region)
    return found


def corners_by_definition(masks, maps):
    """(fpr, overlap, threshold) at every distinct score, region by region, in fractions: no rounding at all."""
    masks, found, rows = (
        np.asarray(masks) == 1,
        regions_by_flood_fill(masks),
        [(Fraction(0), Fraction(0), np.inf)],
    )
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        alarm = maps >= threshold
        overlap = sum(
            Fraction(sum(bool(alarm[pixel]) for pixel in region), len(region)) for region in found
        ) / len(found)
        rows.append(
            (Fraction(int((alarm & ~masks).sum()), int((~masks).sum())), overlap, threshold)
        )
    return rows


def pro_by_definition(masks, maps, limit=0.3):
    """The area, cut where the line between two corners crosses the limit."""
    corners, limit, area = corners_by_definition(masks, maps), Fraction(limit), Fraction(0)
    for (x0, y0, _), (x1, y1, _) in zip(corners, corners[1:]):
        if x1 > limit:
            if x0 >= limit:
                break
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return float(area / limit)


def random_case(seed):
    """Small masks with several regions, a good image among them, and maps that follow them somewhat, with ties."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 5), rng.integers(2, 8), rng.integers(2, 8)
    masks = rng.random(shape) < rng.choice([0.05, 0.2, 0.6])
    masks[0, 0, 0], masks[-1, -1, -1] = True, False
    if len(masks) > 2:
        masks[1] = seed % 2  # wholly normal or wholly anomalous
    maps = rng.integers(0, rng.choice([2, 5, 1000]), shape) + rng.integers(0, 4) * masks
    return masks, maps


def discs(seed=0, n=6, size=40):
    """Images with discs, and float32 maps that see some of them."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size]
    masks = np.zeros((n, size, size), bool)
    for image in masks[1:]:
        for _ in range(3):
            centre, radius = rng.integers(0, size, 2), rng.integers(1, 6)
            image |= (row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2
    return masks, (rng.standard_normal(masks.shape) + 1.5 * masks).astype(np.float32)


def test_pro_of_a_small_example_by_hand():
    # Two regions, of one and of two pixels, and four normal pixels. From the top: 9 (region 2, half), 8 (normal),
    # 7 (region 1), 6 (normal), 5 (region 2, rest), 4, 3.
    masks = [[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]]
    maps = [[[7, 8, 9], [6, 4, 5]], [[3, 3, 3], [3, 3, 3]]]
    false_positive_rate, overlap, thresholds = pro_curve(masks, maps)
    np.testing.assert_array_equal(thresholds, [np.inf, 9, 8, 7, 6, 5, 4, 3])
    np.testing.assert_allclose(false_positive_rate, np.array([0, 0, 1, 1, 2, 2, 3, 9]) / 9)
    np.testing.assert_allclose(overlap, [0, 0.25, 0.25, 0.75, 0.75, 1, 1, 1])
    # Up to 2.5 of 9 normal pixels: 1 x 0.25 + 1 x 0.75 + 0.5 x 1.
    assert pro(masks, maps, limit=2.5 / 9) == pytest.approx(1.5 / 2.5, abs=1e-15)


@pytest.mark.parametrize("seed", range(150))
def test_pro_equals_the_definition(seed):
    masks, maps = random_case(seed)
    expected = corners_by_definition(masks, maps)
    for ours, theirs in zip(pro_curve(masks, maps), zip(*expected)):
        np.testing.assert_allclose(ours, [float(value) for value in theirs], rtol=0, atol=1e-12)
    for limit in (0.3, 1, 0.05, 1e-6, np.random.default_rng(seed).random()):
        assert pro(masks, maps, limit=limit) == pytest.approx(
            pro_by_definition(masks, maps, limit), abs=1e-12
        )


def test_pro_of_more_scores_equals_the_definition():
    masks, maps = discs(n=3, size=20)
    assert pro(masks, maps) == pytest.approx(pro_by_definition(masks, maps), abs=1e-12)


@pytest.mark.parametrize(
    "make_maps",
    [
        lambda rng, masks: rng.standard_normal(masks.shape) + masks,
        lambda rng, masks: (100 + 0.001 * (rng.standard_normal(masks.shape) + masks)).astype(
            np.float32
        ),  # raw distances
        lambda rng, masks: rng.integers(0, 4, masks.shape) + masks,  # many ties, whole numbers
        lambda rng, masks: (rng.standard_normal(masks.shape) + masks).astype(np.float16),
        lambda rng, masks: rng.random(masks.shape) < 0.5,
    ],
)
def test_pixel_auc_equals_scikit_learn(make_maps):
    for seed in range(10):
        masks = discs(seed, n=3, size=20)[0]
        maps = make_maps(np.random.default_rng(seed), masks)
        expected = sklearn.metrics.roc_auc_score(masks.ravel(), maps.ravel())
        # 1e-12: rounding of the reference's float64 sum of trapezia.
        assert pixel_roc_auc(masks, maps) == pytest.approx(expected, abs=1e-12)
        assert pixel_roc_auc(masks, maps) == roc_auc(masks.ravel(), maps.ravel())


def test_pixel_auc_of_millions_of_pixels_stays_whole():
    # 4 million pixels: the number of pairs, 4e12, is past the range of int32 and of float32's whole numbers.
    masks = np.zeros((1, 2000, 2000), bool)
    masks[:, :1000] = True
    maps = masks.astype(np.float32)
    assert pixel_roc_auc(masks, maps) == 1.0
    maps[0, 0, 0] = -1  # one anomalous pixel below every normal one
    assert pixel_roc_auc(masks, maps) == 1 - 1 / 2_000_000


def test_regions_that_touch_at_a_corner_are_one_and_end_with_their_image():
    masks = np.zeros((2, 3, 4), int)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 2, 0] = 1  # a diagonal there and back
    masks[0, 0, 3] = 1
    masks[1, 0, 0] = 1  # the same place in the next image
    labels = regions(masks)
    assert labels.dtype == np.int32 and labels.max() == 3
    assert labels[0, 0, 0] == labels[0, 1, 1] == labels[0, 2, 0]
    np.testing.assert_array_equal(labels > 0, masks)
    maps = np.zeros(masks.shape)
    maps[0, 0, 0] = 1  # found: one pixel of three in the first region, nothing else
    assert pro(masks, maps) == pytest.approx(1 / 9 + 0.3 * 8 / 9 / 2, abs=1e-12)


@pytest.mark.parametrize("together", [True, False])
def test_a_region_weighs_the_same_whatever_its_size_and_image(together):
    masks = np.zeros((2, 30, 30), bool)
    large, small = (
        (0, slice(2, 22), slice(2, 22)),
        (0 if together else 1, slice(25, 26), slice(25, 26)),
    )
    masks[large] = masks[small] = True
    for found in (large, small):
        maps = np.random.default_rng(0).random(masks.shape)
        maps[masks], maps[found] = -1, 2
        assert pro(masks, maps) == pytest.approx(0.5, abs=1e-15)


def test_pro_and_pixel_auc_may_disagree():
    # One large defect is found and twenty defects of one pixel are missed, or the other way round.
    masks = np.zeros((2, 100, 100), bool)
    masks[0, 20:80, 20:80] = True
    masks[1, ::20, ::25] = True
    maps = np.random.default_rng(0).random(masks.shape)
    large_found, small_found = maps.copy(), maps.copy()
    large_found[masks], large_found[0, 20:80, 20:80] = -1, 2
    small_found[masks], small_found[1, ::20, ::25] = -1, 2
    assert pixel_roc_auc(masks, large_found) > 0.99 and pro(masks, large_found) < 0.05
    assert pixel_roc_auc(masks, small_found) < 0.01 and pro(masks, small_found) > 0.95


def test_figures_depend_on_the_order_of_scores_only():
    masks, maps = discs()
    maps = maps.astype(np.float64)  # float32 would merge neighbouring scores
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape)
    for changed in (7 * maps - 100, np.exp(maps), maps**3, ranks):
        np.testing.assert_array_equal(
            np.unique(changed, return_inverse=True)[1].reshape(maps.shape), ranks
        )
        assert pro(masks, changed) == pro(masks, maps)
        assert pixel_roc_auc(masks, changed) == pixel_roc_auc(masks, maps)


def test_the_order_of_images_and_the_orientation_change_no_bit():
    masks, maps = discs()
    maps = np.round(maps, 1)  # ties, within a region and across regions
    order = np.random.default_rng(0).permutation(len(masks))
    for other in (
        (masks[order], maps[order]),
        (masks[:, ::-1, ::-1], maps[:, ::-1, ::-1]),
        (masks.transpose(0, 2, 1), maps.transpose(0, 2, 1)),
    ):
        assert pro(*other) == pro(masks, maps) and pixel_roc_auc(*other) == pixel_roc_auc(
            masks, maps
        )
        for one, two in zip(pro_curve(*other), pro_curve(masks, maps)):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("limit", [1, 0.3, 0.1, 1 / 3, 0.05, 1e-3, 1e-12, 1e-300])
def test_perfect_inverted_and_constant_maps(limit):
    masks, noise = discs()
    noise = np.tanh(noise)
    for perfect in (masks, masks * 1.0, noise + 4 * masks):  # in one step, or in many
        assert pro(masks, perfect, limit=limit) == 1.0
        assert pixel_roc_auc(masks, perfect) == 1.0
    assert pixel_roc_auc(masks, ~masks) == 0.0
    assert pro(masks, noise - 4 * masks, limit=limit) == 0.0
    for value in (0, 0.1, -1e30):
        constant = np.full(masks.shape, value)
        assert pixel_roc_auc(masks, constant) == 0.5
        assert pro(masks, constant, limit=limit) == pytest.approx(limit / 2, rel=1e-12)
        assert [list(line) for line in pro_curve(masks, constant)] == [
            [0, 1],
            [0, 1],
            [np.inf, value],
        ]


def test_curve_rises_from_0_to_exactly_1_and_its_area_is_pro():
    rng = np.random.default_rng(0)
    masks = (
        rng.random((3, 300, 300)) < 0.05
    )  # thousands of regions whose shares are no round numbers
    maps = rng.random(masks.shape, dtype=np.float32)
    false_positive_rate, overlap, thresholds = pro_curve(masks, maps)
    assert (
        false_positive_rate[0] == overlap[0] == 0 and false_positive_rate[-1] == overlap[-1] == 1.0
    )
    assert (
        (np.diff(false_positive_rate) >= 0).all()
        and (np.diff(overlap) >= 0).all()
        and (np.diff(thresholds) < 0).all()
    )
    assert len(thresholds) == len(np.unique(maps)) + 1
    assert pro(masks, maps, limit=1) == pytest.approx(
        np.trapezoid(overlap, false_positive_rate), abs=1e-12
    )
    # The last pixel's share is not lost among a quarter of a million additions.
    lowest = np.unravel_index(np.argmin(np.where(masks, maps, 2)), masks.shape)
    labels = regions(masks)
    share = 1 / np.count_nonzero(labels == labels[lowest]) / labels.max()
    assert 1 - overlap[thresholds == thresholds[thresholds > maps[lowest]][-1]][0] == pytest.approx(
        share, abs=1e-12
    )


def test_a_full_mask_adds_a_region_and_a_good_image_adds_normal_pixels():
    masks = np.stack([np.ones((4, 4)), np.zeros((4, 4))])
    maps = np.stack([np.arange(16.0).reshape(4, 4), np.arange(16.0).reshape(4, 4)])
    assert regions(masks).max() == 1
    assert pixel_roc_auc(masks, maps) == 0.5
    assert pro(masks, maps) == pytest.approx(pro_by_definition(masks, maps), abs=1e-12)
    # Four times the normal pixels, none of them above the defects: the alarms of the first ones are spread thinner.
    more_masks, more_maps = (
        np.concatenate([masks, np.zeros((3, 4, 4))]),
        np.concatenate([maps, np.full((3, 4, 4), -1.0)]),
    )
    assert pro_curve(more_masks, more_maps)[0][16] == 0.25
    assert pro(more_masks, more_maps) > pro(masks, maps)


def test_small_limits_see_the_first_false_alarms_only():
    masks = np.array([[[1, 1, 0, 0, 0, 0]]])
    maps = np.array([[[9, 1, 5, 4, 3, 2]]])  # half the region above every normal pixel, half below
    for limit in (0.3, 0.9, 1e-9):
        assert pro(masks, maps, limit=limit) == pytest.approx(0.5, abs=1e-12)
    # 1 is below all: at the limit 1 the last step is vertical and adds no area.
    assert pro(masks, maps, limit=1) == 0.5


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int64, np.float16, np.float32, np.float64, ">f4"]
)
def test_types_of_maps_and_masks(dtype):
    masks, maps = discs()
    maps = np.clip(np.round(10 * maps) + 50, 0, 100)
    expected = pro(masks, maps), pixel_roc_auc(masks, maps)
    given = maps.astype(dtype)
    before = given.copy()
    for mask_dtype in (bool, np.uint8, np.int64, np.float32):
        assert (
            pro(masks.astype(mask_dtype), given),
            pixel_roc_auc(masks.astype(mask_dtype), given),
        ) == expected
    np.testing.assert_array_equal(given, before)  # nothing is written into the caller's array
    assert given.dtype == before.dtype


def test_tensors_and_lists_are_accepted():
    masks, maps = discs()
    maps = np.round(maps)
    expected = pro(masks, maps)
    assert pro(torch.tensor(masks), torch.tensor(maps, requires_grad=True)) == expected
    assert pro(torch.tensor(masks).float(), torch.tensor(maps, dtype=torch.bfloat16)) == expected
    assert pro(masks.tolist(), maps.tolist()) == expected
    assert pixel_roc_auc(torch.tensor(masks), torch.tensor(maps)) == pixel_roc_auc(masks, maps)
    assert type(expected) is float and type(pixel_roc_auc(masks, maps)) is float


def with_value(array, value):
    array = np.array(array, dtype=float)
    array[1, 0, 2] = value
    return array


MASKS = np.zeros((2, 2, 3), int)
MASKS[0, 0, 0] = 1
MAPS = np.arange(12.0).reshape(2, 2, 3)


@pytest.mark.parametrize("function", [pro, pro_curve, pixel_roc_auc])
@pytest.mark.parametrize(
    "masks, maps, message",
    [
        (
            MASKS,
            with_value(MAPS, np.nan),
            "maps hold 1 NaN values among 12, the first at image 1, row 0, column 2",
        ),
        (
            MASKS,
            with_value(MAPS, np.inf),
            "maps hold 1 infinite values .* image 1, row 0, column 2",
        ),
        (MASKS, with_value(MAPS, -np.inf).astype(np.float16), "maps hold 1 infinite values"),
        (
            MASKS[0],
            MAPS[0],
            r"masks must be three-dimensional.* got shape \(2, 3\); for one image pass masks\[None\]",
        ),
        (
            MASKS,
            MAPS[0],
            r"maps must be three-dimensional.* got shape \(2, 3\); for one image pass maps\[None\]",
        ),
        (MASKS, MAPS[:, None], r"got shape \(2, 1, 2, 3\); for one channel pass maps\[:, 0\]"),
        (
            MASKS,
            MAPS.ravel(),
            r"maps must be three-dimensional, \(images, height, width\); got shape \(12,\)\.$",
        ),
        (MASKS, MAPS[:, :1], r"shapes \(2, 2, 3\) and \(2, 1, 3\).*nearest neighbours only"),
        (MASKS, MAPS[:1], r"shapes \(2, 2, 3\) and \(1, 2, 3\)"),
        (MASKS[:0], MAPS[:0], "masks is empty"),
        (
            MASKS * 255,
            MAPS,
            r"got 255 at image 0, row 0, column 0.*`masks > 0`.*nearest neighbours only",
        ),
        (with_value(MASKS, 0.5), MAPS, "got 0.5 at image 1, row 0, column 2"),
        (with_value(MASKS, np.nan), MAPS, "got nan at image 1"),
        (MASKS.astype(str), MAPS, "got '1' at image 0"),
        (MASKS * 0, MAPS, "no anomalous pixel among 12; add images with a defect"),
        (MASKS * 0 + 1, MAPS, "no normal pixel among 12; add normal images"),
        (MASKS, MAPS.astype(str), "maps must hold real numbers"),
        (MASKS, MAPS * 1j, "maps must hold real numbers"),
    ],
)
def test_wrong_input_is_named(function, masks, maps, message):
    with pytest.raises(ValueError, match=message):
        function(masks, maps)


@pytest.mark.parametrize("limit", [0, -0.1, 1.0001, 30, np.nan])
def test_a_limit_is_a_share(limit):
    with pytest.raises(
        ValueError, match=f"limit must be a share above 0 and at most 1.*got {limit}"
    ):
        pro(MASKS, MAPS, limit=limit)


@pytest.mark.parametrize(
    "masks, message",
    [(MASKS[0], r"masks\[None\]"), (MASKS * 2, "got 2 at image 0"), (MASKS[:0], "empty")],
)
def test_regions_check_their_masks(masks, message):
    with pytest.raises(ValueError, match=message):
        regions(masks)
    assert not regions(MASKS * 0).any()  # normal images alone are no error here
