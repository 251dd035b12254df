"""`make bench-store`: the store against np.memmap and other containers, as ratios; see docs/store-benchmarks.md."""
