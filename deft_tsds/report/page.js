"use strict";
// Draws the figures and makes the switches work. Without it the page shows every panel, one below the other.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const narrow = () => window.innerWidth < 640;

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
      dragmode: narrow() ? false : layout.dragmode, // a drag on a phone scrolls the page
    };
  }

  function traces(spec) {
    const ink = getComputedStyle(root).getPropertyValue("--ink").trim();
    return spec.data.map((trace) =>
      trace.meta === "ink" ? { ...trace, marker: { ...trace.marker, color: ink } } : trace);
  }

  // The traces of the map as one arm sees them: which points it chose, and why, below the text of each.
  function chosenBy(spec, number) {
    const arm = spec.arms[number];
    if (!arm) return traces(spec);
    return traces(spec).map((trace, position) => {
      const chosen = arm.traces[position];
      if (!chosen) return trace; // the target examples
      const text = trace.text.slice();
      const why = new Map(chosen.points.map((point, at) => [point, chosen.why[at]]));
      text.forEach((words, point) => {
        text[point] = `${words}<br><b>${arm.label}</b>: ${why.get(point) ?? "not chosen"}`;
      });
      return { ...trace, text, selectedpoints: chosen.points };
    });
  }

  const buttons = [["zoomIn2d", "zoomOut2d", "resetScale2d"]];
  const config = { responsive: true, displaylogo: false, modeBarButtons: buttons, scrollZoom: false };
  const mapSwitch = document.getElementById("map-arm");

  function draw() {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const spec = figures[place.dataset.figure];
      const checked = mapSwitch && mapSwitch.querySelector("input:checked");
      const data = spec.arms ? chosenBy(spec, Number(checked ? checked.value : -1)) : traces(spec);
      const layout = themed(spec.layout);
      layout.uirevision = "kept"; // zoom and hidden groups survive a change of arm
      Plotly.react(place, data, layout, config);
    }
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
  if (mapSwitch) mapSwitch.addEventListener("change", draw);

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("beforeprint", () => { root.classList.add("printing"); draw(); });
  window.addEventListener("afterprint", () => { root.classList.remove("printing"); draw(); });
})();
