"""The device's configuration file: every key documented, nothing unknown accepted."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from cnn.common.errors import ConfigError
from testbed.deploy.device_file import DeviceFile, keys, load_device_file, parse_device_file

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "deploy.md").read_text()
ACTION = '[bundles]\naction = "e3s1"\n'


def defaults() -> dict[str, Any]:
    return {
        f"{name}.{key.name}": list(key.default) if isinstance(key.default, tuple) else key.default
        for name, section in get_type_hints(DeviceFile).items()
        for key in fields(section)
    }


def test_the_documentation_lists_every_key_once_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z]+\.\w+)` \| (?:`(.*?)`)? *\| \S", DOCS, re.M)
    assert [key for key, _ in rows] == keys()
    for key, shown in rows:
        value = tomllib.loads(f"x = {shown}")["x"] if shown else None
        assert value == defaults()[key], key


def test_the_example_is_accepted_and_named_by_the_page() -> None:
    path = ROOT / "examples" / "device.toml"
    file = load_device_file(path)
    assert file.records.folder == str(path.parent / "records")
    assert "examples/device.toml" in DOCS


def test_every_key_can_be_set_to_its_default() -> None:
    tables: dict[str, list[str]] = {}
    for key, value in defaults().items():
        section, _, name = key.partition(".")
        if value is not None:
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            tables.setdefault(section, []).append(f"{name} = {shown}")
    tables["bundles"].append('action = "e3s1"')
    text = "\n".join(f"[{name}]\n" + "\n".join(lines) for name, lines in tables.items())
    assert parse_device_file(text) == parse_device_file(ACTION)


def test_relative_paths_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text(
        '[bundles]\npolicy = "a.policy"\nmodel = "/opt/m"\ntrusted_keys = ["k.pub", "/k2.pub"]\n'
        '[server]\ntls_ca = "c/ca.pem"\n'
    )
    file = load_device_file(path)
    assert file.bundles.policy == str(tmp_path / "a.policy")
    assert file.bundles.model == "/opt/m"
    assert file.bundles.trusted_keys == (str(tmp_path / "k.pub"), "/k2.pub")
    assert file.server.tls_ca == str(tmp_path / "c" / "ca.pem")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "policy"),
        ("[bundles]\n", "policy"),
        ('[bundles]\naction = "e3s1"\npolicy = "x"', "exactly one"),
        ('[bundles]\naction = "fast"', "action 'fast'"),
        (ACTION + 'trusted_keys = "k.pub"', "trusted_keys"),
        (ACTION + "speed = 1", "unknown key 'speed'"),
        (ACTION + "[camera]", "unknown key 'camera'"),
        (ACTION + "[frames]\nperiod_ms = -1", "period_ms -1"),
        (ACTION + "[frames]\nperiod_ms = nan", "period_ms = nan"),
        (ACTION + '[frames]\nperiod_ms = "fast"', "type float"),
        (ACTION + "[frames]\ncount = 1.5", "type int"),
        (ACTION + "[records]\nfile_mb = true", "type float"),
        (ACTION + "[records]\nfile_mb = 8\ntotal_mb = 9", "four files"),
        (ACTION + '[server]\naddress = "here"', "HOST:PORT"),
        (ACTION + '[guard]\nsafe_action = "e5"', "safe_action 'e5'"),
        (ACTION + '[log]\nformat = "xml"', "xml"),
        (ACTION + '[drive]\ntech = "6G"', "6G"),
        (ACTION + "[metrics]\nport = 70000", "port 70000"),
        ("bundles = 3", "bundles = 3"),
        ("not toml", "valid TOML"),
        (ACTION + "[frames]\nseed = -1", "seed -1"),
        (ACTION + "[frames]\ncount = 1" + 30 * "0", "count = 10^30 or so"),
        (ACTION + "[frames]\nperiod_ms = 1" + 400 * "0", "period_ms = 10^400 or so"),
        (ACTION + "[records]\ntotal_mb = inf", "total_mb = inf"),
        (ACTION + '[log]\nlevel = "loud"', "debug or info or warning or error"),
        (ACTION + "[frames]\nsource = 3", "type str"),
        ("[bundles]\ntrusted_keys = [1]", "type str"),
        ("[bundles]\ntrusted_keys = 1", "type list of str"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_device_file(text)
    assert said in str(caught.value)
    assert "device.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_device_file(tmp_path / "none.toml")
