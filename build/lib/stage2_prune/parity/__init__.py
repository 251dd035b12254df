"""Prove on demand that four ways to the answer give the same bits (`parity`)."""
