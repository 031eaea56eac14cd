"""Two tiny synthetic hospitals for tests that train."""

from pathlib import Path

from pe_advseg.data.cache import CachedStudy
from pe_advseg.data.hospital_cache import build_cache
from pe_advseg.data.layouts import find_studies
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom_files import write_hospital


def cached_hospitals(folder: Path, patients: int) -> list[list[CachedStudy]]:
    "Patients of harbour and of valley, written to `folder` and cached with pixels of 6 mm."
    result = []
    for name in ('harbour', 'valley'):
        options = dict(layout='folder', mask='nifti', workers=1, progress=False)
        place = write_hospital(folder / name, HOSPITALS[name], patients, (12, 48, 48), **options)
        studies = find_studies(place, hospital=name)
        result.append(list(build_cache(studies, folder / 'cache', 6.0, progress=False).values()))
    return result
