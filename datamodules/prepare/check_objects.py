"""What `gsforge data check` looks for in an object."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from datamodules.conditions import member_name
from datamodules.object_format import ObjectRecord, read_points, read_view
from datamodules.prepare.check_conditions import check_conditions
from datamodules.samples import Members

_BOX = 0.5 + 1e-4
# Shares of points that may contradict the views. Parts thinner than a pixel show in alpha, but not always in depth.
_MAX_OFF_OBJECT = 0.005
_MAX_IN_FRONT = 0.08
_DEPTH_TOLERANCE = 0.01  # of the depth range


def check_object(members: Members) -> Iterator[str]:
    """Problems of one object: members, shapes, cameras, ranges, and images against surface points.

    Args:
        members: the files of the object's sample.

    Yields:
        One line for each problem; nothing if the object is sound.

    Raises:
        SampleError: if a member cannot be decoded or has another shape or type.
    """
    record = ObjectRecord.read(members)
    yield from _check_members(members, record)
    yield from _check_cameras(record)
    cloud = read_points(members, record)
    points = torch.from_numpy(cloud["points"])
    if not bool((points.abs() <= _BOX).all()):
        yield f"points leave the unit cube: largest coordinate {float(points.abs().max()):.4f}"
    lengths = torch.from_numpy(cloud["point_normals"]).float().norm(dim=-1)
    if not bool(((lengths - 1).abs() < 0.01).all()):
        yield "point_normals are not of unit length"
    shares = torch.zeros(2)
    for view in range(record.views):
        images = read_view(members, record, view)
        hit = images["depth"] > 0
        if not bool(hit.any()):
            yield f"view {view} shows nothing"
        if bool((hit != (images["normal"].abs().sum(0, keepdim=True) > 0)).any()):
            yield f"view {view}: depth and normal disagree about where the object is"
        shares += _contradictions(points, images, record, view) / record.views
    off_object, in_front = shares.tolist()
    if off_object > _MAX_OFF_OBJECT:
        yield f"{off_object:.1%} of the points project beside the object; cameras and points do not fit together"
    if in_front > _MAX_IN_FRONT:
        yield f"{in_front:.1%} of the points lie in front of the rendered depth; depth and points do not fit together"
    yield from check_conditions(members, record.conditions, points)


def _check_members(members: Members, record: ObjectRecord) -> Iterator[str]:
    expected = {f"{name}.{view:03d}.png" for name in ("color", "depth", "normal") for view in range(record.views)}
    expected |= {"record.json", "points.npy", "point_normals.npy", "point_colors.npy"}
    expected |= {member_name(view) for view in range(len(record.conditions))}
    if missing := sorted(expected - members.content.keys()):
        yield f"missing members: {', '.join(missing)}"
    if extra := sorted(members.content.keys() - expected):
        yield f"unknown members: {', '.join(extra)}"


def _check_cameras(record: ObjectRecord) -> Iterator[str]:
    matrices, intrinsics = record.world_to_camera, record.intrinsics
    rotation = matrices[:, :3, :3]
    if not torch.allclose(rotation @ rotation.mT, torch.eye(3), atol=1e-4) or bool((rotation.det() < 0).any()):
        yield "world_to_camera holds a matrix that is no rotation and translation"
    if not torch.equal(matrices[:, 3], torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(record.views, 4)):
        yield "world_to_camera: a last row is not [0, 0, 0, 1]"
    focal, principal = intrinsics[:, [0, 1], [0, 1]], intrinsics[:, :2, 2]
    if not bool((focal > 0).all()) or bool((principal - record.size / 2).abs().max() > record.size):
        yield "intrinsics: focal length or principal point does not fit the image"


def _contradictions(points: Tensor, images: dict[str, Tensor], record: ObjectRecord, view: int) -> Tensor:
    """Shares of surface points that one view rules out: those off the object, and those in front of its surface.

    Each point is compared with its pixel and the neighbours of that, since it does not lie at the pixel's centre.
    """
    in_camera = points @ record.world_to_camera[view, :3, :3].T + record.world_to_camera[view, :3, 3]
    homogeneous = in_camera @ record.intrinsics[view].T
    pixels = (homogeneous[:, :2] / homogeneous[:, 2:]).floor().long()
    inside = ((pixels >= 0) & (pixels < record.size)).all(-1) & (in_camera[:, 2] > 0)
    if not bool(inside.any()):
        return torch.ones(2)
    (columns, rows), z = pixels[inside].T, in_camera[inside, 2]
    covered = max_pool2d(images["alpha"][None], 3, stride=1, padding=1)[0, 0]
    negative = torch.where(images["depth"] > 0, -images["depth"], -torch.inf)
    nearest = -max_pool2d(negative[None], 3, stride=1, padding=1)[0, 0]
    near, far = record.depth_range
    in_front = (z < nearest[rows, columns] - _DEPTH_TOLERANCE * (far - near)) & nearest[rows, columns].isfinite()
    return torch.stack([(covered[rows, columns] == 0).float().mean(), in_front.float().mean()])
