"use strict";
(() => {
  const source = document.getElementById("text-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const byId = (id) => document.getElementById(id);
  const PAGE = 10;
  const [ROW, QUESTION, GROUP, PIECES] = [0, 1, 2, 3];
  const [TEXT, PART, TYPE, CHANCE, RANK, OTHERS] = [0, 1, 2, 3, 4, 5];
  const shapes = ["hk", "mk", "wk", "rc", "un", "nl"];
  const words = [
    "HighlyKnown: expressed in place", "MaybeKnown: expressed in place", "WeaklyKnown: expressed in place",
    "recognised, not expressed in place", "neither expressed in place nor recognised: new", "no label",
  ];
  const choices = [["new", (p) => p === 4], ["recognised", (p) => p === 3], ["expressed in place", (p) => p < 3],
    ["HighlyKnown", (p) => p === 0], ["MaybeKnown", (p) => p === 1], ["WeaklyKnown", (p) => p === 2], ["no label", (p) => p === 5]];
  const state = { part: "", type: "", group: "", row: "", page: 0 };
  const spans = data.rows.map((r) => r[PIECES].filter(Array.isArray));

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }
  function chosen(span) {
    const part = state.part === "" || choices[Number(state.part)][1](span[PART]);
    return part && (state.type === "" || span[TYPE] === Number(state.type));
  }
  function percent(chance) {
    const value = 100 * chance;
    if (value > 0 && value < 0.01) return "less than 0.01\u00a0%";
    return `${value < 1 ? Number(value.toPrecision(1)) : Math.round(value)}\u00a0%`;
  }
  function numbers(span) {
    const parts = [`“${span[TEXT]}”, of the ${data.names[span[TYPE]]}: ${words[span[PART]]}.`];
    if (span[CHANCE] !== null) parts.push(`Given the text before it, a sample says it with a chance of ${percent(span[CHANCE])}.`);
    if (span[RANK] !== null) parts.push(`Among itself and ${span[OTHERS]} others of its type it comes ${span[RANK] === 1 ? "first" : `in place ${span[RANK]}`}.`);
    return parts.join(" ");
  }
  function article(r) {
    const made = element("article", undefined, "reading");
    const head = element("h3");
    head.append(element("span", `Row ${r[ROW]}`, "soft"), " ", element("bdi", r[QUESTION] ?? "(no question)"));
    const text = element("p", undefined, "reading-text");
    text.dir = "auto";
    const detail = element("p", "", "note");
    detail.setAttribute("aria-live", "polite");
    for (const piece of r[PIECES]) {
      if (!Array.isArray(piece)) { text.append(piece); continue; }
      const mark = element("mark", piece[TEXT], chosen(piece) ? `span ${shapes[piece[PART]]}` : "span off");
      mark.title = words[piece[PART]];
      mark.addEventListener("click", () => { detail.textContent = numbers(piece); });
      text.append(mark);
    }
    made.append(head, text, detail);
    return made;
  }
  function draw() {
    const filtered = state.part !== "" || state.type !== "";
    const shown = data.rows.filter((r, at) =>
      (state.row === "" || r[ROW] === Number(state.row)) && (state.group === "" || r[GROUP] === Number(state.group)) &&
      (!filtered || spans[at].some(chosen)));
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    const from = state.page * PAGE;
    const now = shown.slice(from, from + PAGE);
    byId("text-list").replaceChildren(...now.map(article));
    const all = shown.length === data.rows.length ? "" : ` (${data.rows.length.toLocaleString("en")} on this page)`;
    byId("text-status").textContent = shown.length
      ? `Texts ${from + 1}–${from + now.length} of ${shown.length.toLocaleString("en")}${all}` : "No text has such a span. Reset shows all of them.";
    byId("text-page").textContent = `Page ${state.page + 1} of ${pages}`;
    byId("text-previous").disabled = state.page === 0;
    byId("text-next").disabled = state.page >= pages - 1;
    byId("text-pager").hidden = pages === 1;
  }
  function turn(by) {
    state.page += by;
    draw();
    byId("texts").scrollIntoView();
  }
  function set(values) {
    Object.assign(state, { part: "", type: "", group: "", row: "", page: 0 }, values);
    byId("text-part").value = state.part;
    byId("text-type").value = state.type;
    byId("text-group").value = state.group;
    draw();
  }
  function option(select, value, text) {
    const made = element("option", text);
    made.value = value;
    select.append(made);
  }
  const present = spans.flat();
  choices.forEach(([name, test], at) => { if (present.some((s) => test(s[PART]))) option(byId("text-part"), String(at), name); });
  data.names.forEach((name, at) => { if (present.some((s) => s[TYPE] === at)) option(byId("text-type"), String(at), name); });
  data.groups.forEach((name, at) => option(byId("text-group"), String(at), name));
  byId("text-group").parentElement.hidden = data.groups.length < 2;
  for (const [id, field] of [["text-part", "part"], ["text-type", "type"], ["text-group", "group"]]) {
    byId(id).addEventListener("change", (event) => { state[field] = event.target.value; state.row = ""; state.page = 0; draw(); });
  }
  byId("text-controls").addEventListener("submit", (event) => event.preventDefault());
  byId("text-reset").addEventListener("click", () => set({}));
  byId("text-previous").addEventListener("click", () => turn(-1));
  byId("text-next").addEventListener("click", () => turn(1));
  for (const link of document.querySelectorAll("[data-text]")) {
    link.addEventListener("click", () => set({ row: link.dataset.text }));
  }
  byId("text-controls").hidden = false;
  draw();
})();
