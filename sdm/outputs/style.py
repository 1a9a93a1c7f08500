"""The colour ramp of all views of a map, and the QGIS style that applies it.

Low values are pale yellow, high values dark indigo. Lightness falls in even steps, so that equal
differences look equal, also in grey print and to colour-blind readers.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from sdm.files.atomic import disk_errors
from sdm.outputs.metadata import MapMetadata

RAMP = (
    "#faf3b1",
    "#e3e99f",
    "#c9df90",
    "#acd58b",
    "#8fca8c",
    "#74bf8d",
    "#5cb18f",
    "#46a391",
    "#349592",
    "#2a8590",
    "#26768b",
    "#256686",
    "#28567d",
    "#284679",
    "#2a3670",
    "#2a2664",
    "#281657",
)
"""Colours at equal steps from the low end of the valid range to the high end.

Designed in OKLCH: lightness linear from 0.955 to 0.27, hue from yellow over green and teal to indigo.
"""

DIVERGING = ("#7b3294", "#a46fb3", "#c8a8d3", "#e6d8ea", "#f7f7f7", "#d5ecd1", "#9fd49b", "#53a95f", "#008837")
"""Colours of a change from its least value over none in the middle to its greatest: purple, white, green."""

CLASSES = 10
"""Labelled steps in the QGIS legend."""


def colours(fractions: npt.ArrayLike, ramp: Sequence[str] = RAMP) -> npt.NDArray[np.uint8]:
    """RGB of shape (..., 3) for fractions of the valid range; outside 0..1 the end colours."""
    anchors = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in ramp], dtype=float)
    places = np.linspace(0, 1, len(ramp))
    fractions = np.asarray(fractions, dtype=float)
    channels = [np.interp(fractions, places, anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def write_qml(path: Path, metadata: MapMetadata, opacity: float = 1.0, ramp: Sequence[str] = RAMP) -> None:
    """Write a QGIS 3 style: single-band pseudocolour over the valid range, nodata transparent.

    QGIS applies it automatically to the raster of the same base name. Raises OutputError if the file cannot
    be written.
    """
    low, high = metadata.valid_range
    fractions = np.linspace(0, 1, CLASSES + 1)
    unit = "" if metadata.unit in ("", "1") else f" {metadata.unit}"
    items = "\n".join(
        f"          <item value={_attribute(low + fraction * (high - low))} color={_attribute(_hex(colour))} "
        f'alpha="255" label={_attribute(f"{low + fraction * (high - low):.3g}{unit}")}/>'
        for fraction, colour in zip(fractions, colours(fractions, ramp), strict=True)
    )
    first, *between, last = colours(np.linspace(0, 1, len(ramp)), ramp)
    places = np.linspace(0, 1, len(ramp))[1:-1]
    stops = ":".join(f"{at:.6g};{_rgba(colour)}" for at, colour in zip(places, between, strict=True))
    text = f"""<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="AllStyleCategories" maxScale="0" minScale="1e+08" hasScaleBasedVisibilityFlag="0">
  <pipe>
    <provider>
      <resampling enabled="false" zoomedInResamplingMethod="nearestNeighbour" zoomedOutResamplingMethod="nearestNeighbour" maxOversampling="2"/>
    </provider>
    <rasterrenderer type="singlebandpseudocolor" band="1" opacity={_attribute(opacity)} alphaBand="-1" nodataColor="" classificationMin={_attribute(low)} classificationMax={_attribute(high)}>
      <rasterTransparency/>
      <minMaxOrigin>
        <limits>None</limits>
        <extent>WholeRaster</extent>
        <statAccuracy>Exact</statAccuracy>
      </minMaxOrigin>
      <rastershader>
        <colorrampshader colorRampType="INTERPOLATED" classificationMode="2" clip="0" minimumValue={_attribute(low)} maximumValue={_attribute(high)} labelPrecision="2">
          <colorramp type="gradient" name="[source]">
            <Option type="Map">
              <Option name="color1" type="QString" value="{_rgba(first)}"/>
              <Option name="color2" type="QString" value="{_rgba(last)}"/>
              <Option name="discrete" type="QString" value="0"/>
              <Option name="rampType" type="QString" value="gradient"/>
              <Option name="stops" type="QString" value="{stops}"/>
            </Option>
          </colorramp>
{items}
          <rampLegendSettings orientation="2" direction="0" useContinuousLegend="0" prefix="" suffix="" minimumLabel="" maximumLabel=""/>
        </colorrampshader>
      </rastershader>
    </rasterrenderer>
    <brightnesscontrast brightness="0" contrast="0" gamma="1"/>
    <huesaturation saturation="0" grayscaleMode="0" colorizeOn="0"/>
    <rasterresampler maxOversampling="2"/>
    <resamplingStage>resamplingFilter</resamplingStage>
  </pipe>
  <blendMode>0</blendMode>
</qgis>
"""  # noqa: E501
    with disk_errors(path):
        path.write_text(text, encoding="utf-8")


IN_RANGE, OUTSIDE = "#2a3670", "#e9e8e0"
"""Colours of the places inside and outside a range; the first is near the dark end of the ramp."""


def write_range_qml(path: Path, rule: str) -> None:
    """Write a QGIS 3 style of a raster of 1 (in the range, by `rule`) and 0. Raises OutputError."""
    labels = {1: (IN_RANGE, f"Range ({rule})"), 0: (OUTSIDE, "Outside the range")}
    entries = "\n".join(
        f'        <paletteEntry value="{value}" color="{colour}" alpha="255" label={_attribute(label)}/>'
        for value, (colour, label) in labels.items()
    )
    text = f"""<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="AllStyleCategories" maxScale="0" minScale="1e+08" hasScaleBasedVisibilityFlag="0">
  <pipe>
    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">
      <rasterTransparency/>
      <colorPalette>
{entries}
      </colorPalette>
    </rasterrenderer>
  </pipe>
  <blendMode>0</blendMode>
</qgis>
"""
    with disk_errors(path):
        path.write_text(text, encoding="utf-8")


def _attribute(value: object) -> str:
    return quoteattr(f"{value:.12g}" if isinstance(value, float) else str(value))


def _hex(colour: npt.NDArray[np.uint8]) -> str:
    return "#" + bytes(colour).hex()


def _rgba(colour: npt.NDArray[np.uint8]) -> str:
    return ",".join(str(channel) for channel in (*colour, 255))
