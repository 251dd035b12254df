"""Who calls a worker: processes on this machine, SLURM jobs, Ray actors. Row -> shard is the plan's: all make the same bytes."""
