"""What is measured of densities with random weights: their draws, their splits, their structural loss."""

import torch
from torch import Tensor, nn

from benchmarks.claims.statistics import smallest_p_value
from gsforge.core.octree import encode_points, systematic_split
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.density import OctreeDensity

# Names of numbers.
UNBIASED = "p-value of means"  # of counts, where they are n pi_k
FARTHEST = "largest |N_k - n pi_k|"
BUDGET = "largest |sum N_k - n|"
LOG_Q = "largest error of log q"  # of a point, against that of its leaf

_CONTRAST = 0.3  # standard deviation of the weights that make the children differ
_ROWS = 500  # draws at once


def variance_ratio(level: int) -> str:
    """Name of a number: variance of the counts over that of independent draws.

    Args:
        level: of the cells.

    Returns:
        The name.
    """
    return f"variance ratio, level {level}"


def random_density(depth: int) -> tuple[OctreeDensity, Tensor]:
    """A density whose children differ in every cell, as after training, and a latent.

    Args:
        depth: of the octree.

    Returns:
        density: with random weights.
        z: [1, M, Z] latent.
    """
    density = OctreeDensity(NetworkConfig(octree_depth=depth, width=32, heads=2, density_blocks=2, latent_channels=8))
    for parameter in (density.head.weight, density.to_modulation.weight, density.to_modulation.bias):
        nn.init.normal_(parameter, std=_CONTRAST)
    return density, torch.randn(1, 8, 8)


def child_probabilities(density: OctreeDensity, z: Tensor) -> list[Tensor]:
    """Probabilities of the children of every cell.

    Args:
        density: of small depth.
        z: [1, M, Z].

    Returns:
        One [8^l, 8] float64 for each level l of the parents.
    """
    levels = range(density.depth)
    log_pi = [density.child_log_probabilities(torch.arange(8**level)[None], level, z)[0] for level in levels]
    return [level.double().softmax(-1) for level in log_pi]


def split_errors(tree: list[Tensor], most: int, splits: int, draws: int) -> dict[str, float]:
    """Split numbers of points among the children of cells again and again, and compare with n pi_k.

    Args:
        tree: from `child_probabilities`.
        most: points in a cell.
        splits: number of cells.
        draws: how often each is split.

    Returns:
        `UNBIASED`, `FARTHEST` and `BUDGET`.
    """
    cells = torch.cat(tree)
    pi = cells[torch.randint(len(cells), (splits,))]
    n = torch.randint(1, most + 1, (splits,))
    split = systematic_split(n.expand(draws, -1), pi, torch.rand(draws, splits, dtype=torch.float64))
    expected = n[:, None] * pi
    return {
        UNBIASED: smallest_p_value(split.double().flatten(1).numpy(), expected.flatten().numpy()),
        FARTHEST: (split - expected).abs().max().item(),
        BUDGET: float((split.sum(-1) - n).abs().max()),
    }


def draw_errors(density: OctreeDensity, z: Tensor, tree: list[Tensor], budget: int, draws: int) -> dict[str, float]:
    """Draw sets of points from the density and compare the counts of every cell with those expected.

    Args:
        density: of small depth.
        z: [1, M, Z].
        tree: from `child_probabilities`.
        budget: points P of a set.
        draws: number of sets.

    Returns:
        `LOG_Q`; `variance_ratio` of each level; `UNBIASED` and `FARTHEST` over the cells of all levels.
    """
    counts, wrong = _leaf_counts(density, z, tree, budget, draws)
    numbers = {LOG_Q: wrong}
    q, farthest, drawn, expectations = torch.ones(1, dtype=torch.float64), 0.0, [], []
    for level, pi in enumerate(tree, start=1):
        parents = counts.view(draws, 8 ** (level - 1), -1).sum(-1)
        drawn.append(counts.view(draws, 8**level, -1).sum(-1).double())
        expected = parents[..., None] * pi
        farthest = max(farthest, (drawn[-1].view_as(expected) - expected).abs().max().item())
        q = (q[:, None] * pi).flatten()
        expectations.append(budget * q)
        numbers[variance_ratio(level)] = (drawn[-1].var(0).sum() / (budget * q * (1 - q)).sum()).item()
    numbers[UNBIASED] = smallest_p_value(torch.cat(drawn, 1).numpy(), torch.cat(expectations).numpy())
    numbers[FARTHEST] = farthest
    return numbers


def _leaf_counts(
    density: OctreeDensity, z: Tensor, tree: list[Tensor], budget: int, draws: int
) -> tuple[Tensor, float]:
    """[draws, 8^L] points in each leaf, and the largest error of a point's log-probability."""
    log_q = torch.zeros(1, dtype=torch.float64)
    for pi in tree:
        log_q = (log_q[:, None] + pi.log()).flatten()
    counts, wrong = [], 0.0
    for _ in range(-(-draws // _ROWS)):
        drawn = density.sample(z.expand(min(_ROWS, draws), -1, -1), budget)
        codes = encode_points(drawn.points, density.depth)
        wrong = max(wrong, (drawn.log_probability - log_q[codes]).abs().max().item())
        rows = torch.zeros(len(codes), len(log_q), dtype=torch.long)
        counts.append(rows.scatter_add_(1, codes, torch.ones_like(codes)))
    return torch.cat(counts)[:draws], wrong


def divergence_error(depth: int, points: int) -> float:
    """Structural loss against the divergence of q from the histogram of the leaves, listed one by one.

    Args:
        depth: of the octree.
        points: of the cloud, denser towards one corner.

    Returns:
        The relative difference.
    """
    density, z = random_density(depth)
    cloud = torch.rand(1, points, 3) ** 2
    codes, counts = encode_points(cloud[0], depth).unique(return_counts=True)
    log_q = torch.zeros(len(codes), dtype=torch.float64)
    for level in range(depth):
        below = codes >> 3 * (depth - 1 - level)
        log_pi = density.child_log_probabilities((below >> 3)[None], level, z)[0]
        log_q += log_pi.gather(1, (below & 7)[:, None])[:, 0]
    share = counts.double() / points
    divergence = (share * (share.log() - log_q)).sum()
    return ((density.structural_loss(cloud, z)[0] - divergence) / divergence).abs().item()
