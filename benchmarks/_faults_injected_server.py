"""`sliproad testbed serve` with one error raised at a given step of a call.

    python benchmarks/_faults_injected_server.py OPTIONS-OF-SERVE

A step is the entry or the end of a function of the server's own packages, as the interpreter's
trace tells them, so the server itself is not touched. Orders come as JSON lines on standard
input: ``{"order": "record"}`` begins to note the steps that are passed, ``{"order": "steps"}``
prints them, ``{"order": "arm", "step": [file, function, event], "error": name}``
lets the next pass of that step fail, once.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import testbed

ROOT = Path(testbed.__file__).parents[1]
TRACED = ("testbed/server/", "testbed/wire/", "cnn/runtime.py", "cnn/frame_codec.py")
ERRORS = {"MemoryError": MemoryError, "RuntimeError": RuntimeError}
Step = tuple[str, str, str]


class Tracer:
    """Notes steps, and raises at one of them."""

    def __init__(self) -> None:
        self.steps: dict[Step, None] = {}
        self.recording = False
        self.armed: Step | None = None
        self.error = RuntimeError
        self._names: dict[CodeType, tuple[str, str] | None] = {}

    def entered(self, frame: FrameType, event: str, arg: Any) -> Any:
        """The trace of every thread: a function is entered."""
        if frame.f_code not in self._names:
            self._names[frame.f_code] = self._name(frame.f_code)
        name = self._names[frame.f_code]
        if name is None:
            return None
        frame.f_trace_lines = False
        self._passed((*name, "call"))
        return self.inside

    def inside(self, frame: FrameType, event: str, arg: Any) -> Any:
        """The trace of one function: it ends."""
        name = self._names[frame.f_code]
        if event == "return" and name is not None:
            self._passed((*name, "return"))
        return self.inside

    def _name(self, code: CodeType) -> tuple[str, str] | None:
        path = Path(code.co_filename)
        if not path.is_relative_to(ROOT):
            return None
        file = path.relative_to(ROOT).as_posix()
        return (file, code.co_qualname) if file.startswith(TRACED) else None

    def _passed(self, step: Step) -> None:
        if self.recording:
            self.steps[step] = None
        if step == self.armed:
            self.armed = None
            print(json.dumps({"raised": step}), flush=True)
            raise self.error("injected")

    def obey(self) -> None:
        """Orders, until the input ends."""
        for line in sys.stdin:
            order = json.loads(line)
            match order["order"]:
                case "record":
                    self.recording = True
                case "steps":
                    self.recording = False
                    print(json.dumps({"steps": list(self.steps)}), flush=True)
                case "arm":
                    self.error = ERRORS[order["error"]]
                    file, function, event = order["step"]
                    self.armed = (file, function, event)
                    print(json.dumps({"armed": True}), flush=True)


def main() -> None:
    tracer = Tracer()
    threading.Thread(target=tracer.obey, name="orders", daemon=True).start()
    threading.settrace(tracer.entered)
    from cnn.common.console import run_app
    from testbed.cli.app import app

    sys.argv = ["testbed", "serve", *sys.argv[1:]]
    run_app(app, prog_name="testbed")


if __name__ == "__main__":
    main()
