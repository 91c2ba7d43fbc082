"""DeG: a Gaussian VAE whose centres are drawn from a learned octree density."""
