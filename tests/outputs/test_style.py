from xml.etree import ElementTree

import numpy as np

from sdm.outputs.metadata import MapMetadata
from sdm.outputs.style import RAMP, colours, write_qml


def lab(rgb):
    """CIELAB (D65) of sRGB bytes, shape (n, 3)."""
    linear = np.asarray(rgb) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def test_ramp_is_even_and_monotonous_in_lightness():
    steps = lab(colours(np.linspace(0, 1, 17)))
    lightness = np.diff(steps[:, 0])
    assert (lightness < -2.5).all() and lightness.min() > -8
    distance = np.linalg.norm(np.diff(steps, axis=0), axis=1)
    assert distance.max() / distance.min() < 2.6


def test_ramp_survives_colour_blindness():
    # Machado et al. 2009, severity 1: protanopia, deuteranopia, tritanopia, on linear light.
    blindness = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
    rgb = (colours(np.linspace(0, 1, 11)) / 255) ** 2.2
    for matrix in blindness:
        seen = np.clip(rgb @ np.array(matrix).T, 0, 1) ** (1 / 2.2) * 255
        steps = lab(seen)
        apart = np.linalg.norm(steps[:, None] - steps[None], axis=2)
        assert apart[~np.eye(11, dtype=bool)].min() > 4


def test_colours_interpolate_and_clamp():
    assert bytes(colours(0.0)).hex() == RAMP[0][1:] == bytes(colours(-3.0)).hex()
    assert bytes(colours(1.0)).hex() == RAMP[-1][1:] == bytes(colours(9.0)).hex()
    assert len({bytes(colour) for colour in colours(np.linspace(0, 1, 251))}) == 251


def test_qml_is_well_formed_and_labelled(tmp_path, metadata):
    write_qml(tmp_path / "map.qml", metadata)
    root = ElementTree.parse(tmp_path / "map.qml").getroot()
    items = root.findall(".//item")
    assert [item.get("label") for item in items][:3] == ["0", "0.1", "0.2"] and len(items) == 11
    assert items[0].get("color") == RAMP[0] and items[-1].get("color") == RAMP[-1]
    write_qml(tmp_path / "b.qml", MapMetadata("t", "q", unit='<"&', valid_range=(-5, 5)))
    labels = [item.get("label") for item in ElementTree.parse(tmp_path / "b.qml").getroot().findall(".//item")]
    assert labels[0] == '-5 <"&' and labels[5] == '0 <"&'
