"use strict";
(() => {
  const sheet = document.body.dataset.sheet;
  const place = `ratings-${sheet}`;
  const rows = [...document.querySelectorAll("section.row")];
  const numbers = rows.map((section) => Number(section.dataset.row));
  const find = (id) => document.getElementById(id);
  const FIELDS = ["helpfulness_1", "helpfulness_2", "preference", "comment"];
  let state = { rater: "", ratings: {}, at: 0 };
  let kept = true;

  const field = (name, row) => [...document.getElementsByName(`${name}-${row}`)];

  function rated(row) {
    const rating = state.ratings[row];
    return Boolean(rating && rating.helpfulness_1 && rating.helpfulness_2 && rating.preference);
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch {
      kept = false;
    }
    find("unsaved").hidden = kept;
  }

  function collect(row) {
    const rating = {};
    for (const name of FIELDS) {
      const inputs = field(name, row);
      const value = name === "comment" ? inputs[0].value.trim() : inputs.find((i) => i.checked)?.value;
      if (value) rating[name] = name.startsWith("helpfulness") ? Number(value) : value;
    }
    if (Object.keys(rating).length) state.ratings[row] = rating;
    else delete state.ratings[row];
  }

  function fill(row) {
    const rating = state.ratings[row] || {};
    for (const name of FIELDS) {
      for (const input of field(name, row)) {
        if (name === "comment") input.value = rating.comment || "";
        else input.checked = String(rating[name] ?? "") === input.value;
      }
    }
  }

  function show(at, scroll) {
    state.at = Math.min(Math.max(at, 0), rows.length - 1);
    rows.forEach((section, i) => { section.hidden = i !== state.at; });
    find("back").disabled = state.at === 0;
    find("next").disabled = state.at === rows.length - 1;
    if (scroll) window.scrollTo(0, 0);
  }

  function progress() {
    const done = numbers.filter(rated).length;
    find("count").textContent = `${done} of ${rows.length} rated`;
    find("done").value = done;
    find("open").disabled = done === rows.length;
  }

  function say(text) { find("said").textContent = text; }

  // What is not of this sheet's form is left out: the file may come from anywhere.
  function adopt(found) {
    const given = Array.isArray(found.ratings)
      ? Object.fromEntries(found.ratings.map((rating) => [rating?.row, rating]))
      : found.ratings || {};
    const ratings = {};
    for (const row of numbers) {
      const from = given[row] || {}, rating = {};
      for (const name of ["helpfulness_1", "helpfulness_2"]) {
        if (Number.isInteger(from[name]) && from[name] >= 1 && from[name] <= 10) rating[name] = from[name];
      }
      if (["1", "2", "tie"].includes(from.preference)) rating.preference = from.preference;
      if (typeof from.comment === "string" && from.comment) rating.comment = from.comment.slice(0, 2000);
      if (Object.keys(rating).length) ratings[row] = rating;
    }
    state = { rater: String(found.rater || "").slice(0, 60), ratings, at: Number.isInteger(found.at) ? found.at : 0 };
    find("rater").value = state.rater;
    numbers.forEach(fill);
    show(state.at, false);
    progress();
  }

  function cell(value) {
    let text = String(value ?? "");
    if (/^[\s"']*[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function save(kind) {
    state.rater = find("rater").value.trim();
    find("rater").classList.toggle("missing", !state.rater);
    if (!state.rater) {
      find("rater").focus();
      say("Please give your name first: it tells raters apart.");
      return;
    }
    keep();
    const ratings = numbers.filter((row) => state.ratings[row]).map((row) => ({ row, ...state.ratings[row] }));
    let text = `${JSON.stringify({ sheet, rater: state.rater, ratings }, null, 1)}\n`;
    if (kind === "csv") {
      const columns = ["sheet", "row", "rater", ...FIELDS];
      const lines = ratings.map((rating) => ({ sheet, rater: state.rater, ...rating }));
      text = `${[columns, ...lines.map((line) => columns.map((name) => line[name]))].map((line) => line.map(cell).join(",")).join("\n")}\n`;
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv" : "application/json" }));
    link.download = `ratings-${sheet}-${state.rater.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    const done = numbers.filter(rated).length;
    say(`Saved ${link.download}: ${done} of ${rows.length} rows fully rated. Send this file back.`);
  }

  document.querySelector("main").addEventListener("input", (event) => {
    const section = event.target.closest("section.row");
    if (!section) return;
    collect(Number(section.dataset.row));
    keep();
    progress();
  });
  document.querySelector("main").addEventListener("click", (event) => {
    if (!event.target.classList.contains("clear")) return;
    const row = Number(event.target.closest("section.row").dataset.row);
    delete state.ratings[row];
    fill(row);
    keep();
    progress();
  });
  find("rater").addEventListener("input", () => {
    state.rater = find("rater").value.trim();
    find("rater").classList.remove("missing");
    keep();
  });
  find("back").addEventListener("click", () => { show(state.at - 1, true); keep(); });
  find("next").addEventListener("click", () => { show(state.at + 1, true); keep(); });
  find("open").addEventListener("click", () => {
    const order = numbers.map((_, i) => (state.at + 1 + i) % rows.length);
    const at = order.find((i) => !rated(numbers[i]));
    if (at !== undefined) show(at, true);
    keep();
  });
  find("json").addEventListener("click", () => save("json"));
  find("csv").addEventListener("click", () => save("csv"));
  find("load").addEventListener("change", async () => {
    const [file] = find("load").files;
    find("load").value = "";
    if (!file) return;
    try {
      const found = JSON.parse(await file.text());
      if (found.sheet !== sheet) { say(`${file.name} belongs to another sheet.`); return; }
      adopt(found);
      keep();
      say(`Loaded ${file.name}.`);
    } catch {
      say(`${file.name} is not a ratings file.`);
    }
  });

  let before = null;
  try {
    before = JSON.parse(localStorage.getItem(place) || "null");
  } catch {
    before = null;
  }
  if (before && typeof before === "object") {
    adopt(before);
    document.querySelector(".guide").open = false;
  } else {
    show(0, false);
    progress();
  }
  keep();
})();
