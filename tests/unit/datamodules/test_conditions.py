import json
import math

import numpy as np
import pytest
import torch
import trimesh

from datamodules.conditions import Conditions, read_condition, spread
from datamodules.errors import DataError, SampleError
from datamodules.index import read_index
from datamodules.object_format import ObjectRecord, read_points
from datamodules.prepare.check_objects import check_object
from datamodules.prepare.condition_views import draw_cameras, render_conditions
from datamodules.prepare.mesh import Material, build_mesh
from datamodules.prepare.objects import ObjectSettings, make_toy_object, toy_sources
from datamodules.prepare.show import contact_sheet
from datamodules.samples import Members, SampleStore
from gsforge.core.object_camera import pinholes

BALL = math.sqrt(3) / 2
SETTINGS = ObjectSettings(views=3, size=32, points=2048, supersampling=3, condition_views=6, condition_size=48)


def members_of(settings=SETTINGS, number=3):
    sample = make_toy_object(settings, toy_sources(number + 1)[number])
    return Members(sample.key, "here", sample.members)


@pytest.fixture(scope="module")
def chair():
    return members_of()


def changed(members, change):
    content = dict(members.content)
    record = json.loads(content["record.json"])
    change(content, record)
    return Members(members.key, members.source, content | {"record.json": json.dumps(record).encode()})


def test_cameras_are_what_is_promised():
    cameras = draw_cameras(2000, np.random.RandomState(0))
    directions, inverse, half_widths = cameras[:, :3], cameras[:, 3], cameras[:, 4]
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2000).double())
    assert directions.mean(0).abs().max() < 0.01
    assert directions.T.cov().allclose(torch.eye(3).double() / 3, atol=0.01)
    orthographic = inverse == 0
    assert 0.08 < orthographic.double().mean() < 0.12
    torch.testing.assert_close(half_widths[orthographic], torch.full_like(half_widths[orthographic], BALL))
    half_angles = (half_widths * inverse).atan()[~orthographic]
    torch.testing.assert_close(half_angles.sin() / inverse[~orthographic], torch.full_like(half_angles, BALL))
    degrees = (2 * half_angles).rad2deg()
    assert 10 <= degrees.min() < 10.2
    assert 69.8 < degrees.max() <= 70
    assert 39 < degrees.mean() < 41
    assert not draw_cameras(2000, np.random.RandomState(1)).equal(cameras)


def test_surface_points_fall_on_the_silhouettes_through_the_flow_model_s_cameras():
    """Directions, distances, widths and the images' axes: both kinds of camera, objects without any symmetry."""
    kinds = set()
    for number in (3, 6, 10):
        members = members_of(number=number)
        record = ObjectRecord.read(members)
        points = torch.from_numpy(read_points(members, record)["points"])
        for view, camera in enumerate(record.conditions.cameras):
            image = read_condition(members, record.conditions, view)
            assert image.shape == (4, 48, 48)
            pixels, depth = pinholes(camera[None], 48).project(points)
            assert depth.min() > 0
            x, y = pixels[0].floor().long().T
            held = torch.zeros(48, 48)
            held[y, x] = 1
            seen = image[3] > 0
            grown = torch.nn.functional.max_pool2d(image[3][None, None], 3, 1, 1)[0, 0] > 0
            assert not (held.bool() & ~grown).any()
            near = torch.nn.functional.max_pool2d(held[None, None], 5, 1, 2)[0, 0] > 0
            assert (seen & near).sum() > 0.97 * seen.sum()
            kinds.add(bool(camera[3] == 0))
    assert kinds == {True, False}


def test_orthographic_views_show_true_sizes_and_near_ones_larger_fronts():
    """A cube of side 0.8 seen along x: its outline is the whole of it, or its front face 0.4 nearer."""
    box = trimesh.creation.box((0.8, 0.8, 0.8))
    half_angle = math.radians(35)
    near = [1, 0, 0, math.sin(half_angle) / BALL, BALL / math.cos(half_angle)]
    cameras = torch.tensor([[1, 0, 0, 0, BALL], near]).double()
    color = render_conditions(build_mesh(box.vertices, box.faces), cameras, 64, 4).color
    sides = np.sqrt(color[..., 3].astype(float).sum((1, 2)) / 255) / 64
    assert sides[0] == pytest.approx(0.8 / (2 * BALL), abs=1 / 256)
    distance = 1 / near[3]
    assert sides[1] == pytest.approx(0.8 / (2 * near[4]) * distance / (distance - 0.4), abs=1 / 256)


