/* The explorer. Its state is kept in the address of the page. Texts are inserted as text, never as HTML. */

import { SpeciesMap } from "./map.js";
import { searchBox } from "./search.js";

const $ = (id) => document.getElementById(id);
const BELOW = [238, 230, 180]; // colour of the lower of two classes

let info, map, species = null, levels = null, drawing = null, asking = null, following = false;
const view = { species: "", origin: "native", binary: false, threshold: 0.5, opacity: 85, place: null };

/* The server -------------------------------------------------------------------------------------- */

async function ask(path, parameters, signal) {
  const response = await fetch(`api/${path}?${new URLSearchParams(parameters)}`, { signal });
  if (response.ok) { return response; }
  let message = `the server answered ${response.status}.`;
  try { message = (await response.json()).error || message; } catch { /* no JSON: not a message of this server */ }
  throw new Error(message);
}

const json = async (...request) => (await ask(...request)).json();
const bytes = async (...request) => new Uint8Array(await (await ask(...request)).arrayBuffer());

/* Helpers ----------------------------------------------------------------------------------------- */

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) { made.textContent = text; }
  if (className) { made.className = className; }
  return made;
}

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/* 0.9996 must not read as 1, nor 0.0004 as 0. */
function fixed(value) {
  return value > 0 && value < 0.005 ? "< 0.01" : value < 1 && value >= 0.995 ? "> 0.99" : value.toFixed(2);
}

function area(km2) {
  if (km2 === 0) { return "0 km²"; }
  // Three significant figures; the map is not more exact.
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(km2)) - 2);
  return km2 < 1 ? "under 1 km²" : `${(Math.round(km2 / unit) * unit).toLocaleString("en")} km²`;
}

function coordinates(lon, lat) {
  lon = ((lon + 180) % 360 + 360) % 360 - 180;
  return `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(4)}° ${lon < 0 ? "W" : "E"}`;
}

/* "31–51° N", "10° S – 5° N", "170° E – 150° W". */
function span(low, high, minus, plus) {
  const turned = (degrees) => (minus === "W" && Math.abs(degrees) > 180 ? degrees - 360 * Math.sign(degrees) : degrees);
  const [a, b] = [turned(low), turned(high)].map((degrees) => Number(degrees.toFixed(1)));
  const side = (degrees) => (degrees < 0 ? minus : plus);
  return side(a) === side(b) ? `${Math.abs(a)}–${Math.abs(b)}° ${side(a)}`
    : `${Math.abs(a)}° ${side(a)} – ${Math.abs(b)}° ${side(b)}`;
}

function taxon(item, tag = "span") {
  return element(tag, item.name, ["species", "genus"].includes(item.rank) ? "taxon" : "");
}

/* The address ------------------------------------------------------------------------------------- */

function number(text, low, high, otherwise) {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return value >= low && value <= high ? value : otherwise;
}

function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const list = (name) => (said.get(name) ?? "").split(",").map((part) => number(part, -720, 720, NaN));
  const threshold = number(said.get("threshold"), 0, 1, null);
  const [lat, lon, zoom] = list("view"), [placeLat, placeLon] = list("place");
  return {
    species: (said.get("species") ?? "").slice(0, 200),
    origin: said.get("origin") === "all" ? "all" : "native",
    binary: threshold !== null,
    threshold: threshold === null ? 0.5 : Math.min(0.98, Math.max(0.02, Math.round(threshold * 50) / 50)),
    opacity: number(said.get("opacity"), 10, 100, 85),
    view: [lat, lon, zoom].every(Number.isFinite) ? [lat, lon, zoom] : null,
    place: Number.isFinite(placeLat) && Number.isFinite(placeLon) ? [placeLat, placeLon] : null,
  };
}

function writeAddress({ entry = false } = {}) {
  const said = new URLSearchParams();
  if (view.species) { said.set("species", view.species); }
  if (view.origin === "all") { said.set("origin", "all"); }
  const centre = map.map.getCenter();
  said.set("view", [centre.lat.toFixed(4), centre.lng.toFixed(4), map.map.getZoom()].join(","));
  if (view.binary) { said.set("threshold", view.threshold.toFixed(2)); }
  if (view.opacity !== 85) { said.set("opacity", view.opacity); }
  if (view.place) { said.set("place", view.place.map((degrees) => degrees.toFixed(4)).join(",")); }
  const address = `#${said.toString().replaceAll("%2C", ",")}`;
  if (address === location.hash) { return; }
  // The back button returns to the previous species, not to the previous position of the map.
  history[entry ? "pushState" : "replaceState"](null, "", address);
}

