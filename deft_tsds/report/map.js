"use strict";
// The map as one arm sees it: which points it chose, and why, below the text of each. Of a large pool most points have
// no text; they are bytes, and lie as an image behind the others.
(() => {
  const choice = document.getElementById("map-arm");
  if (!page.figures.map) return;
  const cloud = page.figures.map.cloud && unpacked(page.figures.map.cloud);

  function unpacked(packed) {
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return {
      ...packed,
      at: new Uint16Array(bytes(packed.at).buffer),
      shade: bytes(packed.shade),
      chosen: packed.chosen.map(bytes),
    };
  }

  function image(arm) {
    const [wide, high] = cloud.span;
    const canvas = document.createElement("canvas");
    canvas.width = 1600;
    canvas.height = Math.round(Math.min(2400, Math.max(400, (1600 * high) / wide)));
    const context = canvas.getContext("2d");
    const chosen = cloud.chosen[arm];
    for (const pass of chosen ? [false, true] : [false]) {
      const size = pass ? 4 : 2.5;
      context.globalAlpha = pass ? 0.8 : chosen ? 0.22 : 0.6;
      cloud.shades.forEach((shade, number) => {
        context.fillStyle = shade;
        for (let point = 0; point < cloud.count; point++) {
          if (cloud.shade[point] !== number) continue;
          if (chosen && ((chosen[point >> 3] >> (point & 7)) & 1) !== Number(pass)) continue;
          const x = (cloud.at[2 * point] / 65535) * canvas.width;
          const y = (1 - cloud.at[2 * point + 1] / 65535) * canvas.height;
          context.fillRect(x - size / 2, y - size / 2, size, size);
        }
      });
    }
    return {
      source: canvas.toDataURL(), xref: "x", yref: "y", x: cloud.low[0], y: cloud.low[1] + high, sizex: wide, sizey: high,
      sizing: "stretch", layer: "below",
    };
  }

  function chosenBy(data, arm) {
    return data.map((trace, position) => {
      const chosen = arm.traces[position];
      if (!chosen) return trace; // the target examples
      const why = new Map(chosen.points.map((point, at) => [point, chosen.why[at]]));
      const text = trace.text.map((words, point) => `${words}<br><b>${arm.label}</b>: ${why.get(point) ?? "not chosen"}`);
      return { ...trace, text, selectedpoints: chosen.points };
    });
  }

  page.prepare.map = (spec) => {
    const checked = choice && choice.querySelector("input:checked");
    const number = Number(checked ? checked.value : -1);
    const arm = spec.arms[number];
    return {
      data: arm ? chosenBy(spec.data, arm) : spec.data,
      layout: cloud ? { ...spec.layout, images: [image(number)] } : spec.layout,
    };
  };
  if (choice) choice.addEventListener("change", () => page.redraw("map"));
})();
