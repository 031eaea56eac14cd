"The twin of every public data set is found and read like the real one, and compared voxel by voxel."

import numpy as np
import pytest

from pe_advseg.data.layouts import find_studies
from pe_advseg.data.read_study import read_embolus_ids, read_study
from pe_advseg.phantom.twin_studies import twin_study
from pe_advseg.phantom.twins import TWINS, write_twin

PATIENTS = {'FUMPE': [1, 7], 'CAD-PE': [1, 2, 109], 'READ': [1, 2], 'RSPECT': [1, 2], 'nnU-Net': [1, 2]}


@pytest.mark.parametrize('name', TWINS)
def test_a_twin_is_read_as_it_was_made(tmp_path, name):
    numbers = PATIENTS[name]
    truths = {number: twin_study(name, number, (16, 64, 64)) for number in numbers}
    studies = find_studies(write_twin(name, tmp_path / name, numbers))
    assert len(studies) == len(numbers)
    for study in studies:
        volume, mask = read_study(study)
        number = next(n for n in numbers if np.array_equal(truths[n].volume.hu, volume.hu))
        if name == 'RSPECT':
            assert mask is None
            continue
        np.testing.assert_array_equal(mask, truths[number].mask)
        if name == 'CAD-PE':
            np.testing.assert_array_equal(read_embolus_ids(study)[1], truths[number].clot_ids)