async function follow() {
  const said = readAddress();
  Object.assign(view, { binary: said.binary, threshold: said.threshold, opacity: said.opacity });
  view.place = said.place;
  if (said.view) {
    following = true;  // moving the map must not write the old species into the new address
    map.map.setView([said.view[0], said.view[1]], said.view[2], { animate: false });
    following = false;
  }
  showLook();
  if (said.species !== view.species || said.origin !== view.origin) {
    view.origin = said.origin;
    $("origin").checked = view.origin === "all";
    $("query").value = said.species;
    await choose(said.species, false);
  } else if (said.place) {
    await askPlace(...said.place, false);
  }
}

/* A species --------------------------------------------------------------------------------------- */

async function choose(name, entry = true) {
  drawing?.abort();
  const mine = drawing = new AbortController(), origin = view.origin;
  view.species = name;
  if (entry) { writeAddress({ entry: true }); }
  if (!name) {
    species = levels = null;
    map.clear();
    $("species").hidden = $("look").hidden = true;
    say("Type the name of a species.");
    return;
  }
  say(`Mapping ${name}…`);
  $("map").setAttribute("aria-busy", "true");
  try {
    const [found, drawn] = await Promise.all([
      json("species", { name, origin }, mine.signal), bytes("picture", { name, origin }, mine.signal),
    ]);
    species = found;
    levels = drawn;
    showLook();
    map.show(drawn, async ({ z, x, y }) => bytes(`tile/${z}/${x}/${y}`, { name, origin }));
    showSpecies();
    const common = species.common ? `, ${species.common}` : "";
    say(species.highest === null
      ? `No pixel of this index is modelled for ${species.name}.`
      : species.quantity === "probability" ? `Map of ${species.name}${common}: expected area ${area(species.expected_km2)}.`
        : `Map of ${species.name}${common}: ${species.quantity}.`);
    if (view.place) { await askPlace(...view.place, false); }
  } catch (error) {
    if (error.name === "AbortError") { return; }
    say(sentence(error.message), true);
    if (view.species === name) {  // the map still shows the previous species, and so must the address
      view.species = species?.query ?? "";
      writeAddress();
    }
  } finally {
    if (mine === drawing) { $("map").removeAttribute("aria-busy"); }
  }
}

function showSpecies() {
  $("species").hidden = $("look").hidden = false;
  document.title = `${species.name} – species explorer`;
  $("species-name").textContent = species.name;
  $("species-name").className = ["species", "genus"].includes(species.rank) ? "taxon" : "";
  const how = species.how === "scientific name" ? "" : `found by ${species.how}`;
  $("species-common").textContent =
    [species.rank === "species" ? "" : species.rank, species.common, how].filter(Boolean).join(" · ");
  $("species-notes").replaceChildren(...species.notes.map((note) => element("li", note)));
  $("legend-title").textContent = sentence(species.quantity + (info.season && ` ${info.season}`));
  $("meaning").textContent = species.meaning;
  $("expected-row").hidden = species.quantity !== "probability";
  $("expected").textContent = area(species.expected_km2);
  $("modelled").textContent = area(species.modelled_km2);
}

/* A file of records ------------------------------------------------------------------------------- */

async function drop(file) {
  say(`Fitting to ${file.name}…`);
  $("map").setAttribute("aria-busy", "true");
  try {
    const response = await fetch(`api/drop?${new URLSearchParams({ file: file.name })}`, {
      method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file,
    });
    const answer = await response.json();
    if (!response.ok) { throw new Error(answer.error || `the server answered ${response.status}.`); }
    $("dropped").hidden = false;
    $("dropped").replaceChildren(`From ${file.name}: `, ...answer.flatMap((one, k) => {
      const button = element("button", one.name, "link");
      button.type = "button";
      button.addEventListener("click", () => {
        $("query").value = "";
        choose(one.query);
      });
      return k ? [", ", button] : [button];
    }));
    $("query").value = "";
    await choose(answer[0].query);
  } catch (error) {
    say(sentence(error.message), true);
  } finally {
    $("map").removeAttribute("aria-busy");
    document.body.classList.remove("dropping");
  }
}

function listenForFiles() {
  const over = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) { return; }
    event.preventDefault();
    document.body.classList.add("dropping");
  };
  document.addEventListener("dragenter", over);
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) { document.body.classList.remove("dropping"); }
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer?.files.length) { drop(event.dataTransfer.files[0]); }
  });
  $("file").addEventListener("change", (event) => {
    if (event.target.files.length) { drop(event.target.files[0]); }
    event.target.value = "";
  });
}

/* How it looks ------------------------------------------------------------------------------------ */

const steps = () => info.steps - 1;
const cut = () => 1 + Math.round(view.threshold * steps());

