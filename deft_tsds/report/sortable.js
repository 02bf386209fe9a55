"use strict";
// Makes tables of class "sortable" sortable by any column: numbers by data-value, the first column by its text.
(() => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const given = [...body.rows];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => row.cells[column].dataset.value;
        const compare = (a, b) => {
          if (column === 0) return a.cells[0].textContent.localeCompare(b.cells[0].textContent) * (up ? 1 : -1);
          const [x, y] = [value(a), value(b)];
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // empty ones last
          return (Number(x) - Number(y)) * (up ? 1 : -1);
        };
        body.replaceChildren(...given.slice().sort(compare));
      });
    });
  }
})();
