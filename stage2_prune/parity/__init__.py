"""The proof on demand: four ways to the answer, bit for bit (`parity`)."""
