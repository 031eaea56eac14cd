"""An archive for tests: Orthanc with DICOMweb, in a network of its own that only has loopback.

`with orthanc(folder) as archive:` starts it; inside the block this thread, and every process that it starts, is in the
network of the archive and reaches nothing else. Orthanc listens on every address (1.10.1 ignores HttpBindAddresses),
so it is never started anywhere else.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

PLUGIN = Path('/usr/share/orthanc/plugins/libOrthancDicomWeb.so')
CLONE_NEWNET = 0x40000000  # of unshare(2)
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # of netdevice(7)
PORT = 8042  # every network of its own has all ports to give


def why_not() -> str | None:
    "Why Orthanc cannot be started here; None if it can."
    if not shutil.which('Orthanc') or not PLUGIN.is_file():
        return 'Orthanc with DICOMweb is not installed (Debian: orthanc, orthanc-dicomweb)'
    probe = subprocess.run(['unshare', '--net', 'true'], capture_output=True) if shutil.which('unshare') else None
    if probe is None or probe.returncode != 0:
        return 'no network namespace can be made here: Orthanc would listen on every address of this machine'
    return None


def _call(name: str, *arguments) -> None:
    "A function of the C library; Python 3.11 has neither unshare nor setns."
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f'{name} failed')


@contextlib.contextmanager
def loopback_only():
    "This thread, and the processes it starts, are in a new network with nothing but 127.0.0.1, until the block ends."
    before = os.open(f'/proc/self/task/{_thread()}/ns/net', os.O_RDONLY)
    try:
        _call('unshare', CLONE_NEWNET)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                request = struct.pack('16sH14x', b'lo', 0)
                flags = struct.unpack('16sH14x', fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
                fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack('16sH14x', b'lo', flags | IFF_UP))
            assert [name for _, name in socket.if_nameindex()] == ['lo']
            yield
        finally:
            _call('setns', before, CLONE_NEWNET)
    finally:
        os.close(before)


def _thread() -> int:
    import threading

    return threading.get_native_id()


@dataclass(frozen=True)
class Archive:
    "A running Orthanc."

    url: str  # of DICOMweb
    root: str  # of its own REST interface
    user: str | None
    password: str | None
    folder: Path
    pid: int

    def ask(self, path: str, body: bytes | dict | None = None, method: str | None = None):
        "What Orthanc's own REST interface answers, as data (bytes where it is no JSON)."
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(self.root + path, data, method=method)
        if self.user:
            import base64

            token = base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()
            request.add_header('Authorization', f'Basic {token}')
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            content = answer.read()
        try:
            return json.loads(content)
        except ValueError:
            return content

    def put(self, *folders) -> int:
        "Store every DICOM file of these folders; return how many."
        files = [path for folder in folders for path in sorted(Path(folder).rglob('*')) if path.is_file()]
        for path in files:
            self.ask('/instances', path.read_bytes())
        return len(files)


@contextlib.contextmanager
def orthanc(
    folder,  # gets its configuration, its storage and its log
    user: str | None = None,  # None: nobody has to log in
    password: str | None = None,
    **settings,  # of orthanc.json
):
    "An Orthanc in a network of its own, as long as the block runs."
    with loopback_only(), _process(Path(folder), user, password, settings) as archive:
        yield archive


@contextlib.contextmanager
def _process(folder: Path, user, password, settings):
    "Start Orthanc in this thread's network, and end it by its pid."
    folder.mkdir(parents=True, exist_ok=True)
    configuration = dict(
        Name='pe_advseg test',
        StorageDirectory=str(folder / 'storage'),
        IndexDirectory=str(folder / 'storage'),
        Plugins=[str(PLUGIN)],
        HttpPort=PORT,
        DicomServerEnabled=False,
        RemoteAccessAllowed=False,
        AuthenticationEnabled=bool(user),
        RegisteredUsers={user: password} if user else {},
        SslEnabled=False,
        DicomWeb=dict(Enable=True, Root='/dicom-web/', EnableWado=True, WadoRoot='/wado'),
    )
    (folder / 'orthanc.json').write_text(json.dumps(configuration | settings, indent=1))
    with (folder / 'orthanc.log').open('ab') as log:
        process = subprocess.Popen(['Orthanc', str(folder / 'orthanc.json')], stdout=log, stderr=log, cwd=folder)
    scheme = 'https' if settings.get('SslEnabled') else 'http'
    root = f'{scheme}://127.0.0.1:{settings.get("HttpPort", PORT)}'
    try:
        archive = Archive(f'{root}/dicom-web', root, user, password, folder, process.pid)
        _wait(process, int(root.rpartition(':')[2]), folder)
        yield archive
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen, port: int, folder: Path, seconds: float = 60) -> None:
    "Return as soon as the port answers."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f'Orthanc does not answer: {(folder / "orthanc.log").read_text()[-1500:]}')
