"""From the answers of a model to results: cells, predictions, summaries, tables and plots."""
