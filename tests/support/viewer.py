"""A viewer for tests: the built OHIF, served on loopback beside an archive, and driven in headless Chromium."""

import contextlib
import http.client
import importlib.util
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / 'build' / 'viewer' / 'package' / 'dist'  # `make viewer` fetches it
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
SOFTWARE_WEBGL = ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']
WAIT = 60_000  # ms; a condition is waited for, this only ends a hopeless wait
SOURCE = dict(
    namespace='@ohif/extension-default.dataSourcesModule.dicomweb',
    sourceName='archive',
    configuration=dict(
        friendlyName='the archive of the test',
        name='archive',
        qidoRoot='/dicom-web',
        wadoRoot='/dicom-web',
        wadoUriRoot='/wado',
        imageRendering='wadors',
        thumbnailRendering='wadors',
        qidoSupportsIncludeField=True,
        supportsFuzzyMatching=False,
        supportsWildcard=True,
        enableStudyLazyLoad=True,
        omitQuotationForMultipartRequest=True,
        singlepart='bulkdata,video',
        bulkDataURI=dict(enabled=True),
    ),
)
SETTINGS = dict(
    routerBasename=None,
    extensions=[],
    modes=[],
    showStudyList=True,
    maxNumberOfWebWorkers=1,
    showWarningMessageForCrossOrigin=False,
    showCPUFallbackMessage=False,
    strictZSpacingForVolumeViewport=True,
    defaultDataSourceName='archive',
    dataSources=[SOURCE],
    investigationalUseDialog=dict(option='never'),
)


class OneOrigin(SimpleHTTPRequestHandler):
    "The viewer's files, and under /dicom-web and /wado the archive: a browser sees one origin."

    protocol_version = 'HTTP/1.1'
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {'.wasm': 'application/wasm'}

    def end_headers(self):
        self.send_header('Cross-Origin-Opener-Policy', 'same-origin')  # both: SharedArrayBuffer
        self.send_header('Cross-Origin-Embedder-Policy', 'require-corp')
        super().end_headers()

    def do_GET(self):
        if self.path.startswith(('/dicom-web', '/wado')):
            self.ask_archive()
        elif self.path == '/app-config.js':
            self.answer(200, {'Content-Type': 'text/javascript'}, f'window.config = {json.dumps(SETTINGS)};'.encode())
        else:
            if '.' not in self.path.split('?')[0].rpartition('/')[2]:
                self.path = '/index.html'  # the viewer's own routes
            super().do_GET()

    def do_POST(self):
        self.ask_archive()

    def ask_archive(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        connection = http.client.HTTPConnection('127.0.0.1', self.server.archive_port, timeout=60)
        dropped = ('connection', 'accept-encoding')
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        kept = {name: value for name, value in answer.getheaders() if name.lower() == 'content-type'}
        self.answer(answer.status, kept, answer.read())
        connection.close()

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def served(folder, archive_port: int):
    "Address of the viewer, as long as the block runs; in the network of this thread."

    def handler(*arguments):
        return OneOrigin(*arguments, directory=str(folder))

    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        server.archive_port = archive_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}'
        finally:
            server.shutdown()
            thread.join()


def why_not() -> str | None:
    "Why the viewer cannot be run here; None if it can."
    if not (BUILT / 'index.html').is_file():
        return 'the viewer is not here: `make viewer` fetches it (OHIF from npm, 50 MB)'
    if CHROMIUM is None:
        return "chromium is not installed (Debian's package)"
    if importlib.util.find_spec('playwright') is None:
        return 'playwright is not installed'
    return None


@contextlib.contextmanager
def browser_page():
    "A page of headless Chromium that draws WebGL in software, as long as the block runs."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_WEBGL)
        try:
            page = browser.new_page(viewport=dict(width=1280, height=800))
            page.set_default_timeout(WAIT)
            yield page
        finally:
            browser.close()


LABELMAP = """() => {
    const segmentation = services.segmentationService.getSegmentations().find(s => s.representationData.Labelmap);
    return segmentation.representationData.Labelmap.imageIds.map(id => {
        const image = cornerstone.cache.getImage(id);
        const {sopInstanceUID} = cornerstone.metaData.get('sopCommonModule', image.referencedImageId);
        const marked = [];
        image.voxelManager.getScalarData().forEach((value, place) => { if (value) marked.push([place, value]) });
        return [sopInstanceUID, marked];
    });
}"""
CONTOURS = """() => {
    const segmentation = services.segmentationService.getSegmentations().find(s => s.representationData.Contour);
    return [...segmentation.representationData.Contour.annotationUIDsMap].flatMap(([number, uids]) => [...uids].map(
        uid => [number, cornerstoneTools.annotation.state.getAnnotation(uid).data.contour.polyline]
    ));
}"""
SHOW_SLICE = """async uid => {
    const {cornerstoneViewportService, viewportGridService} = services;
    const shown = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getActiveViewportId());
    const sop = id => cornerstone.metaData.get('sopCommonModule', id).sopInstanceUID;
    await shown.setImageIdIndex(shown.getImageIds().findIndex(id => sop(id) == uid));
    const drawn = new Promise(done => shown.element.addEventListener(
        cornerstone.Enums.Events.IMAGE_RENDERED, done, {once: true}
    ));
    shown.render();
    await drawn;
}"""
STATE = """() => {
    const segmentation = services.segmentationService.getSegmentations().find(s => s.representationData.Labelmap);
    let sum = 0;
    for (const id of segmentation.representationData.Labelmap.imageIds) {
        const values = cornerstone.cache.getImage(id).voxelManager.getScalarData();
        values.forEach((value, place) => sum += value * (place + 1));
    }
    return sum;
}"""
ON_SCREEN = """point => {
    const {cornerstoneViewportService, viewportGridService} = services;
    const shown = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getActiveViewportId());
    const box = shown.canvas.getBoundingClientRect();
    const [x, y] = shown.worldToCanvas(point);
    return [box.x + x, box.y + y];
}"""


