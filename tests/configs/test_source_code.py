"""The code that a method depends on: its own file and all that it imports of this project or beside it."""

import shutil
import sys
from importlib import import_module

import pytest

from configs import plugin
from configs.files import source_code as code
from configs.files.source_code import code_digest
from stage2_prune import pruners
from stage2_prune.pruners.combination import Combination
from stage2_prune.pruners.prune_sid import PruneSid
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.sweep.raster_order import RasterOrder

HERE = PruneSid().code


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of this project, to be edited."""
    for package in code.PACKAGES:
        shutil.copytree(
            code.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("checkpoint", "__pycache__")
        )
    monkeypatch.setattr(code, "ROOT", tmp_path)
    code_digest.cache_clear()
    yield tmp_path
    code_digest.cache_clear()


def edited(root, file):
    """The digest of prune_sid's code after a file was edited."""
    (root / file).write_text((root / file).read_text() + "\nEDITED = 1\n")
    code_digest.cache_clear()
    return code_digest(root / "stage2_prune" / "pruners" / "prune_sid.py")


def test_an_edit_of_what_a_method_imports_however_far_is_other_code_and_of_anything_else_is_not(copied):
    before = code_digest(copied / "stage2_prune" / "pruners" / "prune_sid.py")
    assert before == HERE, "wherever the project lies"
    assert edited(copied, "stage2_prune/pruners/fastv.py") == before
    assert edited(copied, "stage2_prune/evaluation/report.py") == before
    seen = {before}
    for file in (
        "stage2_prune/pruners/prune_sid.py",
        "stage2_prune/pruners/_components.py",
        "stage2_prune/primitives/suppression.py",
        "stage2_prune/pruning/tokens.py",
        "stage2_prune/errors.py",
        "configs/errors.py",
    ):
        now = edited(copied, file)
        assert now not in seen, file
        seen.add(now)


def test_a_method_of_ones_own_depends_on_the_files_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "near.py").write_text("from .far import COUNT\nimport beside\n")
    (tmp_path / "mine" / "far.py").write_text("COUNT = 1\n")
    (tmp_path / "mine" / "beside.py").write_text("import numpy, nowhere\n")
    method = tmp_path / "mine" / "my_method.py"
    method.write_text(
        "from stage2_prune.pruners.first_last import FirstLast\nfrom .near import COUNT\n\nclass Mine(FirstLast):\n    pass\n"
    )
    before = code_digest(method)
    for name in ("far.py", "beside.py", "near.py"):
        path = tmp_path / "mine" / name
        path.write_text(path.read_text() + "# edited\n")
        code_digest.cache_clear()
        assert code_digest(method) != before
        before = code_digest(method)
    (tmp_path / "mine" / "beside.py").write_text("")  # its libraries are none of ours
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    code_digest.cache_clear()
    try:
        assert import_module("mine.my_method").Mine().code == code_digest(method)
    finally:
        for name in ("mine", "mine.my_method", "mine.near", "mine.far", "beside"):
            sys.modules.pop(name, None)


def test_every_method_has_code_of_its_own_and_a_wrapped_one_that_of_what_it_wraps():
    digests = {name: found().code for name, found in plugin.find_all(pruners, Pruner).items()}
    assert len(set(digests.values())) == len(digests)
    assert RasterOrder(PruneSid()).code == digests["prune_sid"]
    assert Combination(before="uniform_grid").code != Combination(before="cls_attention").code


def test_a_method_that_imports_a_public_name_depends_on_the_module_behind_it_and_on_no_other(copied, tmp_path):
    method = tmp_path / "mine.py"
    method.write_text("from stage2_prune import top_k\n")
    before = code_digest(method)
    for name, is_behind in (("primitives/top_k.py", True), ("primitives/soft_topk.py", False), ("api.py", False)):
        path = copied / "stage2_prune" / name
        path.write_text(path.read_text() + "# edited\n")
        code_digest.cache_clear()
        assert (code_digest(method) != before) == is_behind, name
        before = code_digest(method)
