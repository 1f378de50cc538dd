"""`import cnn` loads nothing; its public names load what they need."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cnn


def test_every_public_name_is_there_and_has_one_home() -> None:
    assert sorted([*cnn._MODULE_OF, "__version__"]) == sorted(cnn.__all__)
    for name in cnn.__all__:
        assert name in dir(cnn)
        assert getattr(cnn, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cnn.no_such_name


def test_importing_it_loads_nothing() -> None:
    code = (
        "import sys, cnn; "
        "loaded = {m for m in sys.modules if m.startswith(('cnn.', 'numpy', 'onnxruntime'))}; "
        "assert not loaded, loaded; cnn.Action; assert 'cnn.topology' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
