"""Claims of DeG (TripoSplat), arXiv 2605.16355."""
