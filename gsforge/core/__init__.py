"""Pure-torch building blocks: Gaussians, cameras, rotations, spherical harmonics, octrees, point sampling, .ply files.

Conventions, said once for the whole project:

* Cameras are OpenCV: x right, y down, z forward. Extrinsics are `world_to_camera` 4x4 matrices, intrinsics are in
  pixels, and the centre of the top-left pixel is (0.5, 0.5).
* Quaternions are (w, x, y, z), of unit length after activation. Angles are radians.
* Objects live in [-0.5, 0.5]^3 with z up. Scenes are in metres.
* Colours are sRGB values in [0, 1]; images are channels-first, [..., 3, height, width].
* A name says which space a number is in: `log_scales` or `scales`, `opacity_logits` or `opacities`.
* Leading dimensions written `...` are batch dimensions; N counts Gaussians or points, C cameras of one scene.
"""
