"""The work of an extraction: its plan, its price, and one worker that encodes shards."""
