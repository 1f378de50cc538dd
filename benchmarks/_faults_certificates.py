"""Certificates of both ends are replaced while frames flow, and the authority with them.

As an operator does it: first both ends trust the old and the new authority, then each gets a
certificate of the new one (key and certificate are two files, so for a moment they do not fit),
then the old authority goes. Neither process is restarted. Afterwards the server must show the new
certificate to whoever connects, and the device, whose connection is cut, must come back by itself.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _faults_parts import NotHereError, RunningDevice, frames_lost, rows_of, say, wait_for

from testbed.link.link_process import LinkProcess
from testbed.server.server_process import ServerProcess
from testbed.traces.trace import Trace

TAKEN_UP_S = 4.0
"""From one step to the next: both ends look at their files every second or so."""
APART_S = 0.3
CUT_S, BACK_S = 3.0, 10.0


class Pki:
    """Two authorities, and the files that both ends are told of."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            raise NotHereError("needs the openssl program")
        self.folder = folder
        folder.mkdir()
        for authority in ("old", "new"):
            self._openssl("-subj", f"/CN={authority}", "-keyout", f"{authority}.key",
                          "-out", f"{authority}.pem")  # fmt: skip
            for end in ("server", "client"):
                name = f"{authority}-{end}"
                self._openssl("-subj", f"/CN={name}", "-keyout", f"{name}.key",
                              "-out", f"{name}.pem", "-CA", f"{authority}.pem",
                              "-CAkey", f"{authority}.key",
                              "-addext", "basicConstraints=critical,CA:FALSE",
                              "-addext", "subjectAltName=IP:127.0.0.1")  # fmt: skip
        self.trust("old")
        for end in ("server", "client"):
            self.show(end, "old")

    def _openssl(self, *arguments: str) -> None:
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
               "-nodes", "-days", "2")  # fmt: skip
        subprocess.run(
            ["openssl", *new, *arguments], cwd=self.folder, check=True, capture_output=True
        )

    def device_keys(self) -> str:
        """Keys of a device's [server]."""
        return (
            f'tls_ca = "{self.folder}/client-trusts.pem"\n'
            f'tls_cert = "{self.folder}/client-shows.pem"\n'
            f'tls_key = "{self.folder}/client-shows.key"\n'
        )

    def server_options(self) -> tuple[str, ...]:
        """Options of ``serve``."""
        names = {"cert": "server-shows.pem", "key": "server-shows.key",
                 "client-ca": "server-trusts.pem"}  # fmt: skip
        pairs = [(f"--tls-{option}", str(self.folder / name)) for option, name in names.items()]
        return tuple(word for pair in pairs for word in pair)

    def read(self, name: str) -> str:
        """A PEM file."""
        return (self.folder / f"{name}.pem").read_text()

    def trust(self, *authorities: str) -> None:
        """Both ends trust these from now on."""
        for end in ("server", "client"):
            self._put(f"{end}-trusts.pem", "".join(self.read(name) for name in authorities))

    def show(self, end: str, authority: str) -> None:
        """An end shows its certificate of that authority from now on."""
        name = f"{authority}-{end}"
        self._put(f"{end}-shows.key", (self.folder / f"{name}.key").read_text())
        time.sleep(APART_S)
        self._put(f"{end}-shows.pem", self.read(name))

    def change(self, old: str, new: str, taken_up_s: float) -> Iterator[str]:
        """Move both ends to another authority; after each step its name, once it is taken up."""
        steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("both authorities", lambda: self.trust(old, new)),
            ("new certificates", lambda: [self.show(end, new) for end in ("server", "client")]),
            ("the new authority alone", lambda: self.trust(new)),
        )
        for name, step in steps:
            step()
            time.sleep(taken_up_s)
            yield name

    def _put(self, name: str, text: str) -> None:
        beside = self.folder / f"{name}.beside"
        beside.write_text(text)
        beside.replace(self.folder / name)

    def shown(self, port: int) -> str:
        """The certificate that a server shows, PEM; empty if no handshake comes about."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=3) as plain,
                context.wrap_socket(plain) as safe,
            ):
                return ssl.DER_cert_to_PEM_cert(safe.getpeercert(binary_form=True) or b"")
        except OSError:
            return ""


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The whole group."""
    pki = Pki(folder / "pki")
    trace = Trace(np.full(10, 50.0), np.full(10, 4.0), 1.0, "steady", "5G", "generated")
    with (
        ServerProcess(options=pki.server_options()) as server,
        LinkProcess(trace, ("127.0.0.1", server.port)) as link,
        RunningDevice(folder, settings(pki, link.port, folder / "rec")) as device,
    ):
        if not device.running() or not device.goes_on(3, "ok", 15):
            raise RuntimeError("no frame was answered over TLS")
        pid = server.pid
        wrong = changed(pki, device, server.port)
        link.cut(CUT_S, drop=True)
        time.sleep(CUT_S)
        before = device.frames("ok")
        back_s = wait_for(lambda: device.frames("ok") > before, BACK_S)
        if back_s is None:
            wrong.append("the device does not come back after its connection was cut")
        if server.pid != pid or not device.alive:
            wrong.append("a process ended")
        result = device.stop()
    lost = frames_lost(int(result.get("frames", 0)), rows_of(folder / "rec"))
    if result["exit_code"] != 0 or lost:
        wrong.append(f"exit code {result['exit_code']}, {lost} frames lost")
    back = "never" if back_s is None else f"after {back_s:.2f} s"
    say(f"certificates: {', '.join(wrong) or 'changed'}; answered again {back}; {result['status']}")
    return {"cert_reload": not wrong}


def changed(pki: Pki, device: RunningDevice, port: int) -> list[str]:
    """Change everything, step by step; what is wrong then."""
    wrong = []
    for name in pki.change("old", "new", TAKEN_UP_S):
        if not device.goes_on(5, "ok"):
            wrong.append(f"no answers with {name}")
    if pki.shown(port).split() != pki.read("new-server").split():
        wrong.append("the server does not show its new certificate")
    return wrong


def settings(pki: Pki, port: int, records: Path) -> str:
    """A device that sends every frame over TLS and shows its certificate."""
    return (
        f'[server]\naddress = "127.0.0.1:{port}"\n{pki.device_keys()}'
        '[bundles]\naction = "e3s1"\nwatch_s = 1\n'
        "[frames]\nperiod_ms = 50\ntimeout_ms = 250\nmax_queue_ms = 2000\n"
        f'[records]\nfolder = "{records}"\nflush_s = 0.3\n'
    )
