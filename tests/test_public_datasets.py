"""READ's order against SimpleITK's own series reader, and the real patient against the published table."""
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from pe_advseg.datasets import find_studies, read_study
from pe_advseg.public_datasets import PUBLIC
from pe_advseg.twins import twin_study, write_twin

FUMPE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'FUMPE'


def test_reads_label_is_aligned_with_what_gdcm_sorts(tmp_path):
    [study] = find_studies(write_twin('READ', tmp_path / 'READ', [1]))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(study.scan)))
    image, label = (SimpleITK.GetArrayFromImage(picture) for picture in (reader.Execute(), SimpleITK.ReadImage(str(study.mask))))
    volume, mask = read_study(study)
    assert mask.any() and np.array_equal(np.sort(volume.hu[mask > 0]), np.sort(image[label > 0]))
    np.testing.assert_array_equal(mask, twin_study('READ', 1, (16, 64, 64)).mask)


@pytest.mark.skipif(not FUMPE.is_dir(), reason='the real patient of FUMPE lies beside the project (../shared/data/FUMPE), not here')
def test_the_real_patient_is_as_published():
    table = PUBLIC['FUMPE'].verify(FUMPE)
    assert table.ok[0] == 'partial copy' and table.ok.iloc[-1] == 'yes'