function showLook() {
  const low = info.range[0], width = info.range[1] - low;
  const value = (low + width * view.threshold).toFixed(2);
  $("binary").checked = view.binary;
  $("threshold").value = view.threshold;
  $("threshold").disabled = !view.binary;
  $("threshold-value").textContent = value;
  $("threshold").setAttribute("aria-valuetext", `${info.quantity} ${value}`);
  $("opacity").value = view.opacity;
  $("opacity-value").textContent = `${view.opacity} %`;
  $("legend").hidden = view.binary;
  $("classes").hidden = !view.binary;
  $("class-above").textContent = `${value} or more`;
  $("class-below").textContent = `less than ${value}`;
  const colours = colouring();
  $("swatch-above").style.backgroundColor = `rgb(${colours[info.steps].join(" ")})`;
  $("swatch-below").style.backgroundColor = `rgb(${BELOW.join(" ")})`;
  map.recolour(colours);
  map.setOpacity(view.opacity / 100);
  $("above-row").hidden = !view.binary;
  if (view.binary && levels) {
    $("above-label").textContent = `Area at ${value} or more`;
    $("above").textContent = area(areaAbove());
  }
}

function colouring() {
  if (!view.binary) { return info.palette; }
  const above = info.palette[Math.round(0.82 * info.steps)];
  return info.palette.map((_, level) => (level >= cut() ? above : BELOW));
}

function areaAbove() {
  const [rows, columns] = info.picture, least = cut();
  let total = 0;
  for (let row = 0, at = 0; row < rows; row++) {
    let count = 0;
    for (const end = at + columns; at < end; at++) { if (levels[at] >= least) { count++; } }
    total += count * info.row_km2[row];
  }
  return total;
}

async function download() {
  const { name, file } = species, button = $("download");
  button.disabled = true;
  say(`Writing ${file}…`);
  try {
    const blob = await (await ask("download", { name: species.query, origin: species.origin })).blob();
    const link = element("a");
    link.href = URL.createObjectURL(blob);
    link.download = file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`${file} of ${name}: ${(blob.size / 1e6).toFixed(1)} MB.`);
  } catch (error) {
    say(sentence(error.message), true);
  } finally {
    button.disabled = false;
  }
}

/* A place ----------------------------------------------------------------------------------------- */

async function askPlace(lat, lon, remember = true) {
  asking?.abort();
  const mine = asking = new AbortController();
  view.place = [lat, lon];
  if (remember) { writeAddress(); }
  map.mark(lat, lon);
  try {
    const name = species?.query ?? "";
    const answer = await json("place", { lon, lat, origin: view.origin, ...(name && { name }) }, mine.signal);
    showPlace(answer, lat, lon, remember);
  } catch (error) {
    if (error.name !== "AbortError") { say(sentence(error.message), true); }
  }
}

function verdict(answer) {
  if (!answer.inside) { return "Outside the index"; }
  if (!answer.modelled) { return "Not modelled"; }
  if (!answer.species) { return ""; }
  const { value, name, mask } = answer.species;
  return value === null ? `Not modelled for ${name}${mask === "none" ? "" : `, mapped on ${mask} only`}`
    : `${sentence(answer.species.quantity)} of ${name}: ${fixed(value)}`;
}

function showPlace(answer, lat, lon, asked) {
  $("place-answer").hidden = false;
  $("place-where").textContent = coordinates(lon, lat);
  const text = verdict(answer);
  $("place-value").textContent = text;
  const box = element("div", undefined, "popup");
  box.append(element("b", text || "Most likely here: see the list"), element("div", coordinates(lon, lat)));
  map.popup(lat, lon, box, asked);
  const trust = (answer.species?.trust ?? []).map(({ name: band, value, unit, caution }) => {
    const amount = unit === "percent" ? `${value.toFixed(0)} %` : value.toFixed(2);
    return element("li", `${sentence(band)} ${amount}${caution && `: ${caution}`}`, caution ? "caution" : "");
  });
  $("place-trust").replaceChildren(...trust);
  showParts(answer.species);
  const top = answer.top ?? [];
  $("top-block").hidden = !answer.modelled;
  $("top").replaceChildren(...top.map((item) => {
    const row = element("li"), button = element("button");
    button.type = "button";
    button.append(taxon(item), element("span", item.common, "about"), element("span", fixed(item.value), "value"));
    const bar = element("span", undefined, "bar");
    bar.style.width = `${100 * Math.max(0, item.value)}%`;
    button.append(bar);
    if (species && item.name === species.name) { button.setAttribute("aria-current", "true"); }
    button.addEventListener("click", () => {
      $("query").value = item.name;
      choose(item.name);
    });
    row.append(button);
    return row;
  }));
  if (text && asked) { say(`${text}.`); }
}

