"What the tables say of arteries and emboli is what the voxels show."

import json
from dataclasses import replace

import numpy as np
import pytest

from pe_advseg.data.layouts import find_studies
from pe_advseg.phantom.emboli import Embolus
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.patients import draw_patient
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.phantom.scene import paint_arteries
from pe_advseg.phantom.truth import artery_table, clot_table, obstruction_index
from pe_advseg.phantom.vessel_tree import MAIN, SEGMENTAL, SUBSEGMENTAL, TRUNK, TreeBuilder
from pe_advseg.phantom.voxels import VoxelGrid

HARBOUR = HOSPITALS['harbour']


@pytest.fixture(scope='module')
def people():
    "Number -> patient, the first 35 of harbour."
    return {number: draw_patient(HARBOUR, number) for number in range(1, 36)}


# --- the truth


def test_truth_of_every_artery(people):
    for number in (1, 3, 15):
        patient = people[number]
        table, clots = artery_table(patient), clot_table(patient)
        np.testing.assert_array_equal(table.generation, patient.arteries.generation)
        assert (
            (table.parent.to_numpy() < np.arange(len(table))).all()
            and table.obstruction.between(0, 1).all()
            and (table.calibre_mm > 0).all()
        )
        assert set(table.embolus) - {0} == set(clots.embolus) == set(range(1, len(patient.emboli) + 1))
        starts, ends = (table[[f'{end}_{axis}' for axis in 'xyz']].to_numpy() for end in ('start', 'end'))
        inner = table.parent.to_numpy() >= 0
        np.testing.assert_allclose(
            starts[inner], ends[table.parent[inner]], atol=1e-6
        )  # every piece begins where its parent ends


def test_truth_lies_where_the_voxels_are(people):
    "In the middle of an artery that the table calls full the mask has clot; in one that it calls free it has none."
    found = {'full': [], 'free': []}
    for number in (3, 15, 18):
        study = make_study(HARBOUR, number, (60, 192, 192))
        table = study.arteries[(study.arteries.calibre_mm > 4) & (study.arteries.generation > TRUNK)]
        middle = (
            table[['start_x', 'start_y', 'start_z']].to_numpy() + table[['end_x', 'end_y', 'end_z']].to_numpy()
        ) / 2
        index = np.rint(study.volume.to_index(middle)).astype(int)
        inside = ((index >= 0) & (index < study.mask.shape)).all(1)
        table, (z, y, x) = table[inside], index[inside].T
        clot = study.mask[z, y, x]
        found['full'] += clot[table.filled > 0.95].tolist()
        found['free'] += clot[table.filled == 0].tolist()
        assert (
            0.6 < study.emboli.ml.sum() / (study.mask.sum() * study.volume.voxel_ml) < 1.2
        )  # round ends and forks are only in the mask
    assert (
        len(found['full']) > 3
        and np.mean(found['full']) > 0.9
        and len(found['free']) > 50
        and np.mean(found['free']) < 0.1
    )


@pytest.mark.parametrize('share, shift', [(0.25, 0.0), (0.49, 0.3), (0.64, 0.0), (1.0, 0.0)])
def test_obstruction_of_one_tube_is_its_share_of_voxels(people, share, shift):
    "A vertical artery of 6 mm radius with a clot along it: the table's number beside voxels counted in every slice."
    builder = TreeBuilder()
    builder.tube((0.0, 0, -30), (0.0, 0, 30), (6.0, 6.0), SEGMENTAL)
    tree, radius = builder.tree(), 6 * share**0.5
    side = np.array([shift * (6 - radius), 0, 0])
    clot = Embolus(
        'by hand',
        tree.start + side,
        tree.end + side,
        np.full((1, 2), 8.0 if share == 1 else radius),
        np.array([share == 1]),
        np.array([0]),
        1.0,
    )
    patient = replace(people[1], arteries=tree, emboli=[clot], clot_hu=[50])
    table = artery_table(patient)
    assert abs(table.obstruction[0] - share) < 0.02 and abs(table.filled[0] - share) < 0.02
    grid = VoxelGrid(
        *(
            np.arange(-half, half + step / 2, step, dtype=np.float32)
            for half, step in ((20, 2), (10, 0.25), (10, 0.25))
        ),
        0.25,
        2.0,
    )
    artery, clot, _, _ = paint_arteries(grid, patient)
    counted = ((clot >= 0.5) & (artery >= 0.5)).sum((1, 2)) / (artery >= 0.5).sum((1, 2))
    np.testing.assert_allclose(counted, table.obstruction[0], atol=0.03)


def test_obstruction_index_by_the_published_rule(people):
    "A whole tree, one main artery shut: two points for each of its segmental arteries out of 40."
    patient = people[11]
    table = artery_table(patient)
    assert obstruction_index(table) == 0
    right = table[(table.generation == MAIN) & (table.end_x < table.start_x)].index
    segmental = table[table.generation == SEGMENTAL]
    last = segmental[~segmental.segment.isin(segmental.parent)]
    assert len(last) == 20
    twelve = last.lobe.isin([0, 1, 2]).sum()
    assert obstruction_index(table.assign(obstruction=np.where(table.index == right[0], 1.0, 0))) == pytest.approx(
        100 * 2 * twelve / 40
    )
    assert obstruction_index(table.assign(obstruction=np.where(table.index == right[0], 0.5, 0))) == pytest.approx(
        100 * twelve / 40
    )
    assert obstruction_index(table.assign(obstruction=np.where(table.generation == TRUNK, 1.0, 0))) == 100
    twig = table[table.generation > SUBSEGMENTAL].index[0]
    assert obstruction_index(table.assign(obstruction=np.where(table.index == twig, 1.0, 0))) == pytest.approx(2.5)


def test_truth_beside_the_scans(tmp_path):
    folder = write_hospital(tmp_path / 'h', 'forest', 2, (6, 32, 32), workers=1, progress=False, truth=True)
    for number in (1, 2):
        record = json.loads((folder / f'forest{number:03d}.truth.json').read_text())
        assert 'synthetic' in record['what'] and len(record['emboli']) == len(
            draw_patient(HOSPITALS['forest'], number).emboli
        )
        assert len(record['arteries']) == len(draw_patient(HOSPITALS['forest'], number).arteries)
    assert len(find_studies(folder)) == 2
    assert not list(
        write_hospital(tmp_path / 'plain', 'forest', 1, (6, 32, 32), workers=1, progress=False).glob('*.truth.json')
    )
