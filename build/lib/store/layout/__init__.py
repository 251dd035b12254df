"""What a store is made of: arrays, plan, ids, shards and fingerprints."""
