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
  const number = (value, digits = 3) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : digits);
  };
  const flag = (value) => (value === null ? "–" : value ? "yes" : "no");

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

  // Maps.
  const STOPS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"].map(
    (hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)),
  );
  const COLOURS = Array.from({ length: 255 }, (_, i) => {
    const at = (i / 254) * (STOPS.length - 1);
    const k = Math.min(Math.floor(at), STOPS.length - 2);
    return `rgb(${STOPS[k].map((c, j) => Math.round(c + (at - k) * (STOPS[k + 1][j] - c))).join(",")})`;
  });
  const RAMP = `linear-gradient(90deg, ${STOPS.map((c) => `rgb(${c.join(",")})`).join(",")})`;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const places = (text) => new Uint16Array(bytes(text).buffer);
  const slides = data.slides.map((s) => ({ ...s, x: places(s.x), y: places(s.y), picture: null }));
  const maps = new Map(Object.entries(data.maps).map(([g, m]) => [Number(g), m]));
  const picture = (slide) => {
    if (!slide.image) return Promise.resolve(null);
    if (!slide.picture) {
      slide.picture = new Promise((done) => {
        const image = new Image();
        image.onload = () => done(image);
        image.onerror = () => done(null);
        image.src = slide.image;
      });
    }
    return slide.picture;
  };

  // A scale bar below the map, as wide as its length is there, so that it covers no location.
  const scaleBar = (slide) => {
    const step = 10 ** Math.floor(Math.log10(slide.width / 3));
    const length = Math.max(...[1, 2, 5].map((m) => m * step).filter((v) => v <= slide.width / 2.5));
    const line = make("span", null, { class: "length" });
    line.style.width = `${(100 * length) / slide.width}%`;
    const scale = make("div", null, { class: "scale" });
    scale.append(make("span", length >= 1000 ? `${length / 1000} mm` : `${length} µm`), line);
    return scale;
  };

  const draw = async (canvas, slide, values, small) => {
    const image = await picture(slide);
    const width = Math.max(canvas.clientWidth, 60) * Math.min(window.devicePixelRatio || 1, 2);
    const scale = width / slide.width;
    canvas.width = Math.round(width);
    canvas.height = Math.round(slide.height * scale);
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const dots = small || slide.size * scale < 2; // too small to be visible at their own size
    const size = Math.max((dots ? slide.filled : slide.size) * scale, 0.7);
    if (image) {
      pen.globalAlpha = size < 2 ? 0.15 : small ? 0.4 : 0.65; // the colours of small dots mix with the tissue's
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      pen.globalAlpha = 1;
    }
    for (let i = 0; i < values.length; i++) {
      if (values[i] === 255) continue;
      pen.fillStyle = COLOURS[values[i]];
      const x = (slide.x[i] / 65535) * canvas.width;
      const y = (slide.y[i] / 65535) * canvas.height;
      if (slide.square) {
        pen.fillRect(x - size, y - size, 2 * size + 0.3, 2 * size + 0.3);
      } else {
        pen.beginPath();
        pen.arc(x, y, size, 0, 2 * Math.PI);
        pen.fill();
      }
    }
    canvas.dataset.drawn = String(values.length);
  };

  const mapOf = (gene, at, which, small) => {
    const found = maps.get(gene);
    const values = found && found[at] && found[at][which];
    if (!values) return null;
    const [low, high, text] = values;
    const slide = slides[at];
    const what = which === 0 ? "predicted" : "measured";
    const figure = make("figure", null, { class: "map" });
    figure.append(make("figcaption", what));
    const canvas = make("canvas", null, {
      role: "img",
      "aria-label": `${data.genes[gene]}, ${what}, on ${slide.name}: ${number(low, 2)} to ${number(high, 2)}`,
    });
    canvas.style.aspectRatio = `${slide.width} / ${slide.height}`;
    const ramp = make("div", null, { class: "ramp" });
    ramp.style.background = RAMP;
    const ends = make("div", null, { class: "ends" });
    ends.append(make("span", number(low, 2)), make("span", number(high, 2)));
    figure.append(canvas, scaleBar(slide), ramp, ends);
    if (data.units[which]) figure.append(make("div", data.units[which], { class: "unit" }));
    const decoded = bytes(text);
    const redraw = () => draw(canvas, slide, decoded, small);
    requestAnimationFrame(redraw);
    if (window.ResizeObserver) {
      let width = 0;
      new ResizeObserver(() => {
        if (canvas.clientWidth && canvas.clientWidth !== width) {
          width = canvas.clientWidth;
          redraw();
        }
      }).observe(canvas);
    }
    return figure;
  };

  const pairOf = (gene, at, small) => {
    const pair = make("div", null, { class: "pair" });
    const found = (data.measured ? [1, 0] : [0]).map((which) => mapOf(gene, at, which, small)).filter(Boolean);
    if (found.length) {
      pair.append(...found);
      return pair;
    }
    const why = maps.has(gene)
      ? `${data.genes[gene]} was not predicted on this slide.`
      : "There was no room for maps of this gene in the file (max_mb).";
    return make("p", why, { class: "note nomap" });
  };

  let current = 0;
  let chosen = null;
  const choice = byId("slide");
  slides.forEach((s, i) => choice.append(make("option", s.name, { value: i })));
  choice.closest("p").hidden = slides.length < 2;
  const showSlide = (at) => {
    current = at;
    choice.value = String(at);
    showEnds();
    if (chosen !== null) showGene(chosen, false);
  };
  choice.addEventListener("change", () => showSlide(Number(choice.value)));

  const score = data.columns[0].values;
  const onSlide = (gene, at) => {
    const pearson = data.perSlide.find((m) => m.label === "Pearson");
    return pearson ? pearson.values[at][gene] : undefined;
  };
  const showEnds = () => {
    const ends = byId("ends");
    ends.replaceChildren();
    for (const [label, genes] of [["Best", data.best], ["Worst", data.worst]]) {
      if (!genes.length) continue;
      ends.append(make("h3", label));
      const cards = make("div", null, { class: "cards" });
      for (const gene of genes) {
        const card = make("article", null, { class: "card" });
        const head = make("h4");
        const here = slides.length > 1 ? onSlide(gene, current) : undefined;
        const said = `r = ${number(score[gene], 2)}` + (here === undefined ? "" : `, here ${number(here, 2)}`);
        head.append(make("strong", data.genes[gene]), make("span", said));
        card.append(head, pairOf(gene, current, true));
        cards.append(card);
      }
      ends.append(cards);
    }
    if (!ends.children.length) ends.append(make("p", "No gene has a score, so there is neither a best nor a worst.", { class: "note" }));
  };

  // The table: only rows in sight are in the document, so that thousands of genes cost nothing.
  const ROW = 34;
  const viewport = byId("viewport");
  const body = byId("table").tBodies[0];
  const head = byId("table").tHead.rows[0];
  const lower = data.genes.map((g) => g.toLowerCase());
  const columns = [
    { key: "gene", label: "Gene", title: "Symbol", values: data.genes, text: true },
    ...data.columns,
    ...(data.trusted ? [{ key: "trusted", label: "Trusted", title: "The model marks it as trusted; –: not scored in every fold", values: data.trusted, flag: true }] : []),
  ];
  let sorted = { column: 1, down: true };
  let order = [];

  columns.forEach((column, i) => {
    const cell = make("th", null, { scope: "col", title: column.title });
    cell.className = column.text ? "gene" : column.flag ? "flag" : i > 1 ? "wide" : "";
    const button = make("button", null, { type: "button" });
    button.append(make("span", column.label), make("span", "", { class: "direction", "aria-hidden": "true" }));
    button.addEventListener("click", () => {
      sorted = { column: i, down: sorted.column === i ? !sorted.down : !column.text };
      arrange();
    });
    cell.append(button);
    head.append(cell);
  });

  const compare = (a, b) => {
    const values = columns[sorted.column].values;
    const [x, y] = [values[a], values[b]];
    if (x === y) return a - b;
    if (x === null) return 1; // what is not known comes last, whichever way
    if (y === null) return -1;
    const sign = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return sorted.down ? -sign : sign;
  };

  const arrange = () => {
    const wanted = byId("search").value.trim().toLowerCase();
    const only = byId("trusted").checked;
    order = [];
    for (let g = 0; g < lower.length; g++) {
      if ((!wanted || lower[g].includes(wanted)) && (!only || data.trusted[g])) order.push(g);
    }
    order.sort(compare);
    columns.forEach((_, i) => {
      const cell = head.cells[i];
      const isSorted = i === sorted.column;
      cell.setAttribute("aria-sort", isSorted ? (sorted.down ? "descending" : "ascending") : "none");
      cell.querySelector(".direction").textContent = isSorted ? (sorted.down ? " ▼" : " ▲") : "";
    });
    byId("count").textContent = `${order.length.toLocaleString("en")} of ${data.genes.length.toLocaleString("en")} genes`;
    byId("table").setAttribute("aria-rowcount", String(order.length + 1));
    viewport.scrollTop = 0;
    render(true);
  };

  const spacer = (height) => {
    const row = make("tr", null, { class: "spacer", "aria-hidden": "true" });
    const cell = make("td"); // one: a span over columns that are hidden on narrow screens would bring them back
    cell.style.height = `${height}px`;
    row.append(cell);
    return row;
  };

  let shown = "";
  const render = (force) => {
    const first = Math.max(0, Math.floor(viewport.scrollTop / ROW) - 8);
    const last = Math.min(order.length, first + Math.ceil(viewport.clientHeight / ROW) + 16);
    if (!force && shown === `${first}-${last}`) return;
    shown = `${first}-${last}`;
    const focused = document.activeElement && document.activeElement.dataset.gene;
    const rows = document.createDocumentFragment();
    rows.append(spacer(first * ROW));
    for (let i = first; i < last; i++) rows.append(rowOf(order[i], i));
    rows.append(spacer((order.length - last) * ROW));
    body.replaceChildren(rows);
    if (focused) {
      const same = body.querySelector(`button[data-gene="${focused}"]`);
      if (same) same.focus({ preventScroll: true });
    }
  };

  const rowOf = (gene, at) => {
    const row = make("tr", null, { "data-row": at, "aria-rowindex": at + 2, "aria-selected": String(gene === chosen) });
    columns.forEach((column, i) => {
      if (column.text) {
        const cell = make("th", null, { scope: "row", class: "gene" });
        cell.append(make("button", data.genes[gene], { type: "button", "data-gene": gene, title: data.genes[gene] }));
        row.append(cell);
      } else {
        const value = column.values[gene];
        const text = column.flag ? flag(value) : number(value, 2);
        row.append(make("td", text, { class: column.flag ? "flag" : i > 1 ? "wide" : "" }));
      }
    });
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
  window.addEventListener("resize", () => render(false));

  const focusRow = (at) => {
    const top = at * ROW;
    const room = viewport.clientHeight - 2 * ROW; // the header covers one row
    if (top < viewport.scrollTop) viewport.scrollTop = top;
    else if (top > viewport.scrollTop + room) viewport.scrollTop = top - room;
    render(true);
    const button = body.querySelector(`tr[data-row="${at}"] button`);
    if (button) button.focus({ preventScroll: true });
  };

  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-row]");
    if (row) showGene(order[Number(row.dataset.row)], true);
  });
  body.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr[data-row]");
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12 }[event.key];
    if (!row || !step) return;
    event.preventDefault();
    focusRow(Math.min(Math.max(Number(row.dataset.row) + step, 0), order.length - 1));
  });

  const detail = byId("detail");
  const every = byId("every"); // beneath, since a narrow panel does not hold all metrics
  const nothing = detail.innerHTML;
  const close = () => {
    const gene = chosen;
    chosen = null;
    detail.innerHTML = nothing;
    every.hidden = true;
    render(true);
    const at = order.indexOf(gene);
    if (at >= 0) focusRow(at);
  };
  for (const part of [detail, every]) {
    part.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && chosen !== null) close();
    });
  }

  const showGene = (gene, moved) => {
    chosen = gene;
    body.querySelectorAll("tr[data-row]").forEach((row) => {
      row.setAttribute("aria-selected", String(order[Number(row.dataset.row)] === gene));
    });
    detail.replaceChildren();
    const top = make("div", null, { class: "head" });
    const shut = make("button", "Close", { type: "button", "aria-label": "Close the gene" });
    shut.addEventListener("click", close);
    top.append(make("h3", data.genes[gene]), shut);
    const values = make("dl");
    for (const column of columns.slice(1)) {
      const value = column.values[gene];
      values.append(make("dt", column.label, { title: column.title }));
      values.append(make("dd", column.flag ? flag(value) : number(value)));
    }
    detail.append(top, values, make("p", `Maps on ${slides[current].name}`, { class: "note" }), pairOf(gene, current, false));
    every.hidden = !data.perSlide.length;
    if (data.perSlide.length) every.replaceChildren(make("h3", `${data.genes[gene]} on every slide`), slideTable(gene));
    if (moved && detail.getBoundingClientRect().top > window.innerHeight * 0.6) detail.scrollIntoView({ block: "start" });
  };

  const slideTable = (gene) => {
    const holder = make("div", null, { class: "scroll", tabindex: "0" });
    const table = make("table");
    const header = table.createTHead().insertRow();
    header.append(make("th", "slide", { scope: "col" }));
    data.perSlide.forEach((m) => header.append(make("th", m.label, { scope: "col" })));
    const rows = table.createTBody();
    slides.forEach((slide, at) => {
      const row = rows.insertRow();
      row.setAttribute("aria-current", String(at === current));
      const name = make("th", null, { scope: "row" });
      const button = make("button", slide.name, { type: "button", title: "Show the maps on this slide" });
      name.append(button);
      row.append(name);
      row.addEventListener("click", () => {
        showSlide(at); // draws the panel anew, so the focus is put back
        every.querySelectorAll("tbody button")[at].focus({ preventScroll: true });
      });
      data.perSlide.forEach((m) => row.append(make("td", number(m.values[at][gene]))));
    });
    holder.append(table);
    return holder;
  };

  if (data.trusted) byId("only").hidden = false;
  byId("search").addEventListener("input", arrange);
  byId("trusted").addEventListener("change", arrange);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && order.length) {
      event.preventDefault();
      focusRow(0);
    }
  });
  showSlide(0);
  arrange();
  document.documentElement.dataset.ready = "true";
})();
