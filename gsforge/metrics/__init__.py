"""Evaluation metrics: pure functions of a batch, with one value for each object."""
