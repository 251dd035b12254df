"""Installed distributions, as importlib.metadata sees them: a module and a .dist-info folder on the search path."""

from pathlib import Path


def install(folder: Path, distribution: str, modules: dict[str, str], **groups: dict[str, str]) -> None:
    """Write modules, and the entry points of `encode_once.<group>` that name them, into a folder of the search path."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [
        f"[encode_once.{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
