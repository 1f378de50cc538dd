"""Entry points of distributions that are laid out by hand, as an installer leaves them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from distributions import install

from cnn.common.errors import ConfigError, DataError
from cnn.common.plug_ins import Group, is_name, plug_in, plug_in_names, plug_ins

CLOCKS = Group("sliproad.clocks", "clock", ("wall",))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_only_what_is_asked_for_is_imported(site: Path) -> None:
    install(
        site, "sun-dial", "def now():\n    return 12\n", {CLOCKS.entry_points: "sun = sun_dial:now"}
    )
    install(site, "sand-glass", "1 / 0\n", {CLOCKS.entry_points: "sand = sand_glass:now"})
    install(site, "other-things", "1 / 0\n", {"console_scripts": "sun = other_things:main"})
    assert plug_in_names(CLOCKS) == ["sand", "sun"]
    assert not {"sun_dial", "sand_glass"} & set(sys.modules)
    found = plug_in(CLOCKS, "sun")
    assert found is not None
    assert str(found) == "clock sun of sun-dial 1.0 (sun_dial:now)"
    assert found.load()() == 12
    assert "sand_glass" not in sys.modules


@pytest.mark.parametrize(
    ("module", "value", "said"),
    [
        ("1 / 0\n", "broken:now", "raised ZeroDivisionError (division by zero)"),
        ("import nothing_like_it\n", "broken:now", "raised ModuleNotFoundError (No module named"),
        ("raise SystemExit(3)\n", "broken:now", "raised SystemExit (3)"),
        ("now = (\n", "broken:now", "raised SyntaxError ('(' was never closed"),
        ("", "broken:now", "raised AttributeError"),
        ("", "not a value!", "raised"),
        ("", "absent:now", "raised ModuleNotFoundError (No module named 'absent'"),
    ],
)
def test_one_that_cannot_be_imported_is_one_line(
    site: Path, module: str, value: str, said: str
) -> None:
    install(site, "broken", module, {CLOCKS.entry_points: f"slow = {value}"})
    found = plug_in(CLOCKS, "slow")
    assert found is not None
    with pytest.raises(ConfigError) as caught:
        found.load()
    assert caught.value.given.startswith(f"clock slow of broken 1.0 ({value}) raised")
    assert said in caught.value.given
    assert "\n" not in str(caught.value)
    assert "uninstall broken 1.0" in caught.value.hint
    sys.modules.pop("broken", None)


def test_its_own_error_passes_and_any_other_names_it(site: Path) -> None:
    install(site, "sun-dial", "", {CLOCKS.entry_points: "sun = sun_dial:now"})
    found = plug_in(CLOCKS, "sun")
    assert found is not None
    with pytest.raises(DataError, match=r"night"), found.calling():
        raise DataError("night", expected="day", hint="wait")
    said = r"sun-dial 1\.0 .* raised KeyError \(no 'noon'\)"
    with pytest.raises(ConfigError, match=said), found.calling():
        raise KeyError("noon")
    with pytest.raises(KeyboardInterrupt), found.calling():
        raise KeyboardInterrupt


def test_our_names_stay_ours(site: Path) -> None:
    install(site, "sun-dial", "", {CLOCKS.entry_points: "wall = sun_dial:now"})
    assert plug_in(CLOCKS, "wall") is None
    assert plug_in_names(CLOCKS) == []
    (listed,) = plug_ins(CLOCKS)
    assert "sliproad's own" in listed.problem
    with pytest.raises(ConfigError, match=r"of sun-dial 1.0 .*sliproad's own"):
        listed.load()


def test_a_name_that_two_have_is_nobodys(site: Path) -> None:
    for name in ("sun-dial", "sun-watch"):
        install(site, name, "", {CLOCKS.entry_points: f"sun = {name.replace('-', '_')}:now"})
    assert [each.distribution for each in plug_ins(CLOCKS)] == ["sun-dial 1.0", "sun-watch 1.0"]
    found = plug_in(CLOCKS, "sun")
    assert found is not None
    with pytest.raises(ConfigError, match=r"a name that 2 plug-ins have"):
        found.load()


def test_broken_metadata_of_any_package_hides_no_other(site: Path) -> None:
    install(site, "sun-dial", "", {CLOCKS.entry_points: "sun = sun_dial:now"})
    install(site, "strange", "", {CLOCKS.entry_points: "x = strange:x"})
    (site / "strange-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe[\x00")
    (site / "empty-1.0.dist-info").mkdir()
    assert plug_in_names(CLOCKS) == ["sun"]


def test_the_first_on_the_path_counts_as_for_imports(site: Path, tmp_path: Path) -> None:
    install(site, "sun-dial", "", {CLOCKS.entry_points: "sun = sun_dial:now"})
    second = tmp_path / "second"
    install(second, "sun-dial", "", {CLOCKS.entry_points: "moon = sun_dial:now"})
    sys.path.append(str(second))  # the fixture's monkeypatch restores the path
    assert plug_in_names(CLOCKS) == ["sun"]


@pytest.mark.parametrize("text", ["", "a b", "a.policy", "a/b", "rapl:x", "-a", "é", "a\n"])
def test_names_that_could_be_something_else(text: str) -> None:
    assert not is_name(text)
    assert plug_in(CLOCKS, text) is None
