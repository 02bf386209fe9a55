"use strict";
// The map as one arm sees it: which points it chose, and why, below the text of each. Of a large pool most points have
// no text; they are bytes, and lie as an image behind the others.
(() => {
  const choice = document.getElementById("map-arm");
  if (!page.figures.map) return;
  const cloud = page.figures.map.cloud && unpacked(page.figures.map.cloud);

  function unpacked(packed) {
    const bytes = (text) => {
      const letters = atob(text);
      const read = new Uint8Array(letters.length);
      for (let at = 0; at < read.length; at++) read[at] = letters.charCodeAt(at);
      return read;
    };
    return {
      ...packed,
      at: new Uint16Array(bytes(packed.at).buffer),
      shade: bytes(packed.shade),
      chosen: packed.chosen.map(bytes),
    };
  }

  // Squares set pixel by pixel: 100,000 rectangles drawn on a canvas take many times as long. Where squares meet the
  // later one gives the colour and all of them the opacity, so dense places are darker. What the arm chose comes last.
  function image(arm) {
    const [wide, high] = cloud.span;
    const canvas = document.createElement("canvas");
    canvas.width = 1200;
    canvas.height = Math.round(Math.min(1800, Math.max(300, (1200 * high) / wide)));
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    const pixels = picture.data;
    const shades = cloud.shades.map((shade) => [1, 3, 5].map((at) => parseInt(shade.slice(at, at + 2), 16)));
    const chosen = cloud.chosen[arm];
    for (const wanted of chosen ? [0, 1] : [0]) {
      const size = wanted ? 3 : 2;
      const opacity = wanted ? 0.85 : chosen ? 0.25 : 0.6;
      for (let point = 0; point < cloud.count; point++) {
        if (chosen && ((chosen[point >> 3] >> (point & 7)) & 1) !== wanted) continue;
        const left = Math.round((cloud.at[2 * point] / 65535) * (canvas.width - size));
        const top = Math.round((1 - cloud.at[2 * point + 1] / 65535) * (canvas.height - size));
        const [red, green, blue] = shades[cloud.shade[point]];
        for (let y = top; y < top + size; y++) {
          for (let at = 4 * (y * canvas.width + left), end = at + 4 * size; at < end; at += 4) {
            pixels[at] = red;
            pixels[at + 1] = green;
            pixels[at + 2] = blue;
            pixels[at + 3] += (255 - pixels[at + 3]) * opacity;
          }
        }
      }
    }
    context.putImageData(picture, 0, 0);
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