/* Signed bars: a modality may also lower the cosine. */
function showParts(said) {
  const parts = said && said.value !== null ? said.parts : [];
  $("parts-block").hidden = !parts.length;
  if (!parts.length) { return; }
  const sum = parts.reduce((total, part) => total + part.cosine, 0);
  const most = Math.max(...parts.map((part) => Math.abs(part.cosine)));
  const agree = parts.every((part) => part.cosine >= 0) && sum > 0;
  $("parts").replaceChildren(...parts.map((part) => {
    const row = element("li"), track = element("span", undefined, "track"), bar = element("span", undefined, "bar");
    bar.classList.toggle("against", part.cosine < 0);
    bar.style.width = `${(100 * Math.abs(part.cosine)) / (most || 1)}%`;
    track.append(bar);
    const share = agree ? `${Math.round((100 * part.cosine) / sum)} %` : "";
    const amount = `${part.cosine < 0 ? "−" : "+"}${Math.abs(part.cosine).toFixed(3)}`;
    row.append(element("span", part.modality), track, element("span", amount, "value"), element("span", share, "value"));
    return row;
  }));
  $("parts-note").textContent =
    `Cosine between place and species: ${said.cosine.toFixed(3)}, the sum of these.${agree ? "" : " A value below zero counts against the species."}`;
}

/* Start ------------------------------------------------------------------------------------------- */

function describeIndex() {
  const { grid, model } = info;
  const [west, south, east, north] = info.bounds;
  const unit = grid.degrees ? "°" : " (units of its CRS)";
  $("index-title").textContent =
    `${span(south, north, "S", "N")}, ${span(west, east, "W", "E")}; pixels of ${grid.resolution}${unit}; model ${model.name}${info.season && `, ${info.season}`}`;
  $("origin-row").hidden = !model.introduced;
  $("legend-title").textContent = sentence(info.quantity + (info.season && ` ${info.season}`));
  $("ramp").style.background = `linear-gradient(to right, ${info.ramp.join(", ")})`;
  const [low, high] = info.range;
  $("ticks").replaceChildren(...[0, 0.25, 0.5, 0.75, 1].map((at) => element("span", String(low + at * (high - low)))));
  $("meaning").textContent = info.meaning;
  const line = (text) => element("p", text);
  $("about-text").replaceChildren(
    line(`Model: ${model.name}, version ${model.version}, ${model.licence}. ${model.title}; ${model.species.toLocaleString("en")} species. Hash ${model.digest}.`),
    line(`Index: ${grid.columns.toLocaleString("en")} × ${grid.rows.toLocaleString("en")} pixels, ${grid.crs}, resolution ${grid.resolution}; ${info.modalities.join(", ")}; ${info.mask === "none" ? "land and sea" : `${info.mask} only`}. Hash ${info.digest}.`),
    line(`Stored as ${info.encoding}: this changed probabilities by ${Number(info.exactness.mean.toPrecision(2))} on average, at most ${Number(info.exactness.largest.toPrecision(2))}, in a sample of its pixels and species.`),
    ...info.credits.map(line),
    line(`taxabind-map ${info.version}. Map library: Leaflet.`),
  );
}

function listen() {
  listenForFiles();
  searchBox({
    form: $("search"), input: $("query"), list: $("suggestions"),
    suggest: (text, signal) => json("suggest", { q: text }, signal), choose,
  });
  const look = (change) => (event) => {
    change(event.target);
    showLook();
    writeAddress();
  };
  $("binary").addEventListener("change", look((input) => { view.binary = input.checked; }));
  $("threshold").addEventListener("input", look((input) => { view.threshold = Number(input.value); }));
  $("origin").addEventListener("change", async () => {
    view.origin = $("origin").checked ? "all" : "native";
    if (view.species) {
      await choose(view.species);
    } else {
      writeAddress();
      if (view.place) { await askPlace(...view.place, false); }
    }
  });
  $("opacity").addEventListener("input", look((input) => { view.opacity = Number(input.value); }));
  $("download").addEventListener("click", download);
  const centre = () => {
    const { lat, lng } = map.map.getCenter();
    askPlace(lat, lng);
  };
  $("centre").addEventListener("click", centre);
  $("map").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === $("map")) { centre(); }
  });
  map.map.on("click", (event) => askPlace(event.latlng.lat, event.latlng.lng));
  map.map.on("moveend", () => { if (!following) { writeAddress(); } });
  window.addEventListener("popstate", follow);  // back, forward, or an address typed by hand
}

async function start() {
  try {
    info = await json("index", {});
    map = new SpeciesMap($("map"), info);
    window.explorerMap = map.map; // for the console
    describeIndex();
    const base = json("basemap", {}).then((shapes) => map.drawBase(shapes));
    $("query").disabled = false;
    say("Type the name of a species.");
    await Promise.all([base, follow()]);
    listen();
    if (!view.species) { $("query").focus(); }
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    say(sentence(error.message), true);
  }
}

start();
