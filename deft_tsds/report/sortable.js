"use strict";
// Makes tables of class "sortable" sortable by any column: a column with numbers (data-value) by these, another by its
// text. Each heading becomes a button, so Tab reaches it and Enter or Space sorts; aria-sort says how it is sorted.
(() => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const given = [...body.rows];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      const number = (row) => row.cells[column].dataset.value;
      const text = (row) => row.cells[column].textContent;
      const numeric = given.some((row) => number(row) !== undefined);
      button.addEventListener("click", () => {
        const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
        const compare = (a, b) => {
          if (!numeric) return text(a).localeCompare(text(b)) * sign;
          const [x, y] = [number(a), number(b)];
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // empty ones last
          return (Number(x) - Number(y)) * sign;
        };
        body.replaceChildren(...given.slice().sort(compare));
      });
    });
  }
})();
