
/* Hatching over the map where it is little to be trusted. Texts enter the page through textContent only. */
"use strict";

/* An element as large as the map, filled with lines of constant width and cut out by the mask. */
function sdmHatch(map, config) {
  var nothing = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
  var layer = L.imageOverlay(nothing, config.bounds, {
    pane: sdmPane(map, "sdm-hatch", 430), interactive: false, className: "sdm-hatch", alt: ""
  });
  layer.sdmConfig = config;
  layer.on("add", function () {
    var style = layer.getElement().style, url = "url(" + config.mask + ")";
    style.webkitMaskImage = url;
    style.maskImage = url;
    if (!style.maskImage && !style.webkitMaskImage) { style.display = "none"; }
  });
  return layer;
}

function sdmHatchLegend(map, layer) {
  var config = layer.sdmConfig;
  var south = config.bounds[0][0], west = config.bounds[0][1];
  var north = config.bounds[1][0], east = config.bounds[1][1];
  var mask = new Image(), pixels = null;
  var mercator = function (latitude) { return Math.asinh(Math.tan(latitude * Math.PI / 180)); };
  mask.src = config.mask;

  /* The bits at a place; 0 where nothing is hatched. */
  function bits(latitude, longitude) {
    longitude = west + ((longitude - west) % 360 + 360) % 360;
    if (!(latitude >= south && latitude <= north && longitude <= east) || !mask.naturalWidth) { return 0; }
    if (!pixels) {
      var canvas = document.createElement("canvas");
      canvas.width = mask.naturalWidth;
      canvas.height = mask.naturalHeight;
      var context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(mask, 0, 0);
      pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    }
    var across = (longitude - west) / (east - west);
    var down = (mercator(north) - mercator(latitude)) / (mercator(north) - mercator(south));
    var column = Math.min(pixels.width - 1, Math.floor(across * pixels.width));
    var row = Math.min(pixels.height - 1, Math.floor(down * pixels.height));
    return pixels.data[4 * (row * pixels.width + column)];
  }

  var none = document.querySelector(".sdm-panel .sdm-none");
  if (none) {
    var row = document.createElement("div");
    row.className = "sdm-row sdm-hatched";
    sdmElement(row, "span");
    var text = sdmElement(row, "div");
    sdmElement(text, "span", "", config.reasons.length > 1 ? "low trust, for either reason:" : "low trust:");
    var list = sdmElement(text, "ul");
    config.reasons.forEach(function (reason) { sdmElement(list, "li", "", reason); });
    none.parentNode.parentNode.insertBefore(row, none.parentNode.nextSibling);
  }
  map.on("popupopen", function (event) {
    var box = event.popup.getContent(), place = event.popup.getLatLng();
    if (!map.hasLayer(layer) || !box.appendChild) { return; }
    var set = bits(place.lat, place.lng);
    config.reasons.forEach(function (reason, index) {
      if (set >> index & 1) { sdmElement(box, "div", "sdm-caution", "Low trust: " + reason); }
    });
    event.popup.update();
  });
}
