/* The map: land, the image of a species, tiles where that is too coarse, borders, a mark. */

const L = window.L;

/* A canvas at a fixed place on the map, as ImageOverlay is for images. */
const CanvasOverlay = L.ImageOverlay.extend({
  _initImage() {
    const element = this._image = this._url;
    element.classList.add("leaflet-image-layer");
    if (this._zoomAnimated) { element.classList.add("leaflet-zoom-animated"); }
  },
});

/* Tiles of levels, coloured here, so that a new threshold needs no request. */
const LevelLayer = L.GridLayer.extend({
  createTile(coordinates, done) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 256;
    this.options.load(coordinates, canvas).then(() => done(null, canvas), (error) => done(error, canvas));
    return canvas;
  },
});

export class SpeciesMap {
  constructor(element, info) {
    this.info = info;
    const [west, south, east, north] = info.bounds, [left, bottom, right, top] = info.viewport;
    this.bounds = L.latLngBounds([[south, west], [north, east]]);
    const window_ = L.latLngBounds([[bottom, left], [top, right]]);
    this.map = L.map(element, {
      zoomSnap: 0.25, maxBounds: window_, maxBoundsViscosity: 1, worldCopyJump: false, keyboard: true,
      zoomControl: false,
    });
    L.control.zoom({ position: "topright" }).addTo(this.map);
    L.control.scale({ position: "bottomright" }).addTo(this.map);
    this.map.attributionControl.setPrefix('<a href="https://leafletjs.com">Leaflet</a>');
    this.map.on("zoomend", () => this.refine());
    this.fit();
    this.map.setMinZoom(Math.min(this.map.getZoom(), this.map.getBoundsZoom(window_, true)));
    this.map.setMaxZoom(Math.max(12, (info.detail?.last ?? 0) + 3));
    for (const [name, level] of [["land", 210], ["species", 400], ["borders", 450], ["mark", 620]]) {
      const pane = this.map.createPane(name);
      pane.style.zIndex = level;
      pane.style.pointerEvents = "none";
    }
    this.setPalette(info.palette.map(([r, g, b]) => [r, g, b]));
  }

  /* Beside the legend, which covers the lower left, unless that would make the map much smaller. */
  fit() {
    const zoom = (across) => this.map.getBoundsZoom(this.bounds, false, L.point(across, 20));
    const beside = this.map.getSize().x > 760 && zoom(320) >= zoom(20) - 0.25;
    this.map.fitBounds(this.bounds, {
      animate: false, paddingTopLeft: [beside ? 310 : 10, 10], paddingBottomRight: [10, 10],
    });
  }

  drawBase({ land, borders }) {
    this.drawFrame();
    const options = { interactive: false, smoothFactor: 0.5 };
    L.geoJSON(land, {
      ...options, pane: "land", style: { stroke: false, fill: true, fillColor: "#f7f6f2", fillOpacity: 1 },
    }).addTo(this.map);
    L.geoJSON(borders, {
      ...options, pane: "borders", style: { color: "#3c4653", weight: 0.7, opacity: 0.75, fill: false },
    }).addTo(this.map);
  }

  /* The outline of the index. */
  drawFrame() {
    L.rectangle(this.bounds, {
      pane: "borders", interactive: false, fill: false, color: "#3c4653", weight: 1.2, dashArray: "5 4", opacity: 0.8,
    }).addTo(this.map);
  }

  /* A table from level to colour, as the 32-bit numbers of a canvas; level 0 stays transparent. */
  setPalette(colours) {
    this.table = new Uint32Array(256);
    const bytes = new Uint8Array(this.table.buffer);
    colours.forEach(([r, g, b], level) => { if (level) { bytes.set([r, g, b, 255], 4 * level); } });
  }

  paint(canvas, levels) {
    canvas.levels = levels;
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer), table = this.table;
    for (let k = 0; k < pixels.length; k++) { pixels[k] = table[levels[k]]; }
    context.putImageData(image, 0, 0);
  }

  recolour(colours) {
    this.setPalette(colours);
    for (const canvas of this.map.getPane("species").querySelectorAll("canvas")) {
      if (canvas.levels) { this.paint(canvas, canvas.levels); }
    }
  }

  setOpacity(fraction) { this.map.getPane("species").style.opacity = fraction; }

  /** Show a species: levels of the overview image, and `loadTile({z, x, y})`, a promise of those of a tile. */
  show(levels, loadTile) {
    this.clear();
    const canvas = document.createElement("canvas");
    [canvas.height, canvas.width] = this.info.picture;
    this.paint(canvas, levels);
    this.picture = new CanvasOverlay(canvas, this.bounds, { pane: "species" }).addTo(this.map);
    // Enlarged pixels are drawn as squares; reduced ones may be averaged by the browser.
    const sharpen = () => {
      canvas.style.imageRendering = parseFloat(canvas.style.width) > 1.5 * canvas.width ? "pixelated" : "auto";
    };
    this.picture.on("remove", () => this.map.off("zoomend viewreset", sharpen));
    this.map.on("zoomend viewreset", sharpen);
    sharpen();
    if (this.info.detail) {
      const { first, last } = this.info.detail;
      this.tiles = new LevelLayer({
        pane: "species", bounds: this.bounds, minZoom: first, maxNativeZoom: last, maxZoom: 24,
        updateWhenZooming: false, className: "levels",
        load: async (coordinates, element) => this.paint(element, await loadTile(coordinates)),
      });
      // Below complete tiles the coarse image would be visible along every coast.
      const hide = (hidden) => () => { canvas.style.visibility = hidden && this.close() ? "hidden" : "visible"; };
      this.tiles.on("load", hide(true)).on("loading tileerror remove", hide(false));
      this.map.on("zoomstart", this.uncover = hide(false));
      this.refine();
    }
  }

  close() { return this.map.getZoom() >= this.info.detail.zoom; }

  /* Tiles only at zooms where they show more than the image. */
  refine() {
    if (!this.tiles) { return; }
    if (this.close()) { this.tiles.addTo(this.map); } else { this.tiles.remove(); }
  }

  clear() {
    this.picture?.remove();
    this.tiles?.remove();
    if (this.uncover) { this.map.off("zoomstart", this.uncover); }
    this.picture = this.tiles = null;
  }

  mark(lat, lon) {
    this.dot?.remove();
    this.dot = L.circleMarker([lat, lon], {
      pane: "mark", interactive: false, radius: 6, color: "#fff", weight: 2.5, fillColor: "#b3261e", fillOpacity: 1,
    }).addTo(this.map);
  }

  popup(lat, lon, element, move) {
    L.popup({ closeOnClick: false, offset: [0, -4], autoPan: move, autoPanPadding: [12, 12] }).setLatLng([lat, lon]).setContent(element)
      .openOn(this.map);
  }
}
