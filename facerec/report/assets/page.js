"use strict";
/* Theme and figures: reads each figure's JSON, draws it in the colours of the theme, and again
   when the theme changes or, for small multiples, when the width asks for another grid. */

const readJson = (id) => JSON.parse(document.getElementById(id).textContent);
const PAGE = readJson("page-data");
const THEME = readJson("theme-data");
const themeListeners = [];

const systemDark = matchMedia("(prefers-color-scheme: dark)");

// In a sandboxed frame (MLflow shows pages in one) the storage throws; the page then forgets.
function remembered(value) {
  try {
    if (value !== undefined) localStorage.setItem("facerec-theme", value);
    return localStorage.getItem("facerec-theme");
  } catch {
    return null;
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemDark.matches;
}

/* The colour of a palette entry in the theme of now. */
function colour(name) {
  const tone = THEME.palette[name];
  return isDark() ? THEME.dark[tone] : tone;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  themeListeners.forEach((draw) => draw());
}

/* Named one by one: among Plotly's own choice is a button that sends the chart, faces and all, to a
   server. */
function config(...buttons) {
  return {
    displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtons: [["toImage"], buttons],
  };
}
const FIGURE_BUTTONS = ["zoom2d", "pan2d", "resetScale2d"];

function themed(text) {
  if (!isDark()) return text;
  return text.replace(/#[0-9a-f]{6}/g, (tone) => THEME.dark[tone] || tone);
}

/* Lay subplots out anew: a figure whose layout.meta.grid lists its panels flows like text. */
function flow(layout, width) {
  const grid = layout.meta && layout.meta.grid;
  if (!grid) return;
  const columns = width >= grid.wide ? 2 : 1;
  const rows = [];
  for (const panel of grid.panels) {
    const last = rows[rows.length - 1];
    if (columns === 2 && !panel.full && last && !last.full && last.length < 2) last.push(panel);
    else rows.push(Object.assign([panel], { full: panel.full }));
  }
  const plotTop = layout.margin.t, plotBottom = layout.margin.b;
  const heights = rows.map((row) => Math.max(...row.map((panel) => panel.height)));
  const gap = grid.gap;
  const inner = heights.reduce((a, b) => a + b, 0) + gap * (rows.length - 1);
  const between = 64 / Math.max(width - layout.margin.l - layout.margin.r, 65);
  let top = inner;
  rows.forEach((row, number) => {
    const domain = [(top - heights[number]) / inner, top / inner];
    row.forEach((panel, column) => {
      const share = (1 - between * (row.length - 1)) / row.length;
      const left = column * (share + between);
      layout["xaxis" + panel.axis].domain = [left, Math.min(left + share, 1)];
      layout["yaxis" + panel.axis].domain = domain.map((v) => Math.min(Math.max(v, 0), 1));
    });
    top -= heights[number] + gap;
  });
  layout.height = inner + plotTop + plotBottom;
}

function drawFigure(element) {
  const figure = JSON.parse(themed(document.getElementById(element.dataset.figure).textContent));
  const width = element.clientWidth;
  flow(figure.layout, width);
  figure.layout.width = width;
  element.style.minHeight = figure.layout.height + "px";
  return Plotly.react(element, figure.data, figure.layout, config(...FIGURE_BUTTONS));
}

function startFigures() {
  const figures = [...document.querySelectorAll("[data-figure]")];
  themeListeners.push(() => figures.forEach(drawFigure));
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.clientWidth && target.clientWidth !== target._width) {
        target._width = target.clientWidth;
        drawFigure(target);
      }
    }
  });
  figures.forEach((element) => watch.observe(element));
}

const stored = remembered();
if (stored === "dark" || stored === "light") document.documentElement.dataset.theme = stored;
document.getElementById("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  remembered(theme);
  setTheme(theme);
});
systemDark.addEventListener("change", () => themeListeners.forEach((draw) => draw()));
startFigures();
