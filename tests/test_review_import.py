"""One mask from elsewhere: of another scan, planted mirrors, twice the same."""

import hashlib
import json

import numpy as np
import pydicom
import pytest
import SimpleITK
from support.review_scans import annotated, highdicom_seg, make, on_disk, write_as

from pe_advseg.core.errors import MaskError
from pe_advseg.review.foreign_masks import read_corrected
from pe_advseg.review.history import history, read_correction
from pe_advseg.review.import_correction import import_correction
from pe_advseg.review.import_corrections import import_corrections
from pe_advseg.review.orientation import MIRRORS
from pe_advseg.review.save_correction import save_correction
from pe_advseg.scans.nifti import write_nifti
from pe_advseg.scans.seg_write import write_segmentation
from pe_advseg.scans.series import pixel_digest, read_series, study_name
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import write_series


@pytest.mark.parametrize('kind', ['nifti', 'nrrd', 'seg'])
@pytest.mark.parametrize('axes', MIRRORS, ids=lambda axes: ''.join('zyx'[a] for a in axes) or 'straight')
def test_planted_mirrors_are_refused(case, kind, axes):
    "An expert deletes one embolus and adds another; a program then mirrors the contents under a header that fits."
    root, scan, volume, numbers = case
    annotation = annotated(root / 'out' / study_name(volume), volume, np.where(numbers == 3, 0, numbers))
    corrected = np.where(numbers == 2, 0, numbers)
    path = write_as(kind, root / 'c', np.flip(corrected, axes), volume, scan)
    if axes:
        with pytest.raises(MaskError, match=f'mirrored along {" and ".join("zyx"[a] for a in axes)}:'):
            import_correction(path, scan, root / 'store', 'AB', annotation)
        assert not (root / 'store').exists()
        result = import_correction(path, scan, root / 'store', 'AB', annotation, trust_header=True)
        assert (
            result.orientation == 'taken on trust'
            and history(root / 'store', result.study)[0]['origin']['orientation'] == 'taken on trust'
        )
    else:
        result = import_correction(path, scan, root / 'store', 'AB', annotation)
        assert result.orientation.startswith('agrees')
        np.testing.assert_array_equal(read_correction(root / 'store', volume)[0], corrected)
        assert (
            history(root / 'store', result.study)[0]['origin']['sha256']
            == hashlib.sha256(path.read_bytes()).hexdigest()
        )


def test_the_version_before_is_a_witness_too(case):
    root, scan, volume, numbers = case
    save_correction(root / 'store', scan, volume, numbers, 'AB')
    path = write_as('nifti', root / 'c', numbers[::-1], volume, scan)
    with pytest.raises(MaskError, match='mirrored along z'):
        import_correction(path, scan, root / 'store', 'CD')
    assert len(history(root / 'store', study_name(volume))) == 1


def test_without_a_witness_the_scan_is_asked(case):
    "Outside of the body is refused; inside, nothing can be proven, and that is said."
    root, scan, volume, numbers = case
    shifted = np.zeros_like(numbers)
    shifted[:, :4, :5] = 1
    path = write_as('nifti', root / 'c', shifted, volume, scan)
    with pytest.raises(MaskError, match='HU, clot has|outside the body'):
        import_correction(path, scan, root / 'store', 'AB')
    path = write_as('nifti', root / 'c', numbers[::-1], volume, scan)
    assert import_correction(path, scan, root / 'store', 'AB', dry_run=True).orientation.startswith('not provable')


def test_a_legitimate_rewrite_is_not_refused(case):
    "Everything deleted, and one embolus added somewhere else."
    root, scan, volume, numbers = case
    annotation = annotated(root / 'out' / study_name(volume), volume, np.where(numbers == 1, 1, 0).astype(np.uint16))
    rewritten = np.where(numbers == 3, 3, 0).astype(np.uint16)
    for path in (
        write_as('nifti', root / study_name(volume), rewritten, volume, scan),
        write_as('seg', root / 'c', rewritten, volume, scan),
    ):
        result = import_correction(path, scan, root / path.suffix, 'AB', annotation)
        assert result.orientation.startswith('not provable') and '1 removed, 1 added' in result.difference


