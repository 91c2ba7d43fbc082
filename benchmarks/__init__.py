"""Measurements of the project as a whole: the demo, and later speed against peers and claims in miniature."""
