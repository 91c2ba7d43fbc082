"""Quaternions (w, x, y, z) and rotation matrices."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def quaternion_to_matrix(quats: Tensor) -> Tensor:
    """Turn quaternions into rotation matrices.

    Args:
        quats: [..., 4], (w, x, y, z); normalised here, so any non-zero length is accepted.

    Returns:
        [..., 3, 3] matrices that rotate column vectors.
    """
    w, x, y, z = normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrices: Tensor) -> Tensor:
    """Turn rotation matrices into unit quaternions with w >= 0.

    The largest of the four components is found first and the others divided by it, which is stable for every rotation.

    Args:
        matrices: [..., 3, 3] rotation matrices.

    Returns:
        [..., 4] unit quaternions (w, x, y, z).
    """
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    antisymmetric = matrices.mT - matrices
    axis = torch.stack([antisymmetric[..., 1, 2], antisymmetric[..., 2, 0], antisymmetric[..., 0, 1]], dim=-1)
    vector_part = matrices + matrices.mT + (1 - trace) * torch.eye(3).to(matrices)
    # Row k of this symmetric matrix is 4 q_k (w, x, y, z).
    scalar_row = torch.cat([1 + trace, axis[..., None, :]], dim=-1)
    products = torch.cat([scalar_row, torch.cat([axis[..., None], vector_part], dim=-1)], dim=-2)
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    quats = normalize(products.gather(-2, index).squeeze(-2), dim=-1)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def multiply_quaternions(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product: the rotation `a` after the rotation `b`.

    Args:
        a: [..., 4] quaternions.
        b: [..., 4] quaternions, broadcast against `a`.

    Returns:
        [..., 4] quaternions.
    """
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )
