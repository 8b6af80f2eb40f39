/* The map: points in Plotly, faces out of the sprite sheets, search, and a face's neighbours.
   Text from the data only ever enters through textContent, or `plain` where Plotly reads it. */

const MAP = PAGE.map;
const GLYPHS = { 2: "●■◆▲▼✚✖★", 3: "●■◆✚✖○□◇" };
const SYMBOLS = {
  2: ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"],
  3: ["circle", "square", "diamond", "cross", "x", "circle-open", "square-open", "diamond-open"],
};
const TONES = ["blue", "vermilion", "green", "gold", "purple", "sky", "indigo", "brown"];
const $ = (id) => document.getElementById(id);
const state = { method: "t-SNE", dimensions: 2, tint: "people", chosen: [], face: null };

const facesOf = MAP.people.map(() => []);
MAP.labels.forEach((person, face) => facesOf[person].push(face));
const largest = MAP.people.map((_, person) => person)
  .filter((person) => facesOf[person].length > 1)
  .sort((a, b) => facesOf[b].length - facesOf[a].length || a - b);

const nameOf = (face) => MAP.people[MAP.labels[face]];
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function neighbours(face) {
  const near = [];
  for (let k = 0; k < MAP.near.count; k++) {
    const at = face * MAP.near.count + k;
    const other = MAP.near.index[at];
    near.push({
      face: other,
      similarity: MAP.near.similarity[at] / 1000,
      right: MAP.labels[other] === MAP.labels[face],
    });
  }
  return near;
}

/* "right", "wrong", or "alone": a person with one face has no mate in the gallery. */
function verdict(face) {
  if (facesOf[MAP.labels[face]].length < 2) return "alone";
  return neighbours(face)[0].right ? "right" : "wrong";
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function thumbnail(face, label) {
  const { prefix, perSheet, columns, rows } = MAP.faces;
  const place = face % perSheet;
  const node = element("span", {
    class: `face ${prefix}-${Math.floor(face / perSheet)}`,
    ...(label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" }),
  });
  const share = (at, n) => `${(100 * at) / Math.max(n - 1, 1)}%`;
  node.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  node.style.backgroundPosition =
    `${share(place % columns, columns)} ${share(Math.floor(place / columns), rows)}`;
  return node;
}

/* Points */

function groups() {
  const all = MAP.labels.map((_, face) => face);
  const symbols = SYMBOLS[state.dimensions];
  const glyphs = GLYPHS[state.dimensions];
  const people = state.chosen.length ? state.chosen : largest.slice(0, 8);
  if (state.tint === "verdict" && !state.chosen.length) {
    return ["alone", "right", "wrong"].map((kind, n) => ({
      faces: all.filter((face) => verdict(face) === kind),
      name: { alone: "no mate", right: "nearest is right", wrong: "nearest is wrong" }[kind],
      tone: ["faint", "blue", "vermilion"][n],
      symbol: symbols[[0, 0, symbols.indexOf("x")][n]],
      glyph: glyphs[[0, 0, symbols.indexOf("x")][n]],
      size: [4, 6, 7][n],
      opacity: [0.6, 0.75, 0.9][n],
    }));
  }
  const shown = new Set(people);
  const rest = {
    faces: all.filter((face) => !shown.has(MAP.labels[face])),
    name: people.length ? "everybody else" : "people with one face",
    tone: "faint", symbol: "circle", glyph: "●", size: 5,
    opacity: state.chosen.length ? 0.35 : 0.6,
  };
  return [rest, ...people.map((person, n) => ({
    faces: facesOf[person],
    person,
    name: MAP.people[person],
    tone: TONES[n % 8], symbol: symbols[n % 8], glyph: glyphs[n % 8],
    size: state.chosen.length ? 11 : 8,
    opacity: 1,
  }))].filter((group) => group.faces.length);
}

const view = () =>
  MAP.views.find((v) => v.method === state.method && v.dimensions === state.dimensions);

function coordinates(faces) {
  const [x, y, z] = view().points.map((axis) =>
    faces.map((face) => (face === null ? null : axis[face])));
  return state.dimensions === 3 ? { type: "scatter3d", x, y, z } : { type: "scatter", x, y };
}

function pointTrace(group) {
  return {
    ...coordinates(group.faces),
    customdata: group.faces,
    mode: "markers",
    hoverinfo: "none",
    marker: {
      color: colour(group.tone), symbol: group.symbol, opacity: group.opacity,
      size: group.size * (state.dimensions === 3 ? 0.62 : 1) * (drawnWidth < 480 ? 0.75 : 1),
      line: { width: group.size > 7 ? 1 : 0, color: colour("ground") },
    },
  };
}

function selectionTraces() {
  if (state.face === null) return [];
  const near = neighbours(state.face);
  const lines = [true, false].map((right) => ({
    ...coordinates(near.filter((n) => n.right === right).flatMap((n) => [state.face, n.face, null])),
    mode: "lines", hoverinfo: "skip",
    line: {
      color: colour(right ? "blue" : "vermilion"),
      width: state.dimensions === 3 ? 4 : 1.5, dash: right ? "solid" : "dot",
    },
  }));
  const ends = {
    ...coordinates(near.map((n) => n.face)), customdata: near.map((n) => n.face),
    mode: "markers", hoverinfo: "none",
    marker: {
      color: near.map((n) => colour(n.right ? "blue" : "vermilion")),
      symbol: near.map((n) => (n.right ? "circle" : "x")), size: state.dimensions === 3 ? 5 : 9,
    },
  };
  const ring = {
    ...coordinates([state.face]), customdata: [state.face], mode: "markers", hoverinfo: "none",
    marker: {
      symbol: "circle-open", color: colour("ink"),
      size: state.dimensions === 3 ? 12 : 17, line: { width: 2.5 },
    },
  };
  return [...lines.filter((line) => line.x.length), ends, ring];
}

function mapAxis(title) {
  return {
    title: { text: title, font: { size: 12, color: colour("muted") }, standoff: 4 },
    showticklabels: false, ticks: "", zeroline: false, showline: false,
    gridcolor: colour("line"), showspikes: false, backgroundcolor: colour("ground"),
  };
}

function mapLayout(width) {
  const titles = view().axes;
  const layout = {
    template: {}, width, height: Math.round(Math.min(Math.max(width * 0.78, 320), 660)),
    margin: { l: 26, r: 10, t: 10, b: 26 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("muted") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("ink") },
    showlegend: false, hovermode: "closest", hoverdistance: 14, dragmode: "zoom",
    uirevision: state.method + state.dimensions,
  };
  if (state.dimensions === 3) {
    const [xaxis, yaxis, zaxis] = titles.map(mapAxis);
    layout.scene = { xaxis, yaxis, zaxis, dragmode: "turntable", uirevision: layout.uirevision };
    layout.margin = { l: 0, r: 0, t: 0, b: 0 };
  } else {
    layout.xaxis = mapAxis(titles[0]);
    layout.yaxis = { ...mapAxis(titles[1]), scaleanchor: "x" };
  }
  return layout;
}

let drawnWidth = 0;
async function drawMap() {
  const node = $("map");
  drawnWidth = node.clientWidth;
  if (!drawnWidth) return;
  const found = groups();
  const layout = mapLayout(drawnWidth);
  // A marker of two kinds of subplot at once confuses Plotly's clean-up: start afresh.
  if (node._dimensions && node._dimensions !== state.dimensions) Plotly.purge(node);
  const fresh = node._dimensions !== state.dimensions;
  node._dimensions = state.dimensions;
  node.style.height = layout.height + "px";
  const buttons = state.dimensions === 3
    ? ["tableRotation", "orbitRotation", "pan3d", "zoom3d", "resetCameraDefault3d"]
    : ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"];
  const traces = [...found.map(pointTrace), ...selectionTraces()];
  await Plotly.react(node, traces, layout, config(...buttons));
  if (fresh) {
    node.on("plotly_hover", (event) => showTip(event.points[0].customdata));
    node.on("plotly_unhover", hideTip);
    node.on("plotly_click", (event) => selectFace(event.points[0].customdata));
  }
  drawLegend(found);
  $("map-note").textContent = view().note;
}

function drawLegend(found) {
  $("map-legend").replaceChildren(...found.filter((group) => group.name).map((group) => {
    const glyph = element("span", { class: "glyph", "aria-hidden": "true" }, group.glyph);
    glyph.style.color = colour(group.tone);
    const parts = [glyph, group.name, element("span", { class: "count" }, String(group.faces.length))];
    const fixed = group.person === undefined;
    return element("li", {}, fixed
      ? element("span", { class: "key" }, ...parts)
      : element("button", { type: "button", onclick: () => toggle(group.person) }, ...parts));
  }));
}

/* Hover */

const pointer = { x: 0, y: 0 };
function showTip(face) {
  if (face === undefined) return;
  const tip = $("tip");
  const kind = verdict(face);
  const nearest = neighbours(face)[0];
  const said = kind === "alone"
    ? element("span", {}, "only face of this person")
    : element("span", { class: kind }, kind === "right"
      ? `nearest is right, ${nearest.similarity.toFixed(3)}`
      : `nearest is ${nameOf(nearest.face)}, ${nearest.similarity.toFixed(3)}`);
  tip.replaceChildren(thumbnail(face), element("strong", {}, nameOf(face)), said);
  tip.dataset.face = face;
  tip.classList.remove("hidden");
  placeTip();
}

function placeTip() {
  const tip = $("tip");
  const { offsetWidth: width, offsetHeight: height } = tip;
  const right = pointer.x + 18 + width < innerWidth;
  tip.style.left = `${Math.max(right ? pointer.x + 18 : pointer.x - 18 - width, 4)}px`;
  tip.style.top = `${Math.min(Math.max(pointer.y - height / 2, 4), innerHeight - height - 4)}px`;
}

const hideTip = () => $("tip").classList.add("hidden");

/* Faces and people */

function faceButton(face, label, ...children) {
  return element("button", {
    type: "button", "aria-label": label, "data-face": face, title: label,
    ...(face === state.face ? { "aria-current": "true" } : {}),
    onclick: () => selectFace(face),
  }, thumbnail(face), ...children);
}

function neighbourItem({ face, similarity, right }) {
  const mark = right ? "✓" : "✗";
  const label = `${nameOf(face)}, similarity ${similarity.toFixed(3)}, ${right ? "right" : "wrong"}`;
  return element("li", { class: right ? "right-face" : "wrong-face" }, faceButton(face, label,
    element("span", { class: "score" }, similarity.toFixed(3),
      element("span", { class: right ? "right" : "wrong" }, mark)),
    element("span", { class: "who" }, nameOf(face))));
}

function selectFace(face) {
  if (face === undefined || face === null) return;
  const inside = $("detail").contains(document.activeElement);
  state.face = face;
  drawDetail();
  drawPeople();
  drawMap();
  if (inside) $("detail").querySelector("h3").focus();
}

function drawDetail() {
  const face = state.face;
  if (face === null) return drawHint();
  const near = neighbours(face);
  const mates = facesOf[MAP.labels[face]].length - 1;
  const hits = near.filter((n) => n.right).length;
  const said = mates
    ? `${hits} of the ${near.length} nearest show this person, who has ${count(mates, "other face")} here.`
    : "The only face of this person here: every neighbour must be wrong.";
  const person = element("button", { type: "button", class: "link", onclick: () => toggle(MAP.labels[face]) },
    state.chosen.includes(MAP.labels[face]) ? "Remove highlight" : "Highlight this person");
  const heading = element("h3", { tabindex: "-1" }, nameOf(face));
  $("detail").replaceChildren(
    element("div", { class: "person" }, thumbnail(face, nameOf(face)),
      element("div", {}, heading, element("p", {}, said), person)),
    element("h3", {}, "Nearest neighbours"),
    element("p", { class: "note" }, "Cosine similarity; ✓ the same person, ✗ somebody else."),
    element("ul", { class: "faces near" }, ...near.map(neighbourItem)));
}

function drawHint() {
  const wrong = MAP.labels.map((_, face) => face).filter((face) => verdict(face) === "wrong")
    .sort((a, b) => neighbours(b)[0].similarity - neighbours(a)[0].similarity).slice(0, 8);
  const items = wrong.map((face) =>
    element("li", {}, faceButton(face, `${nameOf(face)}, taken for ${nameOf(neighbours(face)[0].face)}`,
      element("span", { class: "who" }, nameOf(face)))));
  $("detail").replaceChildren(
    element("p", { class: "note" }, "Point at the map to see a face; click one for its nearest neighbours."),
    ...(items.length ? [element("h3", { class: "gap" }, "Most surely wrong"),
      element("p", { class: "note" }, "Faces very similar to somebody else."),
      element("ul", { class: "faces near" }, ...items)] : []));
}

function drawPeople() {
  const found = groups();
  $("chosen").replaceChildren(...state.chosen.map((person) => {
    const group = found.find((g) => g.person === person);
    const glyph = element("span", { class: "glyph", "aria-hidden": "true" }, group.glyph);
    glyph.style.color = colour(group.tone);
    return element("li", {}, element("button", {
      type: "button", "aria-label": `Remove ${MAP.people[person]}`, onclick: () => toggle(person),
    }, glyph, MAP.people[person]));
  }));
  const faces = state.chosen.flatMap((person) => facesOf[person]).slice(0, 60);
  $("people-faces").replaceChildren(...(faces.length ? [element("ul", { class: "faces" },
    ...faces.map((face, n) => element("li", {}, faceButton(face, `${nameOf(face)}, face ${n + 1}`))))] : []));
}

function toggle(person) {
  const at = state.chosen.indexOf(person);
  if (at >= 0) state.chosen.splice(at, 1);
  else state.chosen = [...state.chosen, person].slice(-8);
  drawPeople();
  drawDetail();
  drawMap();
}

/* Search: a combobox after the ARIA authoring practices */

const fold = (text) =>
  text.normalize("NFD").replace(/[\u0300-\u036f]/g, "").replace(/_/g, " ").toLowerCase();
const folded = MAP.people.map(fold);
let active = -1;

function matches(text) {
  const words = fold(text).split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  return folded.map((name, person) => ({ name, person }))
    .filter(({ name, person }) => facesOf[person].length && words.every((word) => name.includes(word)))
    .sort((a, b) => b.name.startsWith(words[0]) - a.name.startsWith(words[0])
      || facesOf[b.person].length - facesOf[a.person].length || a.name.localeCompare(b.name))
    .slice(0, 40).map(({ person }) => person);
}

function openMatches() {
  const found = matches($("search").value);
  active = found.length ? 0 : -1;
  const items = found.map((person, n) => element("li", {
    role: "option", id: `match-${n}`, "data-person": person,
    class: state.chosen.includes(person) ? "on" : "",
    onmousedown: (event) => { event.preventDefault(); pick(person); },
  }, element("span", {}, MAP.people[person]),
  element("span", { class: "count" }, count(facesOf[person].length, "face"))));
  if (!items.length) items.push(element("li", { class: "none" }, "Nobody of that name here"));
  $("matches").replaceChildren(...items);
  showMatches($("search").value.trim() !== "");
  mark();
}

function showMatches(open) {
  $("matches").classList.toggle("hidden", !open);
  $("search").setAttribute("aria-expanded", String(open));
  if (!open) $("search").removeAttribute("aria-activedescendant");
}

function mark() {
  const options = $("matches").querySelectorAll("[role=option]");
  options.forEach((node, n) => node.setAttribute("aria-selected", String(n === active)));
  if (!options[active]) return $("search").removeAttribute("aria-activedescendant");
  $("search").setAttribute("aria-activedescendant", options[active].id);
  options[active].scrollIntoView({ block: "nearest" });
}

function pick(person) {
  toggle(person);
  $("search").value = "";
  showMatches(false);
}

function searchKey(event) {
  const options = $("matches").querySelectorAll("[role=option]");
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && options.length) {
    active = (active + step + options.length) % options.length;
    mark();
  } else if (event.key === "Enter" && options[active] && $("search").value.trim()) {
    pick(Number(options[active].dataset.person));
  } else if (event.key === "Escape") {
    $("search").value = "";
    showMatches(false);
  } else return;
  event.preventDefault();
}

/* Start */

function has3d() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl"));
  } catch {
    return false;
  }
}

