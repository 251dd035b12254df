"""Run what touches transformers with both ends of the supported versions: `python -m tests.versions oldest newest`.

Each end gets a virtual environment in .versions/, which holds transformers and what it needs from tests/versions/<end>.txt
and finds everything else, torch above all, in the environment that runs this. `latest` has no file: it takes what the package
index has today. The tests are those listed in tests/versions/files.txt.
"""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = HERE / "files.txt"
LATEST = "latest"


def requirements(end: str) -> list[str]:
    """What an end installs: pinned packages, or their bare names for the latest."""
    pinned = re.findall(r"^[\w-]+==.*$", (HERE / f"{'newest' if end == LATEST else end}.txt").read_text(), re.MULTILINE)
    return [line.partition("==")[0] for line in pinned] if end == LATEST else pinned


def environment(end: str) -> Path:
    """The Python of an end's environment, which is made anew where its packages are not those that it should have."""
    folder = ROOT / ".versions" / end
    python, made = folder / "bin" / "python", folder / "made.txt"
    wanted = "\n".join(requirements(end))
    if end != LATEST and made.is_file() and made.read_text() == wanted:
        return python
    venv.create(folder, clear=True, with_pip=True)
    arguments = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", vars=arguments))
    (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--ignore-installed", "--no-deps", *requirements(end)]
    subprocess.run(install, check=True)
    # Once more with dependencies: what the shared environment has is taken as it is, unless it does not fit.
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements(end)], check=True)
    made.write_text(wanted)
    return python


def check(end: str, python: Path) -> None:
    """Say which transformers is imported; exit unless it lies in the end's own environment, in the pinned version."""
    script = (
        "import torch, transformers; print(transformers.__version__, transformers.__file__, torch.__file__, sep='\\n')"
    )
    done = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)
    version, own, shared = done.stdout.splitlines()
    pinned = next(line for line in requirements(end) if line.startswith("transformers")).partition("==")[2]
    if not Path(own).is_relative_to(python.parents[1]) or (pinned and version != pinned):
        sys.exit(f"expected transformers {pinned} from {python.parents[1]}, got {version} from {own}")
    if not Path(shared).is_relative_to(sysconfig.get_path("purelib")):
        sys.exit(f"expected the shared torch from {sysconfig.get_path('purelib')}, got {shared}")
    print(f"{end}: transformers {version}", flush=True)


def main(ends: list[str], options: list[str]) -> int:
    """Test every end, and return the first exit code that is not 0."""
    failed = 0
    for end in ends:
        python = environment(end)
        check(end, python)
        command = [python, "-m", "pytest", f"@{FILES}", *options]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        failed = failed or code
    return failed


if __name__ == "__main__":
    known = {LATEST, *(path.stem for path in HERE.glob("*.txt"))} - {FILES.stem}
    sys.exit(
        main(*([argument for argument in sys.argv[1:] if (argument in known) == wanted] for wanted in (True, False)))
    )
