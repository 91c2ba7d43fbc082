"""Claims of the papers in miniature: each says beforehand what it compares and when it passes."""
