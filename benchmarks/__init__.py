"""Measurements of the project as a whole: the demo, speed against peers, claims of the papers in miniature."""