def test_a_mask_that_may_be_another_patients(case):
    "It lies well in tissue, but shares nothing with what it began from: something has to say whose it is."
    root, scan, volume, numbers = case
    annotation = annotated(root / 'out' / study_name(volume), volume, np.where(numbers == 1, 1, 0).astype(np.uint16))
    path = write_as('nifti', root / 'patient1', np.where(numbers == 3, 3, 0).astype(np.uint16), volume, scan)
    with pytest.raises(MaskError, match='shares 0% with what it started from.*name it after the scan'):
        import_correction(path, scan, root / 'store', 'AB', annotation)
    assert not (root / 'store').exists()
    (root / 'patient1.json').write_text(json.dumps(dict(digest=pixel_digest(volume))))
    assert import_correction(path, scan, root / 'store', 'AB', annotation).status == 'saved'


def test_warnings_are_shown_and_count(case):
    "The mask also covers what is bright; what it began from does not. And what nobody can prove is said in the table."
    root, scan, volume, numbers = case
    hu = volume.hu.copy()
    hu[2:10, 12:30, 5:36] = np.where(numbers[2:10, 12:30, 5:36] > 0, hu[2:10, 12:30, 5:36], 350)
    write_nifti(root / 'bright.nii.gz', hu, volume)
    bright = read_volume(root / 'bright.nii.gz')
    annotation = annotated(root / 'out' / study_name(bright), bright, numbers)
    path = write_as('nifti', root / 'c', np.where(bright.hu == 350, 9, numbers).astype(np.uint16), bright, scan)
    with pytest.raises(MaskError, match='350 HU.*What it started from lies well'):
        import_correction(path, root / 'bright.nii.gz', root / 'store', 'AB', annotation)
    highdicom_seg(root / 'patient1.dcm', scan, numbers, ['clot', 'clot', 'heart'])
    results = import_corrections(root / 'patient1.dcm', scan, root / 'store', 'AB')
    for words in ('left out, not called a clot: segment 3', 'not known: all of it counts as drawn by hand'):
        assert words in str(results)


@pytest.mark.parametrize('kind', ['BINARY', 'LABELMAP', 'slicer'])
def test_an_embolus_that_was_added_in_a_viewer_arrives(case, kind):
    "Ours keep their names, the new one has the viewer's default name."
    root, scan, volume, numbers = case
    names = ['pulmonary embolism 4', 'pulmonary embolism 2', 'Segment_1']
    if kind == 'slicer':
        image = SimpleITK.GetImageFromArray(numbers)
        image.SetSpacing(volume.spacing[::-1])
        image.SetOrigin(volume.origin)
        image.SetDirection(volume.direction[:, ::-1].ravel().tolist())
        for n, name in enumerate(names):
            image.SetMetaData(f'Segment{n}_LabelValue', str(n + 1))
            image.SetMetaData(f'Segment{n}_Name', name)
        SimpleITK.WriteImage(image, path := root / 's.seg.nrrd')
    else:
        highdicom_seg(path := root / 's.dcm', scan, numbers, names, kind)
    np.testing.assert_array_equal(read_corrected(path, scan, volume, 's')[0], np.array([0, 4, 2, 5])[numbers])


@pytest.mark.parametrize('label', ['PE', 'Segment 1', 'anything'])
def test_a_label_map_with_one_segment(case, label):
    "Its background is listed as a segment 0 and is none."
    root, scan, volume, numbers = case
    highdicom_seg(root / 's.dcm', scan, (numbers > 0).astype(np.uint16), [label], 'LABELMAP')
    np.testing.assert_array_equal(read_corrected(root / 's.dcm', scan, volume, 's')[0] > 0, numbers > 0)


def test_the_same_file_twice_is_one_version(case):
    root, scan, volume, numbers = case
    path = write_as('seg', root / 'c', numbers, volume, scan)

    def take(reviewer):
        return import_correction(path, scan, root / 'store', reviewer)

    first, second, third = take('AB'), take('AB'), take('CD')
    assert (first.status, second.status, third.status) == (
        'saved',
        'already there',
        'saved',
    ) and second.version == first.version
    assert len(history(root / 'store', first.study)) == 2


