"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const make = (name, text, attributes) => {
    const element = document.createElement(name);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    return element;
  };
  const all = data.columns;
  const N = all.slide.length;
  const STATUS = ["failed", "pending", "complete"];
  const count = (n) => n.toLocaleString("en");

  // Theme: what the system says, until the reader says otherwise.
  const theme = byId("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const showTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(isDark()));
    theme.setAttribute("aria-label", isDark() ? "Change to light colours" : "Change to dark colours");
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // Thumbnails: one long text that is not touched before the first row is drawn; a picture is cut out of it on demand.
  const starts = new Array(N);
  data.thumbs.reduce((at, size, i) => ((starts[i] = at), at + size), 0);
  let pictures = null;
  const thumbOf = (i) => {
    const box = make("div", null, { class: "thumb" });
    if (!data.thumbs[i]) {
      box.textContent = all.status[i] === 2 ? "no image" : "–";
      return box;
    }
    if (pictures === null) pictures = byId("thumbs").textContent;
    const image = make("img", null, { alt: "", loading: "lazy", decoding: "async" });
    image.src = `data:image/jpeg;base64,${pictures.slice(starts[i], starts[i] + data.thumbs[i])}`;
    box.append(image);
    return box;
  };

  // Words.
  const percent = (v) => (v === null ? "–" : `${(100 * v).toFixed(v > 0 && v < 0.0995 ? 1 : 0)}%`);
  const time = (s) => {
    if (s === null) return "–";
    if (s < 90) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
    return s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
  };
  const whole = (v) => (v === null ? "–" : count(v));
  const said = (i) => all.error[i] || all.warnings[i];
  const lines = (text) => text.split("\n").join(" · ");
  const isLow = (i) => all.share[i] !== null && all.share[i] < data.low;

  // Columns: what can be sorted by; those with a class stand in the table.
  const COLUMNS = [
    { key: "status", label: "Status", values: all.status, class: "state" },
    { key: "slide", label: "Slide", values: all.slide, class: "name" },
    { key: "share", label: "In distribution", values: all.share, class: "share" },
    { key: "tiles", label: "Tiles", values: all.tiles, class: "number", down: true },
    { key: "mpp", label: "µm/px", values: all.mpp, class: "number", down: true },
    { key: "seconds", label: "Time", values: all.seconds, class: "number", down: true },
    { key: "said", label: "Error or warnings", values: all.slide.map((_, i) => said(i) || null), class: "said" },
    { key: "donor", label: "Donor", values: all.donor.map((v) => v || null) },
    { key: "finished", label: "Finished", values: all.finished.map((v) => v || null), down: true },
    { key: "worker", label: "Worker", values: all.worker.map((v) => v || null) },
    { key: "genes", label: "Genes", values: all.genes, down: true },
  ];
  const SHOWN = ["slide", "status", "share", "tiles", "mpp", "seconds", "said"].map((key) => COLUMNS.find((c) => c.key === key));
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const ranks = new Map(); // of texts, which are slow to compare again and again
  const rankOf = (column) => {
    if (typeof column.values.find((v) => v !== null) !== "string") return column.values;
    if (!ranks.has(column.key)) {
      const words = [...new Set(column.values)].filter((v) => v !== null).sort(collator.compare);
      const place = new Map(words.map((word, k) => [word, k]));
      ranks.set(column.key, column.values.map((v) => (v === null ? null : place.get(v))));
    }
    return ranks.get(column.key);
  };
  const FILTERS = [
    ["all", "all slides", () => true],
    ["failed", "failed", (i) => all.status[i] === 0],
    ["pending", "pending", (i) => all.status[i] === 1],
    ["complete", "complete", (i) => all.status[i] === 2],
    ["low", `below ${Math.round(100 * data.low)}% in distribution`, isLow],
    ["warned", "complete with warnings", (i) => all.status[i] === 2 && all.warnings[i] !== ""],
  ];
  const show = byId("show");
  for (const [key, label, keeps] of FILTERS) {
    let n = 0;
    for (let i = 0; i < N; i++) n += keeps(i);
    if (n || key === "all") show.append(make("option", `${label} (${count(n)})`, { value: key }));
  }
  const sort = byId("sort");
  COLUMNS.forEach((c, k) => sort.append(make("option", c.label.toLowerCase(), { value: k })));

  const haystack = all.slide.map((_, i) =>
    [all.slide[i], all.donor[i], all.path[i], all.error[i], all.warnings[i], all.worker[i], all.model[i], STATUS[all.status[i]]]
      .join("\n")
      .toLowerCase(),
  );

  const viewport = byId("viewport");
  const body = byId("table").tBodies[0];
  const head = byId("table").tHead.rows[0];
  let sorted = { column: 0, down: false };
  let group = null; // {kind, at}: a kind of error or warning that was chosen
  let order = [];
  let ROW = 76;
  let HEAD = 46;

  SHOWN.forEach((column) => {
    const cell = make("th", null, { scope: "col", class: column.class });
    const button = make("button", null, { type: "button" });
    button.append(make("span", column.label), make("span", "", { class: "direction", "aria-hidden": "true" }));
    button.addEventListener("click", () => {
      const at = COLUMNS.indexOf(column);
      sorted = { column: at, down: sorted.column === at ? !sorted.down : Boolean(column.down) };
      arrange();
    });
    cell.append(button);
    head.append(cell);
  });

  const arrange = () => {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const keeps = FILTERS.find(([key]) => key === show.value)[2];
    const members = group && (group.kind === "error" ? data.errorGroup : data.warningGroup);
    order = [];
    for (let i = 0; i < N; i++) {
      if (keeps(i) && (!members || members[i] === group.at) && words.every((w) => haystack[i].includes(w))) order.push(i);
    }
    const values = rankOf(COLUMNS[sorted.column]);
    const names = rankOf(COLUMNS.find((c) => c.key === "slide"));
    const byStatus = COLUMNS[sorted.column].key === "status";
    const sign = sorted.down ? -1 : 1;
    order.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x !== y) return x === null ? 1 : y === null ? -1 : sign * (x - y); // what is not known comes last
      if (byStatus && all.share[a] !== all.share[b]) {
        return all.share[a] === null ? 1 : all.share[b] === null ? -1 : all.share[a] - all.share[b];
      }
      return names[a] - names[b] || a - b;
    });
    SHOWN.forEach((column, k) => {
      const cell = head.cells[k];
      const isSorted = COLUMNS.indexOf(column) === sorted.column;
      cell.setAttribute("aria-sort", isSorted ? (sorted.down ? "descending" : "ascending") : "none");
      cell.querySelector(".direction").textContent = isSorted ? (sorted.down ? " ▼" : " ▲") : "";
    });
    sort.value = String(sorted.column);
    byId("direction").textContent = sorted.down ? "▼" : "▲";
    byId("direction").setAttribute("aria-label", sorted.down ? "Sorted downwards; sort upwards" : "Sorted upwards; sort downwards");
    byId("count").textContent = `${count(order.length)} of ${count(N)} slides`;
    byId("save").disabled = !order.length;
    byId("clear").hidden = !(words.length || group || show.value !== "all");
    byId("filter").hidden = !group;
    byId("filter").textContent = group ? `Only slides with: ${group.text}` : "";
    document.querySelectorAll(".group").forEach((button) => {
      const own = group && group.kind in button.dataset && Number(button.dataset[group.kind]) === group.at;
      button.setAttribute("aria-pressed", String(Boolean(own)));
    });
    byId("table").setAttribute("aria-rowcount", String(order.length + 1));
    viewport.scrollTop = 0;
    render(true);
  };

  // Only rows in sight are in the document, so that thousands of slides cost nothing.
  const spacer = (height) => {
    const row = make("tr", null, { class: "spacer", "aria-hidden": "true" });
    const cell = make("td");
    cell.style.height = `${height}px`;
    row.append(cell);
    return row;
  };
  const measure = () => {
    const style = getComputedStyle(document.documentElement);
    ROW = parseFloat(style.getPropertyValue("--row"));
    HEAD = parseFloat(style.getPropertyValue("--head"));
  };

  let shown = "";
  const render = (force) => {
    const high = Math.max(340, 0.76 * window.innerHeight); // what the style sheet allows the table
    const first = Math.max(0, Math.floor(viewport.scrollTop / ROW) - 6);
    const last = Math.min(order.length, first + Math.ceil(high / ROW) + 12);
    if (!force && shown === `${first}-${last}-${ROW}`) return;
    shown = `${first}-${last}-${ROW}`;
    const focused = document.activeElement && document.activeElement.dataset.slide;
    const rows = document.createDocumentFragment();
    rows.append(spacer(first * ROW));
    for (let k = first; k < last; k++) rows.append(rowOf(order[k], k));
    rows.append(spacer((order.length - last) * ROW));
    if (!order.length) {
      const row = make("tr");
      row.append(make("td", "No slide fits.", { class: "empty name", colspan: 2 }));
      rows.append(row);
    }
    body.replaceChildren(rows);
    if (focused) {
      const same = body.querySelector(`button[data-slide="${focused}"]`);
      if (same) same.focus({ preventScroll: true });
    }
  };

  const pill = (i, more) => make("span", STATUS[all.status[i]], { class: `pill ${STATUS[all.status[i]]} ${more || ""}` });
  const cellOf = (column, i) => {
    const cell = make(column.key === "slide" ? "th" : "td", null, { class: column.class });
    if (column.key === "slide") {
      cell.setAttribute("scope", "row");
      const box = make("div", null, { class: "slide" });
      const words = make("div");
      words.append(make("button", all.slide[i] || "(no name)", { type: "button", "data-slide": i, title: all.slide[i] }));
      if (all.donor[i]) words.append(make("div", all.donor[i], { class: "sub" }));
      if (said(i)) words.append(make("div", lines(said(i)), { class: `sub narrow ${all.error[i] ? "error" : ""}` }));
      words.append(pill(i, "state-narrow"));
      box.append(thumbOf(i), words);
      cell.append(box);
    } else if (column.key === "status") {
      cell.append(pill(i));
    } else if (column.key === "share") {
      cell.append(make("span", percent(all.share[i]), { class: isLow(i) ? "low" : "" }));
      if (all.share[i] !== null) {
        const meter = make("div", null, { class: "meter", "aria-hidden": "true" });
        const part = make("span");
        part.style.width = `${100 * Math.min(Math.max(all.share[i], 0), 1)}%`;
        meter.append(part);
        cell.append(meter);
      }
    } else if (column.key === "said") {
      const text = said(i);
      cell.append(make("div", text ? lines(text) : "", { class: `clamp ${all.error[i] ? "error" : ""}`, title: text || "" }));
    } else {
      const value = column.values[i];
      cell.textContent = column.key === "seconds" ? time(value) : column.key === "tiles" ? whole(value) : value === null ? "–" : String(value);
    }
    return cell;
  };
  const rowOf = (i, at) => {
    const row = make("tr", null, { "data-row": at, "aria-rowindex": at + 2 });
    for (const column of SHOWN) row.append(cellOf(column, i));
    return row;
  };

  let waiting = false;
  viewport.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      render(false);
    });
  });
  window.addEventListener("resize", () => {
    measure();
    render(false);
  });

  const focusRow = (at) => {
    const top = at * ROW;
    const room = viewport.clientHeight - HEAD - ROW;
    if (top < viewport.scrollTop) viewport.scrollTop = top;
    else if (top > viewport.scrollTop + room) viewport.scrollTop = top - room;
    render(true);
    const button = body.querySelector(`tr[data-row="${at}"] button`);
    if (button) button.focus({ preventScroll: true });
  };
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-row]");
    if (row) open(Number(row.dataset.row));
  });
  body.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr[data-row]");
    if (!row || !order.length) return;
    const page = Math.max(1, Math.floor((viewport.clientHeight - HEAD) / ROW) - 1);
    const at = Number(row.dataset.row);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: order.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    focusRow(Math.min(Math.max(to, 0), order.length - 1));
  });

  // One slide.
  const detail = byId("detail");
  let current = 0;
  const fill = (at) => {
    current = at;
    const i = order[at];
    byId("detail-name").textContent = all.slide[i] || "(no name)";
    const values = make("dl");
    const add = (name, value, kind) => {
      if (value === "" || value === null || value === "–") return;
      values.append(make("dt", name), make("dd", value, kind ? { class: kind } : {}));
    };
    add("status", STATUS[all.status[i]]);
    add("error", all.error[i], "error");
    add("warnings", all.warnings[i]);
    add("in distribution", percent(all.share[i]), isLow(i) ? "error" : "");
    add("tiles", whole(all.tiles[i]));
    add("genes", whole(all.genes[i]));
    add("image", all.mpp[i] === null ? "" : `${all.mpp[i]} µm per pixel`);
    add("donor", all.donor[i]);
    add("path", all.path[i]);
    add("store", all.store[i]);
    if (all.picture[i]) {
      const link = make("a", "picture of the prediction", { href: all.picture[i], rel: "noopener" });
      const value = make("dd");
      value.append(link);
      values.append(make("dt", "picture"), value);
    }
    add("table", all.table[i]);
    add("model", all.model[i] + (all.model_id[i] ? ` (${all.model_id[i]})` : ""));
    add("time", time(all.seconds[i]));
    add("finished", all.finished[i].replace("T", " ").replace(/\.\d+/, ""));
    add("worker", all.worker[i]);
    add("hash of options", all.settings[i]);
    add("fingerprint", all.fingerprint[i]);
    byId("detail-body").replaceChildren(thumbOf(i), values);
    byId("previous").disabled = at === 0;
    byId("next").disabled = at === order.length - 1;
    byId("place").textContent = `${count(at + 1)} of ${count(order.length)}`;
    detail.scrollTop = 0;
  };
  const open = (at) => {
    fill(at);
    if (!detail.open) detail.showModal();
    byId("detail-name").focus({ preventScroll: true });
  };
  const step = (by) => {
    if (current + by >= 0 && current + by < order.length) fill(current + by);
  };
  byId("close").addEventListener("click", () => detail.close());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  detail.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) step(by);
  });
  detail.addEventListener("click", (event) => {
    if (event.target === detail) detail.close(); // the backdrop
  });
  detail.addEventListener("close", () => focusRow(current));

  // Controls.
  byId("search").addEventListener("input", arrange);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && order.length) {
      event.preventDefault();
      focusRow(0);
    }
  });
  show.addEventListener("change", arrange);
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  byId("save").addEventListener("click", () => {
    const rows = [["slide", "path", "donor"]];
    for (const i of order) rows.push([all.slide[i], all.path[i], all.donor[i]]);
    const text = rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
    const link = make("a", null, { download: "slides.csv" });
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  sort.addEventListener("change", () => {
    const column = Number(sort.value);
    sorted = { column, down: Boolean(COLUMNS[column].down) };
    arrange();
  });
  byId("direction").addEventListener("click", () => {
    sorted.down = !sorted.down;
    arrange();
  });
  byId("clear").addEventListener("click", () => {
    byId("search").value = "";
    show.value = "all";
    group = null;
    arrange();
    byId("search").focus();
  });
  document.querySelectorAll(".group").forEach((button) => {
    button.addEventListener("click", () => {
      const kind = button.classList.contains("error") ? "error" : "warning";
      const at = Number(button.dataset[kind]);
      const again = group && group.kind === kind && group.at === at;
      group = again ? null : { kind, at, text: button.querySelector(".what").textContent };
      arrange();
    });
  });

  measure();
  arrange();
  document.documentElement.dataset.ready = "true";
})();
