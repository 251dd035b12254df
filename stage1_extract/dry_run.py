"""Say what an extraction will cost before any work is done."""

from typing import Any

from configs.experiment import Experiment
from stage1_extract.encoding.arrays import with_captured
from stage1_extract.encoding.family import checkpoint_config
from stage1_extract.extract import check_before_work
from stage1_extract.find_family import check_questions, find_family, require_stage2
from stage1_extract.sources import find_sources
from stage1_extract.work.asked import idle_shards, rows_not_asked_for
from stage1_extract.work.failures import surplus
from stage1_extract.work.measuring import measure
from stage1_extract.work.planning import known_failures, plan_for, with_stored_arrays
from stage1_extract.work.price import price
from store.log.progress import missing_parts
from store.writing.growth import plan_to_follow


def dry_run(
    experiment: Experiment, overwrite: bool = False, append: bool = False, measured: bool = False
) -> dict[str, Any]:  # fmt: skip
    """Return the price of an extraction (see work/price.py), with `measured` its time too (see work/measuring.py).

    No weights are loaded unless it is measured, or the model's parts cannot be reached apart.
    """
    check_before_work(experiment)
    experiment = with_captured(experiment) if overwrite else with_stored_arrays(with_captured(experiment))
    config = checkpoint_config(experiment.model)
    require_stage2(experiment, config)
    check_questions(experiment, config)
    description = find_family(config, experiment.model.vision_family).describe(experiment, config)
    sources, path = find_sources(experiment), experiment.store_path
    wanted = plan_for(experiment, sources, description, {})
    named = sources.ids()
    plan, ids = (wanted, named) if overwrite else plan_to_follow(path, wanted, named, sources.unreadable, append)
    parts = [(0, shard) for shard in range(plan.n_shards)]
    if plan is not wanted:  # the extraction continues the store
        missing = missing_parts(path, plan)
        idle = idle_shards(plan, [shard for _, shard in missing], rows_not_asked_for(named, plan, ids))
        parts = [part for part in missing if part[1] not in idle]
    stops = surplus(dict(known_failures(sources)), experiment.extract.max_failures, sources)
    costs = price(plan, parts, sources, description, path, stops)
    if not measured:
        return costs
    images = sum(len(plan.rows(shard)) for shard in {shard for _, shard in parts})
    row_bytes = sum(costs["bytes_per_image"].values())
    return costs | {"measured": measure(experiment, sources, None if plan is wanted else plan, images, row_bytes)}