def test_a_symmetric_finding_is_not_refused(case):
    "It agrees as well when mirrored: nothing is proven, and nothing held against it."
    root, scan, volume, numbers = case
    before, after = np.zeros_like(numbers), np.zeros_like(numbers)
    before[5:8, 14:19, 14:26] = after[5:8, 14:19, 16:28] = 1  # 14 to 25 of 40 is its own mirror image
    path = write_as('nifti', root / 'c', after, volume, scan)
    result = import_correction(path, scan, root / 'store', 'AB', annotated(root / 'out/a', volume, before))
    assert result.orientation.startswith('not provable: 83%') and 'along x' in result.orientation


def test_another_scan(case):
    root, scan, volume, numbers = case
    other, theirs = on_disk(root / 'scans/patient2', 2)
    for kind, words in (
        ('nifti', 'voxels off|differ|cover'),
        ('nrrd', 'voxels off|differ|cover'),
        ('seg', 'another scan'),
    ):
        path = write_as(kind, root / 'c', theirs, other, root / 'scans/patient2')
        with pytest.raises(MaskError, match=words):
            import_correction(path, scan, root / 'store', 'AB')
    twin = root / 'scans/twin'  # the same place and pixels under other identifiers
    write_series(volume, twin, 'TWIN', seed_uid='twin')
    path = write_as('seg', root / 'c', numbers, read_series(twin), twin)
    with pytest.raises(MaskError, match='another scan'):
        import_correction(path, scan, root / 'store', 'AB')
    assert not (root / 'store').exists()


def test_a_seg_that_names_no_slice(case):
    root, scan, volume, numbers = case
    write_segmentation(root / 'c.dcm', numbers, volume, scan)
    dataset = pydicom.dcmread(root / 'c.dcm')
    del dataset.ReferencedSeriesSequence
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    dataset.save_as(root / 'c.dcm')
    values, _, notes = read_corrected(root / 'c.dcm', scan, volume, 'c.dcm')
    np.testing.assert_array_equal(values, numbers)
    assert any('frame of reference' in note for note in notes)
    dataset.FrameOfReferenceUID = '1.2.3.4.5.6'
    dataset.save_as(root / 'c.dcm')
    with pytest.raises(MaskError, match='another scan'):
        read_corrected(root / 'c.dcm', scan, volume, 'c.dcm')


def test_a_seg_that_names_slices_only_at_the_top(case):
    "Frames without references; the list of slices at the top of the object is of a twin in the same place."
    root, scan, volume, numbers = case
    write_segmentation(root / 'c.dcm', numbers, volume, scan)
    dataset = pydicom.dcmread(root / 'c.dcm')
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    dataset.save_as(root / 'c.dcm')
    np.testing.assert_array_equal(read_corrected(root / 'c.dcm', scan, volume, 'c.dcm')[0], numbers)
    for number, item in enumerate(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence):
        item.ReferencedSOPInstanceUID = f'1.2.3.4.{number + 1}'
    dataset.save_as(root / 'c.dcm')
    with pytest.raises(MaskError, match='another scan'):
        read_corrected(root / 'c.dcm', scan, volume, 'c.dcm')


def test_anonymised_scan_with_zero_identifiers(tmp_path):
    "FUMPE's '0': the SEG that we write for it comes back, by the slices' own identifiers or by place."
    volume, _ = make(1)
    write_series(
        volume,
        tmp_path / 'PAT001',
        'P',
        header=dict(StudyInstanceUID='0', SeriesInstanceUID='0', StudyDate='0', FrameOfReferenceUID=None),
        reverse=True,
    )
    volume = read_series(tmp_path / 'PAT001')
    numbers = np.where((volume.hu > 50) & (volume.hu < 60), volume.hu - 50, 0).astype(np.uint16)
    write_segmentation(tmp_path / 'inbox.dcm', numbers, volume, tmp_path / 'PAT001')
    [result] = import_corrections(tmp_path / 'inbox.dcm', tmp_path / 'PAT001', tmp_path / 'store', 'AB')
    assert result.status == 'saved'
    np.testing.assert_array_equal(read_correction(tmp_path / 'store', volume)[0], numbers)
