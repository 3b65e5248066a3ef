"use strict";
(() => {
  const source = document.getElementById("row-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const byId = (id) => document.getElementById(id);
  const PAGE = 50;
  const [ROW, QUESTION, ANSWER, ALSO, SAYS, FIRST, KIND, GREEDY, SAMPLED, ERROR, GROUP, FLAGS, LONG, ROLLED, UNKNOWN, FACTS] = Array(16).keys();
  const shapes = ["hk", "mk", "wk", "un"];
  const place = (value) => (value === null || value < 0 ? null : value);
  const labelled = data.rows.some((r) => r[KIND] >= 0);
  const long = data.rows.some((r) => r[LONG]);
  const mostlyLong = data.rows.filter((r) => r[LONG]).length > data.rows.filter((r) => r[KIND] >= 0).length;
  const plain = (answer) => (Array.isArray(answer) ? answer.join("") : answer);
  const columns = [
    { title: "#", label: "Row", key: (r) => r[ROW], cell: (r) => String(r[ROW]), kind: "num" },
    { title: "Question", label: "", key: (r) => r[QUESTION], cell: (r) => r[QUESTION] ?? "(no question)", kind: "question" },
    { title: "Gold answer", label: "Gold", key: (r) => plain(r[ANSWER]), cell: gold, kind: "text" },
    { title: "Model says", label: "Model says", key: (r) => r[SAYS], cell: says, kind: "text", shown: labelled || !long },
    { title: "Category", label: "Category", key: (r) => place(r[KIND]), cell: category, kind: "kind", shown: labelled || !long },
    { title: "Right", label: "Right", key: (r) => r[GREEDY], cell: greedy, kind: "num", shown: labelled || !long },
    { title: "P", label: "P", key: (r) => r[SAMPLED], cell: sampled, kind: "num", shown: labelled || !long },
    { title: "Next token", label: "Next token", key: (r) => r[LONG]?.[0], cell: (r) => r[LONG]?.[1] ?? "", kind: "num", shown: mostlyLong },
    { title: "Helps", label: "Question helps", key: (r) => r[LONG]?.[2], cell: helps, kind: "num", shown: mostlyLong },
    { title: "Facts", label: "Facts", key: (r) => r[UNKNOWN], cell: rolled, kind: "kind", shown: data.rollUp.length > 0 },
    { title: "Relation", label: "Relation", key: (r) => data.groups[r[GROUP]], cell: (r) => data.groups[r[GROUP]].replaceAll("_", "_\u200b"), kind: "", shown: data.groups.length > 1 },
    { title: "Flags", label: "Flags", key: (r) => r[FLAGS].length, cell: (r) => r[FLAGS].map((f) => data.flags[f].replaceAll("_", " ")).join(", "), kind: "flags", shown: data.flags.length > 0 },
  ].filter((c) => c.shown ?? true);
  const state = { find: "", kind: "", group: "", facts: "", flag: "", row: "", sort: 0, down: false, page: 0 };
  let shown = data.rows;
  let haystack = null;

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }
  function pieces(...parts) {
    const fragment = document.createDocumentFragment();
    fragment.append(...parts);
    return fragment;
  }
  function gold(r) {
    const answer = r[ANSWER] ?? "(no answer)";
    const parts = Array.isArray(answer) ? answer.map((text, at) => (at % 2 ? element("mark", text) : text)) : [answer];
    if (r[ALSO].length) parts.push(element("span", "also: " + r[ALSO].join(" · "), "also"));
    if (r[FACTS]?.length) parts.push(brought(r[FACTS]));
    return pieces(...parts);
  }
  function helps(r) {
    return r[LONG] ? "×\u00a0" + r[LONG][3] : "";
  }
  function brought(facts) {
    const more = element("details");
    more.append(element("summary", facts.length === 1 ? "1 fact" : `${facts.length} facts`));
    for (const [question, answer, kind, said] of facts) {
      const line = element("div", undefined, "fact");
      line.append(element("bdi", question), " ", element("strong", answer), " ");
      if (kind < 0) line.append("not labelled");
      else line.append(element("i", "", shapes[kind]), " " + data.categories[kind]);
      if (said !== null) line.append(element("span", ` (model says: ${said || "nothing"})`, "soft"));
      more.append(line);
    }
    return more;
  }
  function rolled(r) {
    if (!r[ROLLED]) return "";
    const counted = r[FACTS].filter((f) => f[2] >= 0);
    const unknown = counted.filter((f) => f[2] === 3).length;
    const cell = element("span", `${unknown} of ${counted.length} Unknown`);
    return pieces(element("i", "", ["no", "hk", "wk", "un"][r[ROLLED]]), " ", cell);
  }
  function says(r) {
    if (r[SAYS] === null) return r[LONG] ? "" : "–";
    const text = element("bdi", r[SAYS] === "" ? "(nothing)" : r[SAYS]);
    if (r[FIRST] === null || r[FIRST] === undefined) return text;
    const mark = element("span", r[FIRST] ? "✓ " : "✗ ", r[FIRST] ? "right" : "wrong");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", r[FIRST] ? "right:" : "wrong:");
    return pieces(mark, text);
  }
  function category(r) {
    if (r[KIND] < 0 && r[LONG]) {
      const more = mostlyLong ? [] : [element("span", `next token ${r[LONG][1]}`, "also"), element("span", `helps ${helps(r)}`, "also")];
      return pieces("long answer", ...more);
    }
    if (r[KIND] < 0) return "not labelled";
    return pieces(element("i", "", shapes[r[KIND]]), " " + data.categories[r[KIND]]);
  }
  function greedy(r) {
    if (r[GREEDY] === null) return r[LONG] ? "" : "–";
    return data.sets ? `${Math.round(r[GREEDY] * data.sets)}/${data.sets}` : r[GREEDY].toFixed(2);
  }
  function sampled(r) {
    if (r[SAMPLED] === null) return r[LONG] ? "" : "–";
    const cell = element("span", probability(r[SAMPLED]));
    if (r[ERROR]) cell.title = `between ${r[SAMPLED]} and ${Math.min(1, r[SAMPLED] + r[ERROR]).toPrecision(3)}`;
    return cell;
  }
  function probability(p) {
    if (p === 0) return "0";
    if (p < 0.0001) return "<0.0001";
    return p < 0.01 ? p.toFixed(4) : p.toFixed(2);
  }

  function matching() {
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !haystack) {
      haystack = data.rows.map((r) => [r[ROW], r[QUESTION], plain(r[ANSWER]), ...r[ALSO], r[SAYS], ...(r[FACTS] ?? []).flatMap((f) => [f[0], f[1], f[3]])].join("\n").toLowerCase());
    }
    const kind = state.kind === "" ? null : Number(state.kind);
    const group = state.group === "" ? null : Number(state.group);
    const flag = state.flag === "" ? null : Number(state.flag);
    const facts = state.facts === "" ? null : Number(state.facts);
    const row = state.row === "" ? null : Number(state.row);
    return data.rows.filter((r, at) =>
      (row === null || r[ROW] === row) && (facts === null || r[ROLLED] === facts) &&
      (kind === null || r[KIND] === kind) && (group === null || r[GROUP] === group) &&
      (flag === null || r[FLAGS].includes(flag)) && words.every((w) => haystack[at].includes(w)));
  }
  const collator = new Intl.Collator("en", { numeric: true });
  function compare(a, b) {
    const empty = (a === null) - (b === null);
    if (empty || a === null) return { order: empty, fixed: true };
    return { order: typeof a === "number" ? a - b : collator.compare(a, b), fixed: false };
  }
  function sorted(rows) {
    const { key } = columns[state.sort];
    const keyed = rows.map((r) => [key(r) ?? null, r]);
    keyed.sort((x, y) => {
      const { order, fixed } = compare(x[0], y[0]);
      return (fixed || !state.down ? order : -order) || x[1][ROW] - y[1][ROW];
    });
    return keyed.map((k) => k[1]);
  }

  function update() {
    shown = sorted(matching());
    state.page = 0;
    draw();
  }
  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    const from = state.page * PAGE;
    const lines = shown.slice(from, from + PAGE).map((r) => {
      const line = element("tr");
      for (const column of columns) {
        const cell = element("td", undefined, column.kind);
        if (column.label) cell.dataset.label = column.label;
        cell.dir = "auto";
        cell.append(column.cell(r));
        if (!cell.textContent) cell.classList.add("none");
        line.append(cell);
      }
      return line;
    });
    byId("row-body").replaceChildren(...lines);
    const range = shown.length ? `Rows ${(from + 1).toLocaleString("en")}–${(from + lines.length).toLocaleString("en")} of ` : "";
    const all = shown.length === data.rows.length ? "" : ` (${data.rows.length.toLocaleString("en")} in all)`;
    byId("status").textContent = shown.length ? range + shown.length.toLocaleString("en") + all : "No row matches. Reset shows all of them.";
    byId("page").textContent = `Page ${state.page + 1} of ${pages}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
    byId("pager").hidden = pages === 1;
    byId("row-table").hidden = !shown.length;
    [...byId("row-head").children].forEach((head, at) => {
      if (at === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      head.querySelector("span").textContent = at === state.sort ? (state.down ? " ↓" : " ↑") : "";
    });
    byId("sort").value = `${state.sort} ${state.down ? 1 : 0}`;
  }
  function turn(by) {
    state.page += by;
    draw();
    if (byId("controls").getBoundingClientRect().top < 0) byId("rows").scrollIntoView();
  }
  function choose(at, down) {
    state.sort = at;
    state.down = down;
    update();
  }
  function show(chosen) {
    Object.assign(state, { find: "", kind: "", group: "", facts: "", flag: "", row: "" }, chosen);
    byId("find").value = state.find;
    byId("by-category").value = state.kind;
    byId("by-group").value = state.group;
    byId("by-facts").value = state.facts;
    byId("by-flag").value = state.flag;
    update();
  }

  function option(select, value, text) {
    const made = element("option", text);
    made.value = value;
    select.append(made);
  }
  data.categories.forEach((name, at) => option(byId("by-category"), String(at), name));
  if (data.rows.some((r) => r[KIND] < 0)) option(byId("by-category"), "-1", "not labelled");
  data.groups.forEach((name, at) => option(byId("by-group"), String(at), name));
  data.rollUp.forEach((name, at) => option(byId("by-facts"), String(at), name));
  data.flags.forEach((name, at) => option(byId("by-flag"), String(at), name.replaceAll("_", " ")));
  byId("by-group").parentElement.hidden = data.groups.length < 2;
  byId("by-category").parentElement.hidden = !labelled && long;
  byId("by-facts").parentElement.hidden = data.rollUp.length === 0;
  byId("by-flag").parentElement.hidden = data.flags.length === 0;
  columns.forEach((column, at) => {
    const head = element("th", undefined, column.kind === "num" ? "num" : "");
    head.scope = "col";
    const button = element("button", column.title);
    button.type = "button";
    button.append(element("span"));
    button.addEventListener("click", () => choose(at, at === state.sort ? !state.down : column.kind === "num" && at > 0));
    head.append(button);
    byId("row-head").append(head);
    const name = column.title === "#" ? "row" : column.title === "P" ? "probability" : column.title.toLowerCase();
    option(byId("sort"), `${at} 0`, name + " ↑");
    option(byId("sort"), `${at} 1`, name + " ↓");
  });

  let waiting = 0;
  byId("find").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.find = event.target.value; state.row = ""; update(); }, 120);
  });
  for (const [id, field] of [["by-category", "kind"], ["by-group", "group"], ["by-facts", "facts"], ["by-flag", "flag"]]) {
    byId(id).addEventListener("change", (event) => { state[field] = event.target.value; state.row = ""; update(); });
  }
  byId("sort").addEventListener("change", (event) => {
    const [at, down] = event.target.value.split(" ").map(Number);
    choose(at, Boolean(down));
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("reset").addEventListener("click", () => { choose(0, false); show({}); });
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  for (const link of document.querySelectorAll("[data-group],[data-category],[data-flag],[data-facts],[data-row],[data-find]")) {
    link.addEventListener("click", () => {
      const { group, category, flag, facts, row, find } = link.dataset;
      const flagged = flag === undefined ? "" : String(data.flags.indexOf(flag));
      show({ group: group ?? "", kind: category ?? "", flag: flagged, facts: facts ?? "", row: row ?? "", find: find ?? "" });
    });
  }
  byId("controls").hidden = false;
  update();
})();
