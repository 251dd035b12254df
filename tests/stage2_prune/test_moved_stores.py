"""A store answers alike wherever it was moved to: an archive, through HDF5, behind a URL."""

import pytest

from configs.errors import ConfigError
from stage2_prune.evaluation import evaluate
from store.copies.contents import Contents
from store.copies.copies import write_copy
from store.copies.hdf5 import export_hdf5
from store.copies.hdf5_import import opened
from store.errors import ArchiveReadOnly
from store.reading.reader import FeatureStore
from tests.helpers.s3 import Copy, s3_server
from tests.stage2_prune.conftest import extract

SMALL = {"prune__budgets": [3], "prune__methods": [{"name": "keep_all"}, {"name": "cls_attention"}]}


@pytest.fixture
def archive(tiny, tmp_path):
    write_copy(Contents.of(FeatureStore.open(tiny().store_path)), tmp_path / "archive", "zstd")
    return tmp_path / "archive"


def predictions(experiment):
    evaluate.run(experiment)
    folder = experiment.run_dir / "eval" / "predictions"
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_predictions_are_the_same_from_an_archive_an_import_and_a_url(tiny, archive, tmp_path):
    expected = predictions(tiny(**SMALL))
    export_hdf5(FeatureStore.open(tiny().store_path), tmp_path / "out.h5", overwrite=False)
    with opened(tmp_path / "out.h5") as contents:
        write_copy(contents, tmp_path / "imported")
    with s3_server():
        url = Copy(tiny().store_path).url
        for number, place in enumerate([str(archive), str(tmp_path / "imported"), url]):
            moved = tiny(store__path=place, run_dir=str(tmp_path / f"run {number}"), **SMALL)
            assert predictions(moved) == expected


def test_an_extraction_into_an_archive_or_a_url_is_refused_before_a_model_is_loaded(tiny, archive, tmp_path):
    with pytest.raises(ArchiveReadOnly, match="export .* --store"):
        extract(tiny(store__path=str(archive)), tmp_path)
    with pytest.raises(ConfigError, match="got s3://bucket/x, which is only read"):
        extract(tiny(store__path="s3://bucket/x"), tmp_path)
