"""gsforge: training of generative, representation and style models on 3D Gaussians."""

__version__ = "0.1.0"
