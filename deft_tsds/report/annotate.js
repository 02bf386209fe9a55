"use strict";
// One rater at work: shows an item, takes answers by key or click, keeps them in the browser, hands them out as a file.
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const items = new Map(study.items.map((item) => [item.id, item]));
  const kept = `deft_tsds/${study.study}/${study.rater}`; // where the browser keeps the answers
  const [notice, where, form, keys] = ["notice", "where", "questions", "keys"].map((id) => document.getElementById(id));
  const fields = [...form.children].map((part) => part.dataset.field);
  let answers = {};
  let at = 0; // the item shown
  let unsaved = false; // answers that neither the browser nor a file holds

  const said = (item) => answers[item.id] || {};
  const open = (item) => fields.find((field) => !(field in said(item)));
  const tell = (text) => { notice.textContent = text; notice.hidden = !text; };

  // What was kept may be broken, or by another hand: only what could have been answered here is taken.
  function restore(text) {
    const found = text === null ? {} : JSON.parse(text);
    answers = {};
    for (const [id, given] of Object.entries(found)) {
      if (!items.has(id)) continue;
      const good = Object.entries(given).filter(([field, answer]) => (study.fields[field] || []).includes(answer));
      answers[id] = Object.fromEntries(good);
    }
  }

  function load() {
    let text;
    try {
      text = window.localStorage.getItem(kept);
    } catch {
      return tell("This browser keeps nothing for this page: answers are lost when it closes. Export them before.");
    }
    try {
      restore(text);
    } catch {
      tell("What this browser had kept of earlier answers cannot be read. You begin anew.");
    }
  }

  function save() {
    try {
      window.localStorage.setItem(kept, JSON.stringify(answers));
    } catch {
      unsaved = true;
      tell("This browser keeps nothing for this page: answers are lost when it closes. Export them before.");
    }
  }

  // Control characters and lone surrogates are shown as what they are: nothing that can be read.
  const shown = (text) => text.toWellFormed().replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "\ufffd");

  function show() {
    const item = study.items[at];
    for (const part of ["input", "a", "b"]) document.getElementById(part).textContent = shown(item[part]);
    where.textContent = `Item ${at + 1} of ${study.items.length}`;
    for (const radio of form.querySelectorAll("input")) radio.checked = said(item)[radio.name] === radio.value;
    document.getElementById("back").disabled = at === 0;
    mark(open(item) || fields[0]);
  }

  // The question that takes the next key, and how far the rater has come.
  function mark(field) {
    for (const part of form.children) {
      if (part.dataset.field === field) part.setAttribute("aria-current", "true");
      else part.removeAttribute("aria-current");
    }
    const done = study.items.filter((item) => !open(item)).length;
    const all = done === study.items.length;
    document.getElementById("done").value = done;
    document.getElementById("count").textContent = all
      ? `All ${done} items answered: export the answers.`
      : `${done} of ${study.items.length} answered`;
    document.body.classList.toggle("finished", all);
    document.getElementById("next").disabled = Boolean(open(study.items[at])) || at + 1 === study.items.length;
  }

  function answer(radio) {
    const item = study.items[at];
    radio.checked = true;
    answers[item.id] = { ...said(item), [radio.name]: radio.value };
    save();
    mark(open(item) || fields[Math.min(fields.indexOf(radio.name) + 1, fields.length - 1)]);
  }

  function move(to) {
    at = Math.min(Math.max(to, 0), study.items.length - 1);
    show();
    where.focus();
    window.scrollTo(0, 0);
  }

  function exported() {
    const text = JSON.stringify({ study: study.study, rater: study.rater, answers }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `${study.study}-${study.rater}.json`;
    link.click();
    window.setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    unsaved = false;
  }

  form.addEventListener("change", (event) => answer(event.target));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("focusin", (event) => mark(event.target.name));
  document.getElementById("back").addEventListener("click", () => move(at - 1));
  document.getElementById("next").addEventListener("click", () => move(at + 1));
  document.getElementById("export").addEventListener("click", exported);
  document.addEventListener("keydown", (event) => {
    if (!keys.checked || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("button, summary, a") && ["Enter", " "].includes(event.key)) return;
    const field = form.querySelector("[aria-current]");
    const radio = [...field.querySelectorAll("input")].find((one) => one.dataset.key === event.key.toLowerCase());
    if (radio) answer(radio);
    else if (event.key === "Backspace") move(at - 1);
    else if (event.key === "Enter" && !document.getElementById("next").disabled) move(at + 1);
    else return;
    event.preventDefault();
  });
  window.addEventListener("storage", (event) => { // the same page in another tab
    if (event.key !== kept) return;
    try {
      restore(event.newValue);
    } catch {
      return;
    }
    show();
  });
  window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });

  load();
  at = Math.max(0, study.items.findIndex(open));
  show();
})();
