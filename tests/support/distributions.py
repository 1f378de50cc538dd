"""Distributions as an installer leaves them: a module, and metadata with entry points."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, name: str, module: str, entry_points: dict[str, str]) -> None:
    """Lay version 1.0 of a distribution into `folder`.

    Args:
        folder: to be put on the path of imports.
        name: of the distribution, and with _ for - of its module.
        module: text of that module.
        entry_points: group -> lines ``NAME = module:attribute``.
    """
    stem = name.replace("-", "_")
    metadata = folder / f"{stem}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]\n{text}\n" for group, text in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (folder / f"{stem}.py").write_text(module)