function startMap() {
  for (const input of document.querySelectorAll(".bar input")) {
    const drawn = input.name !== "dimensions" || MAP.views.some((v) => v.dimensions === +input.value);
    if (!drawn || (input.name === "dimensions" && input.value === "3" && !has3d())) {
      input.disabled = true;
      input.parentElement.title = drawn ? "This browser offers no WebGL, which 3-D needs" : "Not on this page";
    }
    input.checked = String(state[input.name]) === input.value;
    input.addEventListener("change", () => {
      state[input.name] = input.name === "dimensions" ? Number(input.value) : input.value;
      hideTip();
      drawMap();
    });
  }
  $("search").addEventListener("input", openMatches);
  $("search").addEventListener("focus", () => $("search").value && openMatches());
  $("search").addEventListener("blur", () => showMatches(false));
  $("search").addEventListener("keydown", searchKey);
  document.addEventListener("pointermove", (event) => {
    Object.assign(pointer, { x: event.clientX, y: event.clientY });
    if (!$("tip").classList.contains("hidden")) placeTip();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || state.face === null || event.defaultPrevented) return;
    state.face = null;
    drawDetail();
    drawPeople();
    drawMap();
  });
  $("map").addEventListener("pointerleave", hideTip);
  addEventListener("scroll", hideTip, { passive: true });
  themeListeners.push(() => { drawMap(); drawPeople(); });
  new ResizeObserver(() => $("map").clientWidth !== drawnWidth && drawMap()).observe($("map"));
  drawDetail();
  drawMap();
}

startMap();
