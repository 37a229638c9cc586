"""Organs, lesions and blobs painted with known values."""

import math

import numpy as np
import pytest

from denoise.regions import HotBlobs, contrast_recovery, hot_blobs, missed_lesions, organ_means, suv_max

SHAPE = (24, 24, 24)
SPACING = (4.0, 4.0, 4.0)
CENTER = (slice(10, 14),) * 3


def background(value=2.0):
    return np.full(SHAPE, value, np.float32)


def with_lesion(value, background_value=2.0):
    """One lesion of 4 voxels a side in a uniform background; its label is 3."""
    image, labels = background(background_value), np.zeros(SHAPE, np.uint8)
    image[CENTER], labels[CENTER] = value, 3
    return image, labels


def test_organ_means_leave_out_the_outermost_voxels():
    image, labels = background(9.0), np.zeros(SHAPE, np.uint8)
    labels[2:7, 2:7, 2:7] = 1
    image[3:6, 3:6, 3:6] = 4
    assert organ_means(image, labels, {0: "outside", 1: "liver", 2: "spleen"}) == {"liver": 4.0}


def test_a_small_organ_is_taken_whole():
    """A cube of 4 would keep 8 voxels, of which 20 are wanted."""
    image, labels = background(9.0), np.zeros(SHAPE, np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    image[3:5, 3:5, 3:5] = 1
    assert organ_means(image, labels, {1: "gland"})["gland"] == pytest.approx((8 * 1 + 56 * 9) / 64)


def test_labels_of_one_name_make_one_organ():
    image, labels = background(1.0), np.zeros(SHAPE, np.uint8)
    labels[2:7, 2:7, 2:7], labels[10:15, 2:7, 2:7] = 1, 2
    image[10:15] = 3
    assert organ_means(image, labels, {1: "lungs", 2: "lungs"}) == {"lungs": pytest.approx(2.0)}


def test_suv_max_of_each_lesion():
    image, labels = with_lesion(5.0)
    image[11, 11, 11], image[0, 0, 0] = 8, 70
    labels[20, 20, 20] = 7
    assert suv_max(image, labels) == {3: 8.0, 7: 2.0}


def test_contrast_recovery_is_a_ratio_of_contrasts():
    reference, labels = with_lesion(10.0)
    found, _ = with_lesion(7.0, background_value=2.5)
    assert contrast_recovery(found, reference, labels, SPACING) == {3: pytest.approx((7 / 2.5 - 1) / (10 / 2 - 1))}
    assert contrast_recovery(reference, reference, labels, SPACING) == {3: pytest.approx(1)}


def test_background_is_the_shell_of_5_to_15_mm():
    reference, labels = with_lesion(10.0)
    found = reference.copy()
    # Centers 4 mm and 16 mm from those of the lesion.
    found[9, 10:14, 10:14], found[17, 10:14, 10:14] = 500, 500
    assert contrast_recovery(found, reference, labels, SPACING)[3] == pytest.approx(1)
    for inside in (8, 16):
        touched = reference.copy()
        touched[inside, 10, 10] = 500
        assert contrast_recovery(touched, reference, labels, SPACING)[3] < 0.9


def test_background_is_measured_in_mm():
    """With planes of 2 mm, the third plane from the lesion is 6 mm away and the second 4 mm."""
    reference, labels = with_lesion(10.0)
    for plane, untouched in ((8, True), (7, False)):
        found = reference.copy()
        found[10:14, 10:14, plane] = 500
        kept = contrast_recovery(found, reference, labels, (4.0, 4.0, 2.0))[3]
        assert (kept == pytest.approx(1)) is untouched


def test_other_lesions_are_no_background():
    reference, labels = with_lesion(10.0)
    labels[12, 12, 16] = 5
    found = reference.copy()
    found[12, 12, 15:18] = 300
    assert contrast_recovery(found, reference, labels, SPACING)[3] == pytest.approx(1)


def test_recovery_without_contrast_or_background_is_undefined():
    flat, labels = with_lesion(2.0)
    assert math.isnan(contrast_recovery(flat, flat, labels, SPACING)[3])
    hot, _ = with_lesion(5.0, background_value=0.0)
    assert math.isnan(contrast_recovery(hot, hot, labels, SPACING)[3])
    everywhere = np.ones(SHAPE, np.uint8)
    assert math.isnan(contrast_recovery(hot, hot, everywhere, SPACING)[1])
    assert missed_lesions(hot, hot, everywhere, SPACING) == []


@pytest.mark.parametrize(("value", "missed"), [(5.9, [3]), (6.1, []), (1.0, [3])])
def test_a_lesion_with_less_than_half_of_its_contrast_is_missed(value, missed):
    """Reference contrast 10 / 2 - 1 = 4; half of it is at a lesion value of 6."""
    reference, labels = with_lesion(10.0)
    found, _ = with_lesion(value)
    assert missed_lesions(found, reference, labels, SPACING) == missed


def test_hot_blobs_are_counted_by_connected_volume():
    found = background()
    found[1, 1, 1] = found[2, 2, 2] = found[3, 3, 3] = 5
    found[10:12, 10, 10] = 5
    found[20, 20, 20:23] = 2.9
    assert hot_blobs(found, background(), None, 1.0, 0.3, 0.1) == HotBlobs(1, pytest.approx(0.3))
    assert hot_blobs(found, background(), None, 1.0, 0.2, 0.1) == HotBlobs(2, pytest.approx(0.5))
    assert hot_blobs(found, background(), None, 0.5, 0.3, 0.1) == HotBlobs(2, pytest.approx(0.6))
    assert hot_blobs(found, background(), None, 5.0, 0.1, 0.1) == HotBlobs(0, 0.0)


def test_a_blob_of_exactly_the_least_volume_counts():
    """In floating point 3 times 0.7 is below 2.1."""
    found = background()
    found[0, 0, :3] = 5
    assert 3 * 0.7 < 2.1
    assert hot_blobs(found, background(), None, 1.0, 2.1, 0.7).count == 1


def test_hot_blobs_end_at_the_mask_and_cold_ones_do_not_count():
    found, mask = background(), np.zeros(SHAPE, bool)
    mask[:12] = True
    found[10:16, 5, 5] = 6
    found[2:6, 5, 5] = -6
    assert hot_blobs(found, background(), mask, 1.0, 0.1, 0.1) == HotBlobs(1, pytest.approx(0.2))
