"use strict";
// The transport picture: lines from the target that is open in the list to the examples that serve it, numbered as in
// the list; and a click on a target in the picture opens it in the list.
(() => {
  const lists = [...document.querySelectorAll("details.query")];
  const choice = document.querySelector('[data-switch="served-arm"]');
  if (!page.figures.served) return;
  const arm = () => choice.querySelector("input:checked").value;
  const open = () => lists.find((query) => query.open && query.dataset.arm === arm());

  // What to show of an axis: these values, with room on both sides, and never less than a fifth of the map.
  function around(values, all) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = Math.max(0.3 * (high - low), 0.1 * (Math.max(...all) - Math.min(...all)));
    return [low - room, high + room];
  }

  page.prepare.served = (spec) => {
    const query = open();
    const at = query ? spec.data[1].customdata.indexOf(Number(query.dataset.query)) : -1;
    if (at < 0) return spec;
    const [x, y] = [spec.data[1].x[at], spec.data[1].y[at]];
    const ends = spec.fans[arm()][query.dataset.query] ?? [];
    const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
    const lines = {
      type: "scatter", mode: "lines", name: "serves it", hoverinfo: "skip",
      x: ends.flatMap((end) => [x, end[0], null]), y: ends.flatMap((end) => [y, end[1], null]),
      line: { color: accent, width: 1.4 },
    };
    const dots = {
      type: "scatter", mode: "markers+text", showlegend: false, hoverinfo: "skip",
      x: [x, ...ends.map((end) => end[0])], y: [y, ...ends.map((end) => end[1])],
      text: ["", ...ends.map((end) => String(end[2]))], textposition: "top center", textfont: { color: accent },
      marker: { color: accent, size: [11, ...ends.map(() => 7)], symbol: ["diamond", ...ends.map(() => "circle")] },
    };
    const layout = {
      ...spec.layout,
      xaxis: { ...spec.layout.xaxis, range: around(dots.x, spec.data[0].x) },
      yaxis: { ...spec.layout.yaxis, range: around(dots.y, spec.data[0].y) },
    };
    return { layout, data: [...spec.data, lines, dots] };
  };

  page.clicked.served = (point) => {
    const wanted = (query) => query.dataset.arm === arm() && query.dataset.query === String(point.customdata);
    const query = lists.find(wanted);
    if (!query) return;
    query.open = true;
    query.querySelector("summary").focus();
  };
  for (const query of lists) query.addEventListener("toggle", () => page.redraw("served"));
  choice.addEventListener("change", () => page.redraw("served"));
})();