def test_orthographic_rays_pass_each_translucent_surface_once():
    """Their cameras are far away, where single precision cannot tell a surface from what lies just behind it."""
    corners = np.array([[0.1, -0.5, -0.5], [0.1, 0.5, -0.5], [0.1, 0.5, 0.5], [0.1, -0.5, 0.5]])
    glass = Material((1.0, 0.0, 0.0, 0.5), alpha_mode="BLEND")
    mesh = build_mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), glass)
    direction = torch.nn.functional.normalize(torch.tensor([0.9, 0.3, 0.2]), dim=0).tolist()
    views = render_conditions(mesh, torch.tensor([[*direction, 0, BALL]]).double(), 16, 1)
    assert set(views.color[..., 3].ravel().tolist()) == {0, 128}


def test_images_are_rendered_in_the_settings_size_and_are_the_same_again(chair):
    assert members_of() == chair
    record = json.loads(chair.content["record.json"])
    assert record["conditions"]["size"] == 48
    assert len(record["conditions"]["cameras"]) == 6
    assert members_of(ObjectSettings(**SETTINGS.to_json() | {"seed": 1})) != chair


def test_without_condition_views_nothing_changes(chair):
    plain = members_of(ObjectSettings(**SETTINGS.to_json() | {"condition_views": 0}))
    assert not any(name.startswith("condition") for name in plain.content)
    record, other = json.loads(plain.content["record.json"]), json.loads(chair.content["record.json"])
    assert other.pop("conditions")
    assert record == other
    assert {**chair.content, **plain.content, "record.json": b""} == {**chair.content, "record.json": b""}
    assert "condition_views" not in ObjectSettings().to_json()
    assert len(ObjectRecord.read(plain).conditions) == 0


def test_spread_views_are_far_from_each_other(chair):
    conditions = ObjectRecord.read(chair).conditions
    chosen = spread(conditions, 3)
    assert chosen[0] == 0
    assert chosen[:2] == spread(conditions, 2)
    assert torch.pdist(conditions.cameras[chosen, :3]).min() > 1
    assert sorted(spread(conditions, 9)) == list(range(6))
    assert Conditions.from_record(conditions.to_record()).cameras.equal(conditions.cameras)


def mix_up(content, record):
    cameras = record["conditions"]["cameras"]
    record["conditions"]["cameras"] = cameras[1:] + cameras[:1]


def rescale(factor):
    def change(content, record):
        for camera in record["conditions"]["cameras"]:
            camera[4] *= factor

    return change


def lengthen(content, record):
    record["conditions"]["cameras"][2][:3] = [2 * value for value in record["conditions"]["cameras"][2][:3]]


PROBLEMS = {
    "mixed up": (mix_up, "of the points project beside the object"),
    "smaller": (rescale(0.5), "of the points project beside the object"),
    "larger": (rescale(2.0), "of the object has no points near"),
    "length": (lengthen, "not of unit length"),
    "extra": (lambda c, r: c.update({"condition.006.png": b""}), "unknown members: condition.006.png"),
    "forgotten": (lambda c, r: r.pop("conditions"), "unknown members: condition.000.png"),
}


def test_a_sound_object_has_no_problems(chair):
    assert list(check_object(chair)) == []


@pytest.mark.parametrize("name", PROBLEMS)
def test_check_finds_problems(chair, name):
    change, message = PROBLEMS[name]
    assert message in " | ".join(check_object(changed(chair, change)))


BROKEN = {
    "shape": (lambda c, r: r["conditions"]["cameras"][0].pop(), "record is incomplete: ValueError"),
    "nan": (lambda c, r: r["conditions"]["cameras"][0].__setitem__(3, math.nan), "that is not finite"),
    "width": (lambda c, r: r["conditions"]["cameras"][0].__setitem__(4, 0.0), "of negative size"),
    "no size": (lambda c, r: r["conditions"].pop("size"), "record is incomplete: KeyError"),
    "other size": (lambda c, r: r["conditions"].update(size=24), r"uint8\[48, 48, 4\], expected uint8\[24, 24, 4\]"),
    "missing": (lambda c, r: c.pop("condition.003.png"), r"no member 'condition\.003\.png'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_conditions_are_sample_errors(chair, name):
    change, message = BROKEN[name]
    with pytest.raises(SampleError, match=message):
        list(check_object(changed(chair, change)))


def test_the_contact_sheet_has_a_row_of_them(conditioned_objects):
    sheet = contact_sheet(str(conditioned_objects), objects=2, views=3, size=20, columns=2)
    assert sheet.size == (2 * (60 + 6) + 6, 14 + 4 * 20 + 12)
    row = np.asarray(sheet)[20 + 60 : 20 + 80, 6:66]
    store = SampleStore({str(conditioned_objects): read_index(str(conditioned_objects))})
    assert len(ObjectRecord.read(store.read(0)).conditions) == 3
    assert (row < 250).any()


@pytest.mark.parametrize("settings", [{"condition_views": -1}, {"condition_views": 1001}, {"condition_size": 0}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(DataError, match="condition"):
        ObjectSettings(**settings)
