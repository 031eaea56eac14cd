"""Coverage-guided fuzzing of the readers: `make fuzz`, or FUZZ_SECONDS=600 make fuzz.

Bytes of one file of a small synthetic series, of an enhanced CT, of a NIfTI, an NRRD or a MetaImage file are changed.
The contract: `read_volume` gives a `Volume` or raises `InputError`, whose text holds nothing of the patient. Whatever
else happens is printed with the file that made it happen, and fails the run. Seeds are made on the spot. What was found
becomes a test in tests/test_dicom.py.
"""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

if __name__ == '__main__':
    import atheris

    watched = atheris.instrument_imports(include=['pe_advseg.scans', 'pydicom', 'nibabel'])
else:
    watched = contextlib.nullcontext()  # pytest imports this file for its seeds

with watched:
    import highdicom
    import numpy as np
    import pydicom

    from pe_advseg.core.errors import InputError
    from pe_advseg.core.volume import Volume
    from pe_advseg.scans.volume_files import read_volume
    from pe_advseg.scans.write_series import write_series

SECRET = 'PLANTED^NAME'
KINDS = [
    'slice',
    'rle',
    'jpegls',
    'j2k',
    'implicit',
    'enhanced',
    'nii',
    'nii.gz',
    'nrrd',
    'mha',
]  # the first byte of an input chooses


def small_volume():
    hu = np.random.default_rng(0).integers(-1024, 1000, (4, 32, 32)).astype(np.int16)
    return Volume(hu, (1.5, 0.7, 0.7), (-20, -30, -400), np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]))


def slices_of(volume, folder):
    write_series(volume, folder, SECRET)
    return [pydicom.dcmread(path) for path in sorted(Path(folder).iterdir())]


def seeds(folder):
    "kind -> bytes of a good file; the good slices stay in folder/series."
    import SimpleITK

    volume, made = small_volume(), {}
    slices = slices_of(volume, folder / 'series')
    made['slice'] = (folder / 'series' / 'IM0002.dcm').read_bytes()
    for kind, syntax in (('rle', pydicom.uid.RLELossless), ('jpegls', pydicom.uid.JPEGLSLossless), ('implicit', None)):
        dataset = pydicom.dcmread(folder / 'series' / 'IM0002.dcm')
        if syntax:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset = pydicom.Dataset({element.tag: element for element in dataset})
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(folder / 'seed', enforce_file_format=True)
        made[kind] = (folder / 'seed').read_bytes()
    from openjpeg.utils import encode_array

    dataset = pydicom.dcmread(folder / 'series' / 'IM0002.dcm')
    dataset.PixelData, dataset.file_meta.TransferSyntaxUID = (
        pydicom.encaps.encapsulate([encode_array(dataset.pixel_array)]),
        pydicom.uid.JPEG2000Lossless,
    )
    dataset['PixelData'].VR, dataset['PixelData'].is_undefined_length = 'OB', True
    dataset.save_as(folder / 'seed')
    made['j2k'] = (folder / 'seed').read_bytes()
    for dataset in slices:
        for keyword in ('StudyDate', 'ContentDate', 'AcquisitionDate'):
            setattr(dataset, keyword, '20000101')
        for keyword in ('StudyTime', 'ContentTime', 'AcquisitionTime'):
            setattr(dataset, keyword, '000000')
    highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, '2.25.9', 1, '2.25.99', 1).save_as(folder / 'seed')
    made['enhanced'] = (folder / 'seed').read_bytes()
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing[::-1])
    image.SetOrigin(volume.origin)
    for kind in KINDS[6:]:
        SimpleITK.WriteImage(image, str(folder / f'seed.{kind}'), useCompression=kind == 'mha')
        made[kind] = (folder / f'seed.{kind}').read_bytes()
    return {kind: made[kind] for kind in KINDS}


def try_one(data: bytes, work: Path):
    "Reads one input. Returns a `Volume` or an `InputError`; anything else is raised."
    kind, body = KINDS[data[0] % len(KINDS)] if data else 'slice', data[1:]
    if kind in KINDS[6:]:
        path = file = work / f'x.{kind}'
    elif kind == 'enhanced':
        path, file = work / 'enhanced', work / 'enhanced' / 'x.dcm'
    else:
        path, file = work / 'series', work / 'series' / 'IM0002.dcm'
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(body)
    try:
        read = read_volume(path, resample=bool(data and data[0] & 128))
    except InputError as error:
        assert SECRET not in str(error) and str(work) not in str(error), f'identity in: {error}'
        return error
    assert isinstance(read, Volume) and read.hu.dtype == np.int16 and SECRET not in ' '.join(read.notes)
    return read


def main():
    logging.disable(logging.CRITICAL)
    warnings.simplefilter('ignore')
    seconds = os.environ.get('FUZZ_SECONDS', '60')
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / 'corpus').mkdir()
        for number, data in enumerate(seeds(work).values()):
            (work / 'corpus' / f'{number}').write_bytes(bytes([number]) + data)
        found = os.environ.get('FUZZ_FINDINGS', str(work / 'finding-'))
        atheris.Setup(
            [
                sys.argv[0],
                str(work / 'corpus'),
                f'-max_total_time={seconds}',
                '-max_len=30000',
                '-len_control=0',
                '-timeout=20',
                '-rss_limit_mb=3000',
                '-print_final_stats=1',
                f'-artifact_prefix={found}',
                *sys.argv[1:],
            ],
            lambda data: try_one(data, work) and None,
        )
        atheris.Fuzz()


if __name__ == '__main__':
    main()
