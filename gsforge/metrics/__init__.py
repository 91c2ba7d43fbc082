"""Evaluation metrics as `torchmetrics.Metric` classes."""
