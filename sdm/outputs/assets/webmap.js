
/* Layers and controls of the map page. Texts enter the page through textContent only. */
"use strict";

function sdmPane(map, name, level) {
  var pane = map.createPane(name);
  pane.style.zIndex = level;
  pane.style.pointerEvents = "none";
  return name;
}

/* Areas under the map (the pane of the map itself has level 400). */
function sdmLand(map, shapes) {
  return L.geoJSON(shapes, {
    pane: sdmPane(map, "sdm-land", 210), interactive: false, smoothFactor: 0.5,
    style: { stroke: false, fill: true, fillColor: "#f7f6f2", fillOpacity: 1 }
  });
}

/* Coasts and borders over the map. */
function sdmBorders(map, shapes) {
  return L.geoJSON(shapes, {
    pane: sdmPane(map, "sdm-borders", 450), interactive: false, smoothFactor: 0.5,
    style: { color: "#3c4653", weight: 0.7, opacity: 0.75, fill: false }
  });
}

/* The outline of a range over the map: dark on a light halo, seen on both ends of the ramp. */
function sdmOutline(map, shapes) {
  var pane = sdmPane(map, "sdm-outline", 440);
  var lines = function (color, weight) {
    return L.geoJSON(shapes, {
      pane: pane, interactive: false, smoothFactor: 0.5,
      style: { color: color, weight: weight, opacity: 0.95, fill: false }
    });
  };
  return L.layerGroup([lines("#ffffff", 3.4), lines("#c2185b", 1.6)]);
}

function sdmElement(parent, tag, className, text) {
  var element = L.DomUtil.create(tag, className || "", parent);
  if (text !== undefined) { element.textContent = text; }
  return element;
}

/* A function (latitude, longitude) -> value: null where not modelled, undefined off the map. */
function sdmReader(picture, config) {
  var south = config.bounds[0][0], west = config.bounds[0][1];
  var north = config.bounds[1][0], east = config.bounds[1][1];
  var mercator = function (latitude) { return Math.asinh(Math.tan(latitude * Math.PI / 180)); };
  var pixels = null, level = null;

  function load() {
    var image = picture.getElement(), canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    var context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    level = new Map();
    for (var index = config.steps; index > 0; index--) { level.set(config.palette[index], index); }
  }

  /* Browsers that prevent fingerprinting change colours slightly: use the nearest. */
  function nearest(red, green, blue) {
    var best = 1, least = Infinity;
    for (var index = 1; index <= config.steps; index++) {
      var colour = config.palette[index];
      var dr = (colour >> 16) - red, dg = (colour >> 8 & 255) - green, db = (colour & 255) - blue;
      var distance = dr * dr + dg * dg + db * db;
      if (distance < least) { least = distance; best = index; }
    }
    return best;
  }

  return function (latitude, longitude) {
    longitude = west + ((longitude - west) % 360 + 360) % 360;
    if (!(latitude >= south && latitude <= north && longitude <= east)) { return undefined; }
    if (!pixels) { load(); }
    var across = (longitude - west) / (east - west);
    var down = (mercator(north) - mercator(latitude)) / (mercator(north) - mercator(south));
    var column = Math.min(pixels.width - 1, Math.floor(across * pixels.width));
    var row = Math.min(pixels.height - 1, Math.floor(down * pixels.height));
    var at = 4 * (row * pixels.width + column), data = pixels.data;
    if (data[at + 3] < 128) { return null; }
    var step = level.get(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
    if (step === undefined) { step = nearest(data[at], data[at + 1], data[at + 2]); }
    return config.low + (config.high - config.low) * (step - 1) / (config.steps - 1);
  };
}

function sdmLegend(map, picture, config) {
  var control = L.control({ position: "bottomleft" });
  control.onAdd = function () {
    var panel = L.DomUtil.create("details", "sdm-panel");
    panel.open = map.getSize().x > 560;
    sdmElement(panel, "summary", "", config.title);
    sdmElement(panel, "p", "", config.quantity + (config.unit ? " (" + config.unit + ")" : ""));
    var ramp = sdmElement(panel, "div", "sdm-ramp");
    ramp.style.background = "linear-gradient(to right, " + config.ramp.join(", ") + ")";
    var ticks = sdmElement(panel, "div", "sdm-ticks");
    config.ticks.forEach(function (text, index) {
      sdmElement(ticks, "span", "", text).style.left = 100 * index / (config.ticks.length - 1) + "%";
    });
    var none = sdmElement(panel, "div", "sdm-row");
    sdmElement(none, "span", "sdm-none");
    sdmElement(none, "span", "", "not modelled (transparent)");
    if (picture) {
      var row = sdmElement(panel, "label", "sdm-row sdm-opacity");
      sdmElement(row, "span", "", "Opacity");
      var slider = sdmElement(row, "input");
      slider.type = "range";
      slider.min = 0;
      slider.max = 100;
      slider.value = Math.round(100 * picture.options.opacity);
      L.DomEvent.on(slider, "input", function () { picture.setOpacity(slider.value / 100); });
    }
    if (config.links.length) {
      var list = sdmElement(panel, "div", "sdm-row sdm-links");
      sdmElement(list, "span", "", "Data:");
      config.links.forEach(function (link) {
        var anchor = sdmElement(list, "a", "", link[0]);
        anchor.href = link[1];
        anchor.rel = "noopener";
      });
    }
    L.DomEvent.disableClickPropagation(panel);
    L.DomEvent.disableScrollPropagation(panel);
    return panel;
  };
  control.addTo(map);
}

function sdmControls(map, picture, config) {
  map.attributionControl.setPrefix('<a href="https://leafletjs.com">Leaflet</a>');
  map.fitBounds(config.bounds, { animate: false, padding: [12, 12] });
  map.setMaxBounds(config.window);
  map.setMinZoom(Math.min(map.getZoom(), map.getBoundsZoom(config.window, true)));
  sdmLegend(map, picture, config);

  /* Enlarged pixels are drawn as squares; reduced ones may be averaged by the browser. */
  function sharpen() {
    var image = picture && picture.getElement();
    if (!image) { return; }
    var enlarged = parseFloat(image.style.width) > 1.5 * image.naturalWidth;
    image.style.imageRendering = enlarged ? "pixelated" : "auto";
  }
  map.on("zoomend viewreset overlayadd", sharpen);
  if (picture) { picture.on("load", sharpen); }
  sharpen();

  var read = picture ? sdmReader(picture, config) : function () { return undefined; };
  map.on("click", function (event) {
    var place = event.latlng.wrap(), box = document.createElement("div");
    box.className = "sdm-popup";
    var shown = picture && map.hasLayer(picture);
    var value = shown ? read(event.latlng.lat, event.latlng.lng) : undefined;
    var text = !shown ? "Map is switched off" : value === undefined ? "Outside the map" : value === null
      ? "Not modelled" : config.name + ": " + value.toFixed(2) + (config.unit ? " " + config.unit : "");
    sdmElement(box, "b", "", text.charAt(0).toUpperCase() + text.slice(1));
    sdmElement(box, "div", "", "Longitude " + place.lng.toFixed(4) + "\u00b0");
    sdmElement(box, "div", "", "Latitude " + place.lat.toFixed(4) + "\u00b0");
    L.popup().setLatLng(event.latlng).setContent(box).openOn(map);
  });
}
