"""One labelling of lesions, against scikit-image."""

import numpy as np
import pytest
from skimage.measure import label

from pe_advseg.core.lesions import label_lesions


@pytest.mark.parametrize('shape', [(30, 40), (8, 20, 24), (1, 9, 9), (4, 1, 1)])
@pytest.mark.parametrize('share', [0.0, 0.05, 0.3, 1.0])
def test_lesions_are_those_of_scikit_image(shape, share):
    mask = np.random.default_rng(1).random(shape) < share
    labels, count = label_lesions(mask)
    theirs, their_count = label(mask, connectivity=mask.ndim, return_num=True)
    assert count == their_count and labels.dtype == np.int32
    assert np.array_equal(labels > 0, mask)
    pairs = set(zip(labels[mask].tolist(), theirs[mask].tolist(), strict=True))
    assert len(pairs) == count, 'one label of theirs for each of ours, and the other way round'


def test_labels_count_in_the_order_of_the_first_voxel():
    labels, count = label_lesions(np.random.default_rng(2).random((6, 20, 20)) < 0.04)
    firsts = [np.flatnonzero(labels == number)[0] for number in range(1, count + 1)]
    assert count > 3 and firsts == sorted(firsts)


def test_any_number_but_zero_is_lesion():
    assert label_lesions(np.array([[0, 2, 0, 7]]))[1] == 2
