"use strict";
(() => {
  const token = new URLSearchParams(location.search).get("token");
  const byId = (id) => document.getElementById(id);
  const shapes = ["hk", "mk", "wk", "un", "none"];
  const spanShapes = ["hk", "mk", "wk", "rc", "un", "nl"];
  const spanWords = [
    "HighlyKnown: expressed in place", "MaybeKnown: expressed in place", "WeaklyKnown: expressed in place",
    "recognised, not expressed in place", "neither expressed in place nor recognised: new", "no label",
  ];
  const state = { find: "", filters: {}, sort: "", down: false, page: 0, row: null };
  let table = null; // columns, filters, categories
  let shown = null; // the page of rows on the screen
  let asking = null; // aborts the request under way for rows
  let detailAsked = 0; // only the answer to the last question about a row is shown

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }
  function count(number) { return number.toLocaleString("en"); }
  function percent(share) {
    if (share > 0 && share < 0.001) return "<0.1\u00a0%";
    return `${(100 * share).toFixed(1)}\u00a0%`;
  }

  async function ask(path, signal) {
    let response;
    try {
      response = await fetch(path, { headers: { Authorization: `Bearer ${token}` }, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("No answer: foreknow explore has ended. Start it again and open the address that it prints.");
    }
    const value = await response.json();
    if (!response.ok) throw new Error(value.error);
    return value;
  }

  // ---- the rows ----
  function parameters() {
    const values = new URLSearchParams();
    if (state.find) values.set("find", state.find);
    for (const [name, place] of Object.entries(state.filters)) values.set(`filter-${name}`, place);
    if (state.sort) values.set("sort", state.sort);
    if (state.down) values.set("down", "1");
    if (state.page) values.set("page", String(state.page));
    return values;
  }
  function remember() {
    const values = parameters();
    if (state.row !== null) values.set("row", String(state.row));
    history.replaceState(null, "", `${location.pathname}${location.search}#${values}`);
  }
  function recall() {
    const values = new URLSearchParams(location.hash.slice(1));
    const whole = (text) => (/^\d{1,9}$/.test(text ?? "") ? Number(text) : null);
    Object.assign(state, { find: values.get("find") ?? "", filters: {}, down: values.get("down") === "1" });
    state.sort = table.columns.some((c) => c.name === values.get("sort")) ? values.get("sort") : "";
    state.page = whole(values.get("page")) ?? 0;
    state.row = whole(values.get("row"));
    for (const filter of table.filters) {
      const place = whole(values.get(`filter-${filter.name}`));
      if (place !== null && place < filter.values.length) state.filters[filter.name] = place;
    }
  }
  async function update() {
    asking?.abort();
    asking = new AbortController();
    const own = asking;
    remember();
    const waiting = setTimeout(() => byId("row-table").setAttribute("aria-busy", "true"), 250);
    try {
      shown = await ask(`rows?${parameters()}`, own.signal);
      state.page = shown.page;
      draw();
      return true;
    } catch (error) {
      if (error.name !== "AbortError") byId("status").textContent = error.message;
      return false;
    } finally {
      clearTimeout(waiting);
      if (own === asking) byId("row-table").removeAttribute("aria-busy");
    }
  }
  function cell(column, value, place) {
    if (column.name === "question") {
      const open = element("button", value || "(no question)", "open");
      open.type = "button";
      open.dataset.place = place;
      open.addEventListener("click", () => openRow(place));
      return open;
    }
    if (column.kind === "category") return category(value);
    if (value === null) return "–";
    if (column.kind === "share") return table.sets ? `${Math.round(value * table.sets)}/${table.sets}` : value.toFixed(2);
    if (column.kind === "probability") return value === 0 ? "0" : value < 0.0001 ? "<0.0001" : value.toFixed(value < 0.01 ? 4 : 2);
    if (column.kind === "flags") return value.replaceAll("_", " ");
    if (column.kind === "mark") {
      const mark = element("span", value ? "✓" : "✗", value ? "right" : "wrong");
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", value ? "right" : "wrong");
      return mark;
    }
    if (column.name === "group") return value.replaceAll("_", "_\u200b");
    return value === "" ? "(nothing)" : String(value);
  }
  function category(name) {
    const part = document.createDocumentFragment();
    if (name === null) return "none";
    part.append(element("i", "", shapes[table.categories.indexOf(name)]), ` ${name}`);
    return part;
  }
  const kinds = { number: "num", share: "num", probability: "num", mark: "num", category: "kind", flags: "flags", text: "" };
  function styleOf(column) {
    if (column.name === "question") return "question";
    if (column.name === "set") return "flags";
    return ["answer", "model_answer", "prediction"].includes(column.name) ? "text" : kinds[column.kind];
  }
  function draw() {
    const lines = shown.rows.map((values, line) => {
      const row = element("tr");
      table.columns.forEach((column, at) => {
        const made = element("td", undefined, styleOf(column));
        if (column.name !== "question") made.dataset.label = column.title === "#" ? "Row" : column.title;
        made.dir = "auto";
        made.append(cell(column, values[at], shown.places[line]));
        if (!made.textContent) made.classList.add("none");
        row.append(made);
      });
      return row;
    });
    byId("row-body").replaceChildren(...lines);
    const from = shown.page * shown.page_rows;
    const all = shown.total === table.rows ? "" : ` (${count(table.rows)} in all)`;
    byId("status").textContent = shown.total
      ? `Rows ${count(from + 1)}–${count(from + shown.rows.length)} of ${count(shown.total)}${all}`
      : "No row matches. Reset shows all of them.";
    const pages = Math.max(1, Math.ceil(shown.total / shown.page_rows));
    byId("page").textContent = `Page ${count(shown.page + 1)} of ${count(pages)}`;
    for (const id of ["first", "previous"]) byId(id).disabled = shown.page === 0;
    for (const id of ["next", "last"]) byId(id).disabled = shown.page >= pages - 1;
    byId("pager").hidden = pages === 1;
    byId("row-table").hidden = !shown.total;
    [...byId("row-head").children].forEach((head, at) => {
      const own = table.columns[at].name === state.sort;
      if (own) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      head.querySelector("span").textContent = own ? (state.down ? " ↓" : " ↑") : "";
    });
    byId("sort").value = state.sort ? `${state.sort} ${state.down ? 1 : 0}` : "";
    byId("find").value = document.activeElement === byId("find") ? byId("find").value : state.find;
    for (const filter of table.filters) byId(`by-${filter.name}`).value = String(state.filters[filter.name] ?? "");
    drawShares(shown.categories);
  }
  function drawShares(counts) {
    const total = counts.reduce((sum, one) => sum + one, 0);
    if (!total || counts.at(-1) === total) {
      byId("shares").replaceChildren();
      return;
    }
    const names = [...table.categories, "no category"];
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.setAttribute("class", "stack");
    drawing.setAttribute("aria-hidden", "true");
    const chips = element("p", undefined, "chips");
    let before = 0;
    counts.forEach((one, at) => {
      if (!one && at === names.length - 1) return;
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const places = { x: `${(100 * before) / total}%`, width: `${(100 * one) / total}%`, height: "100%", class: shapes[at] };
      for (const [name, value] of Object.entries(places)) rect.setAttribute(name, value);
      drawing.append(rect);
      const chip = element("span", undefined, "chip");
      chip.append(element("i", "", shapes[at]), ` ${names[at]} ${count(one)} (${percent(one / total)})`);
      chips.append(chip);
      before += one;
    });
    byId("shares").replaceChildren(drawing, chips);
  }
  async function turn(page) {
    state.page = Math.max(0, page);
    await update();
    if (byId("controls").getBoundingClientRect().top < 0) byId("rows").scrollIntoView();
  }
  function choose(sort, down) {
    Object.assign(state, { sort, down, page: 0 });
    update();
  }

  // ---- one row ----
  function pieces(section) {
    const text = element("p", undefined, "reading-text");
    text.dir = "auto";
    const note = element("p", "", "note");
    note.setAttribute("aria-live", "polite");
    for (const piece of section.pieces) {
      if (!Array.isArray(piece)) { text.append(piece); continue; }
      const [words, part, type, chance, rank, others] = piece;
      const mark = element("mark", words, `span ${spanShapes[part]}`);
      mark.title = spanWords[part];
      mark.tabIndex = 0;
      mark.setAttribute("role", "button");
      const say = () => {
        const parts = [`“${words}”, of the ${table.span_types[type]}: ${spanWords[part]}.`];
        if (chance !== null) parts.push(`Given the text before it, a sample says it with a chance of ${chance > 0 && chance < 0.0001 ? "less than 0.01\u00a0%" : `${Number((100 * chance).toPrecision(2))}\u00a0%`}.`);
        if (rank !== null) parts.push(`Among itself and ${others} others of its type it comes ${rank === 1 ? "first" : `in place ${rank}`}.`);
        note.textContent = parts.join(" ");
      };
      mark.addEventListener("click", say);
      mark.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); say(); }
      });
      text.append(mark);
    }
    if (!section.pieces.some(Array.isArray)) return [text];
    const legend = element("p", undefined, "chips");
    new Set(section.pieces.filter(Array.isArray).map((p) => p[1])).forEach((part) => {
      legend.append(element("mark", spanWords[part], `span ${spanShapes[part]}`), " ");
    });
    return [legend, text, note];
  }
  function list(lines) {
    const made = element("ul");
    for (const line of lines) {
      const item = element("li", line);
      item.dir = "auto";
      made.append(item);
    }
    return [made];
  }
  function grid(section) {
    const made = element("table", undefined, "plain");
    const head = element("tr");
    for (const title of section.head) {
      const cell = element("th", title);
      cell.scope = "col";
      head.append(cell);
    }
    const body = element("tbody");
    for (const line of section.rows) {
      const row = element("tr");
      for (const value of line) {
        const cell = element("td", value, value.startsWith("✗") ? "wrong" : value.startsWith("✓") ? "right" : "");
        cell.dir = "auto";
        row.append(cell);
      }
      body.append(row);
    }
    const top = element("thead");
    top.append(head);
    made.append(top, body);
    const scroll = element("div", undefined, "scroll");
    scroll.append(made);
    return [scroll];
  }
  function prompts(section) {
    return section.prompts.map(([title, text], at) => {
      const made = element("details");
      made.open = at === 0;
      made.append(element("summary", title), element("pre", text));
      return made;
    });
  }
  const builders = { reading: pieces, lines: (s) => list(s.lines), notes: (s) => list(s.lines), table: grid, prompts };
  async function openRow(place) {
    const dialog = byId("detail");
    detailAsked = place;
    state.row = place;
    remember();
    let row;
    try {
      row = await ask(`row?place=${place}`);
    } catch (error) {
      byId(dialog.open ? "detail-status" : "status").textContent = error.message;
      return;
    }
    if (detailAsked !== place) return;
    byId("detail-status").textContent = "";
    byId("detail-heading").replaceChildren(row.heading, ...(row.category ? [" · ", category(row.category)] : []));
    byId("detail-title").textContent = row.question || "(no question)";
    byId("detail-title").dir = "auto";
    byId("detail-lead").textContent = row.lead;
    byId("detail-body").replaceChildren(...row.sections.flatMap((section) => [element("h3", section.title), ...builders[section.kind](section)]));
    const at = shown.places.indexOf(place);
    byId("row-previous").disabled = at < 0 || (at === 0 && shown.page === 0);
    byId("row-next").disabled = at < 0 || shown.page * shown.page_rows + at >= shown.total - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    byId("detail-title").focus();
  }
  async function step(by) {
    const at = shown.places.indexOf(state.row) + by;
    if (at < 0 || at >= shown.places.length) {
      state.page = shown.page + by;
      if (!(await update())) return;
      openRow(by > 0 ? shown.places[0] : shown.places.at(-1));
    } else openRow(shown.places[at]);
  }
  function closed() {
    const place = state.row;
    state.row = null;
    detailAsked = null;
    remember();
    document.querySelector(`.open[data-place="${place}"]`)?.focus();
  }

  // ---- the start ----
  function option(select, value, text) {
    const made = element("option", text);
    made.value = value;
    select.append(made);
  }
  function build() {
    for (const filter of table.filters) {
      const label = element("label", `${filter.title} `);
      const select = element("select");
      select.id = `by-${filter.name}`;
      option(select, "", "all");
      filter.values.forEach((value, at) => option(select, String(at), filter.name === "flag" ? value.replaceAll("_", " ") : value || "(no name)"));
      if (filter.unlisted) {
        option(select, "more", `${count(filter.unlisted)} smaller ones: search for their names`);
        select.lastChild.disabled = true;
      }
      select.addEventListener("change", () => {
        if (select.value === "") delete state.filters[filter.name];
        else state.filters[filter.name] = Number(select.value);
        state.page = 0;
        update();
      });
      label.append(select);
      byId("sort-label").before(label);
    }
    option(byId("sort"), "", "order of the run");
    for (const column of table.columns) {
      const name = column.title === "#" ? "row" : column.title === "P" ? "probability" : column.title.toLowerCase();
      option(byId("sort"), `${column.name} 0`, `${name} ↑`);
      option(byId("sort"), `${column.name} 1`, `${name} ↓`);
      const head = element("th", undefined, styleOf(column) === "num" ? "num" : "");
      head.scope = "col";
      const button = element("button", column.title);
      button.type = "button";
      button.append(element("span"));
      const numeric = ["share", "probability"].includes(column.kind);
      button.addEventListener("click", () => choose(column.name, column.name === state.sort ? !state.down : numeric));
      head.append(button);
      byId("row-head").append(head);
    }
    let waiting = 0;
    byId("find").addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { state.find = event.target.value.trim(); state.page = 0; update(); }, 150);
    });
    byId("sort").addEventListener("change", (event) => {
      const [sort, down] = event.target.value.split(" ");
      choose(sort, down === "1");
    });
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("reset").addEventListener("click", () => {
      clearTimeout(waiting);
      byId("find").value = "";
      Object.assign(state, { find: "", filters: {}, sort: "", down: false, page: 0 });
      update();
    });
    byId("first").addEventListener("click", () => turn(0));
    byId("previous").addEventListener("click", () => turn(shown.page - 1));
    byId("next").addEventListener("click", () => turn(shown.page + 1));
    byId("last").addEventListener("click", () => turn(Math.ceil(shown.total / shown.page_rows) - 1));
    byId("row-previous").addEventListener("click", () => step(-1));
    byId("row-next").addEventListener("click", () => step(1));
    byId("detail-close").addEventListener("click", () => byId("detail").close());
    byId("detail").addEventListener("close", closed);
    addEventListener("hashchange", start);
    byId("controls").hidden = false;
  }
  async function start() {
    recall();
    byId("find").value = state.find;
    if ((await update()) && state.row !== null) openRow(state.row);
  }
  (async () => {
    try {
      table = await ask("table");
    } catch (error) {
      byId("status").textContent = error.message;
      return;
    }
    build();
    start();
  })();
})();
