"use strict";
// Draws each figure when it first comes near the screen, and makes the switches work. Without it the page shows every
// panel, one below the other.
const page = (() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll("[data-figure]")];
  const root = document.documentElement;
  const drawn = new Set();
  // What other scripts add, by the name of a figure: how it is changed before it is drawn (spec -> {data, layout}), and
  // what a click on a point of it does.
  const prepare = {};
  const clicked = {};

  function themed(layout) {
    const style = getComputedStyle(root);
    const ink = style.getPropertyValue("--ink").trim();
    const muted = style.getPropertyValue("--muted").trim();
    const rule = style.getPropertyValue("--rule").trim();
    const paper = style.getPropertyValue("--paper").trim();
    const family = getComputedStyle(document.body).fontFamily;
    const axis = (given) => ({
      gridcolor: rule, zerolinecolor: rule, linecolor: muted, tickcolor: muted, automargin: true, ...given,
    });
    return {
      ...layout,
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      autosize: true,
      font: { family, size: 13, color: ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: paper, bordercolor: muted, align: "left", font: { family, size: 12.5, color: ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink },
      dragmode: window.innerWidth < 640 ? false : layout.dragmode, // a drag on a phone scrolls the page
      uirevision: "kept", // zoom and hidden groups survive a change of arm
    };
  }

  function inked(traces) {
    const ink = getComputedStyle(root).getPropertyValue("--ink").trim();
    return traces.map((trace) =>
      trace.meta === "ink" ? { ...trace, marker: { ...trace.marker, color: ink } } : trace);
  }

  const buttons = [["zoomIn2d", "zoomOut2d", "resetScale2d"]];
  const config = { responsive: true, displaylogo: false, modeBarButtons: buttons, scrollZoom: false };

  // Plotly is most of the page and takes most of the time to read: it waits as text until there is something to draw.
  function readPlotly() {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script); // runs at once; the policy knows it by its hash
  }

  function draw(place) {
    readPlotly();
    const name = place.dataset.figure;
    const spec = prepare[name] ? prepare[name](figures[name]) : figures[name];
    Plotly.react(place, inked(spec.data), themed(spec.layout), config);
    if (!drawn.has(place) && clicked[name]) place.on("plotly_click", (event) => clicked[name](event.points[0]));
    drawn.add(place);
  }

  function redraw(name) {
    for (const place of drawn) if (!name || place.dataset.figure === name) draw(place);
  }

  for (const fieldset of document.querySelectorAll("fieldset.switch")) fieldset.hidden = false;
  for (const fieldset of document.querySelectorAll("[data-switch]")) {
    const panels = document.querySelectorAll(`[data-panel="${fieldset.dataset.switch}"]`);
    const show = () => {
      const value = fieldset.querySelector("input:checked").value;
      for (const panel of panels) panel.hidden = panel.dataset.value !== value;
    };
    fieldset.addEventListener("change", show);
    fieldset.hidden = panels.length < 2;
    show();
  }

  // Figures that come near together are drawn one a frame, and what is on the screen comes before what is only near it.
  const waiting = [];
  const away = (place) => {
    const { top, bottom } = place.getBoundingClientRect();
    return Math.max(top - window.innerHeight, -bottom, 0);
  };
  function drawNext() {
    waiting.sort((one, other) => away(one) - away(other));
    const place = waiting.shift();
    if (waiting.length) requestAnimationFrame(() => setTimeout(drawNext));
    draw(place);
  }
  const near = new IntersectionObserver((entries) => {
    const idle = !waiting.length;
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        near.unobserve(target);
        waiting.push(target);
      }
    }
    if (idle && waiting.length) drawNext();
  }, { rootMargin: "300px" });
  // The other scripts of the page have run by then.
  document.addEventListener("DOMContentLoaded", () => places.forEach((place) => near.observe(place)));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  window.addEventListener("beforeprint", () => { root.classList.add("printing"); places.forEach(draw); });
  window.addEventListener("afterprint", () => { root.classList.remove("printing"); redraw(); });
  return { figures, prepare, clicked, redraw };
})();
