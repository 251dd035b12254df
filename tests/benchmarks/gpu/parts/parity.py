"""Whether four ways to the answer give the same bits, with stores made by calls of one image and of many."""

import contextlib
import io
import json
import time

from stage1_extract.extract import extract
from stage2_prune.parity import run as parity
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.making import photo
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows

NEW_TOKENS = 4


def measure(place: Place, rows: Rows) -> None:
    """Make a small store for each number of images per call, and run parity on it."""
    asked = place.folder / "parity.jsonl"
    lines = [
        {
            "question_id": f"p{number}", "image": photo(number), "split": "test", "answers": ["red"],
            "question": "what color is it ?",
        }
        for number in range(place.scale.parity_questions)
    ]  # fmt: skip
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for images in (1, place.scale.tower_batch):
        begun = time.perf_counter()
        experiment = place.experiment(
            f"parity-{images}",
            extract={"tower_batch": images},
            data={"questions": asked},
            eval={"max_new_tokens": NEW_TOKENS},
        )
        extract(experiment, overwrite=True)
        place.release()
        with contextlib.redirect_stdout(io.StringIO()) as said:
            parity.run(experiment, None, as_json_text=False)
        place.release()
        found = json.loads((experiment.run_dir / "parity.json").read_text())["identical"]
        verdict = {True: "IDENTICAL", False: "DIFFERENT", None: "INCOMPLETE"}[found]
        rows.add("parity", before.parity(images), verdict)
        rows.add("parity", f"{before.parity(images)}, extraction included", time.perf_counter() - begun, "s")
        if found is not True:
            rows.say("parity", f"at {before.parity(images)} it said: {' '.join(said.getvalue().split())[:600]}")