class Ohif:
    "OHIF's mode for segmentations, used as a reader uses it: menus, buttons, the brush."

    def __init__(self, page, url: str):
        self.page, self.url = page, url

    def find(self, name: str):
        return self.page.locator(f'[data-cy="{name}"]')

    def open(self, study_uid: str) -> None:
        "Open a study; its first CT series is shown."
        self.page.goto(f'{self.url}/segmentation?StudyInstanceUIDs={study_uid}')
        self.find('viewport-pane').locator('canvas').first.wait_for()
        self.find('series-modality-label').first.wait_for()

    def overlays(self, *texts: str):
        "The entries of SEG and RTSTRUCT in the list of series that have these texts."
        entries = self.find('study-browser-thumbnail-no-image')
        for text in texts:
            entries = entries.filter(has_text=text)
        return entries

    def load(self, modality: str, description: str = '') -> None:
        "Load the SEG or RTSTRUCT of the study, by a double click and a yes."
        self.overlays(modality, description).first.dblclick()
        self.page.get_by_role('button', name='Yes').click()
        kind = dict(SEG='Labelmap', RTSTRUCT='Contour')[modality]
        self.page.wait_for_function(
            'kind => services.segmentationService.getSegmentations().some(s => s.representationData[kind])', arg=kind
        )

    def labelmap(self, volume) -> np.ndarray:
        "What the viewer holds, (z, y, x) on our grid: slices are matched by SOPInstanceUID."
        numbers = np.zeros(volume.shape, np.uint16)
        slices = {source.instance_uid: z for z, source in enumerate(volume.sources)}
        held = self.page.evaluate(LABELMAP)
        assert sorted(uid for uid, _ in held) == sorted(slices)
        for uid, marked in held:
            for place, value in marked:
                numbers[slices[uid]].flat[place] = value
        return numbers

    def contours(self) -> list[tuple[int, np.ndarray]]:
        "The number of the segment and the corners (n, 3) in mm of every contour that the viewer holds."
        return [(number, np.array(points)) for number, points in self.page.evaluate(CONTOURS)]

    def segments(self) -> list[str]:
        rows = self.find('data-row-title')
        rows.first.wait_for()
        return rows.all_inner_texts()

    def choose_segment(self, place: int) -> None:
        self.find('data-row').nth(place).click()

    def add_segment(self) -> None:
        count = len(self.segments())
        self.page.get_by_role('button', name='Add Segment').click()
        self.find('data-row').nth(count).wait_for()

    def delete_segment(self, place: int) -> None:
        count = len(self.segments())
        self.find('data-row').nth(place).hover()
        self.find('data-row').nth(place).locator('[data-cy="actionsMenuTrigger"]').click()
        self.page.get_by_role('menuitem', name='Delete').click()
        self.find('data-row').nth(count - 1).wait_for(state='detached')

    def take(self, tool: str, radius_mm: float) -> None:
        "Take the Brush or the Eraser, with a radius."
        self.find(f'{tool}-btn').click()
        field = self.find(f'{tool.lower()}-radius').locator('input')
        field.fill(str(radius_mm))
        field.press('Enter')

    def show(self, volume, z: int) -> None:
        "Show a slice of ours; the viewer counts its own way."
        self.page.evaluate(SHOW_SLICE, volume.sources[z].instance_uid)

    def stroke(self, volume, *points) -> None:
        """Draw over voxels (z, y, x) of one slice; where they are on the screen follows from our geometry.

        On a busy machine the viewer may miss a stroke; it is drawn until it is there.
        """
        from playwright.sync_api import TimeoutError as Timeout

        self.show(volume, points[0][0])
        before = self.page.evaluate(STATE)
        places = [self.page.evaluate(ON_SCREEN, volume.to_patient(point).tolist()) for point in points]
        for _ in range(6):
            self._drag(places)
            with contextlib.suppress(Timeout):
                self.page.wait_for_function(f'before => ({STATE})() != before', arg=before, timeout=WAIT / 6)
                return
        raise AssertionError('the viewer does not draw')

    def _drag(self, places) -> None:
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places:
            self.page.mouse.move(*place, steps=6)
        self.page.mouse.up()

    def _export_item(self):
        self.find('segmentation-collapsed-more-btn-Labelmap').click()
        self.page.get_by_role('menuitem', name='Export').hover()
        return self.page.get_by_role('menuitem', name='DICOM SEG')

    def can_export(self) -> bool:
        item = self._export_item()
        item.wait_for()
        return item.is_enabled()

    def export(self) -> None:
        "Save the segmentation as DICOM SEG in the archive."
        self._export_item().click()
        self.page.get_by_role('dialog').get_by_role('button', name='Save').click()

    def picture(self, path) -> None:
        "Save what is on the screen, if a path is given."
        if path:
            self.page.screenshot(path=path)
