"""The contract of a pruner: its rules, each checked on generated features; `check-pruner` runs them, and so do the tests."""
