"""Evaluation metrics: functions of a batch with one value for each object, and metrics of whole sets."""
