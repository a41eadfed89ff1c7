"use strict";
(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const data = JSON.parse(one("#data").textContent);
  const percent = (share) => (share * 100).toFixed(1) + "\u00a0%";
  const count = (number) => number.toLocaleString("en-US");
  const name = (index) => data.classes[index];
  const isolated = (text) => make("bdi", { textContent: text });
  // Broken before a row's number and behind a folder, rather than anywhere.
  const identifier = (id) => make("bdi", {}, ...id.split(/(?=#)|(?<=\/)/).flatMap((part, at) => at ? [make("wbr"), part] : [part]));
  const source = (picture) => {
    const [start, rest] = data.pictures.rests[picture];
    return data.pictures.starts[start] + rest;
  };
  // What is shown of an image: its picture, or that there is none.
  const show = (picture, alt) => {
    if (picture === null) return make("div", { className: "missing", textContent: "no picture" });
    const image = make("img", { src: source(picture), alt });
    image.addEventListener("load", () => image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= 64));
    return image;
  };

  // The theme is remembered where the browser lets a file remember.
  const themes = all("[name=theme]");
  const remember = (value) => { try { localStorage.setItem("tlpipe-theme", value); } catch { /* not allowed here */ } };
  try {
    const wanted = one("#theme-" + localStorage.getItem("tlpipe-theme"));
    if (wanted) wanted.checked = true;
  } catch { /* not allowed here */ }
  themes.forEach((theme) => theme.addEventListener("change", () => remember(theme.id.slice("theme-".length))));

  // Tables that sort: by the number or the text of a cell, the other way round when asked again.
  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  for (const table of all("table.sorts")) {
    all("thead th", table).forEach((head, column) => {
      if (head.matches(".bar")) return;
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const rows = [...table.tBodies[0].rows];
        const text = rows.some((row) => Number.isNaN(Number(value(row, column))));
        const down = head.ariaSort ? head.ariaSort === "ascending" : !text;
        const order = (a, b) => {
          const [x, y] = [value(a, column), value(b, column)];
          // What has no figure stands last either way.
          if (x === "" || y === "") return (x === "") - (y === "");
          return (text ? x.localeCompare(y) : x - y) * (down ? -1 : 1);
        };
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.ariaSort = down ? "descending" : "ascending";
        table.tBodies[0].append(...rows.sort(order));
      });
    });
  }

  // A dialog of images, opened from cells and pairs of the confusion matrix.
  const dialog = one("#images");
  const list = (heading, explained, items) => {
    one("h2", dialog).replaceChildren(...heading);
    one("p", dialog).replaceChildren(...explained);
    one("ol", dialog).replaceChildren(...items.map(([id, confidence, picture]) => make("li", {},
      show(picture, id),
      make("div", { className: "line" }, make("span", { textContent: "confidence" }), make("span", { textContent: percent(confidence) })),
      make("div", { className: "id", title: id }, identifier(id)))));
    dialog.showModal();
    one("button", dialog).focus();
  };
  const openCell = (label, predicted) => {
    const cell = data.cells.find((cell) => cell.l === label && cell.p === predicted);
    if (!cell) return;
    const right = label === predicted;
    const heading = right ? [isolated(name(label)), " answered right"] : [isolated(name(label)), " taken for ", isolated(name(predicted))];
    const shown = cell.items.length < cell.n ? `, the ${cell.items.length} ${right ? "least" : "most"} confident of them here` : "";
    list(heading, [`${count(cell.n)} image${cell.n === 1 ? "" : "s"}, ${percent(cell.n / cell.of)} of the class${shown}.`], cell.items);
  };
  if (dialog) dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  const cellButtons = all(".matrix td[data-c]").map((cell) => {
    const [label, predicted] = cell.dataset.c.split(",").map(Number);
    const button = make("button", { type: "button", tabIndex: -1 }, ...cell.childNodes);
    button.setAttribute("aria-label", cell.title);
    button.addEventListener("click", () => openCell(label, predicted));
    cell.append(button);
    return button;
  });
  // One stop for the tab key, then arrows: a matrix has too many cells to pass through.
  if (cellButtons.length) cellButtons[0].tabIndex = 0;
  for (const table of all(".matrix")) {
    table.addEventListener("keydown", (event) => {
      const [down, across] = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key] ?? [0, 0];
      const cell = event.target.closest("td");
      if (!cell || (!down && !across)) return;
      event.preventDefault();
      const rows = table.tBodies[0].rows;
      let [row, column] = [cell.parentNode.sectionRowIndex + down, cell.cellIndex + across];
      while (rows[row]?.cells[column]) {
        const next = one("button", rows[row].cells[column]);
        if (next) {
          event.target.tabIndex = -1;
          next.tabIndex = 0;
          return next.focus();
        }
        [row, column] = [row + down, column + across];
      }
    });
  }
  for (const pair of all("[data-pair]")) {
    const [label, predicted] = pair.dataset.pair.split(",").map(Number);
    if (!data.cells.some((cell) => cell.l === label && cell.p === predicted)) continue;
    const button = make("button", { type: "button", className: "open" }, ...pair.childNodes);
    button.addEventListener("click", () => openCell(label, predicted));
    pair.append(button);
  }
  all(".heat rect").forEach((square, index) => {
    const [label, predicted, images] = data.heat[index];
    square.append(Object.assign(document.createElementNS(square.namespaceURI, "title"),
      { textContent: `${name(label)} answered as ${name(predicted)}: ${count(images)}` }));
    if (!data.cells.some((cell) => cell.l === label && cell.p === predicted)) return;
    square.style.cursor = "pointer";
    square.addEventListener("click", () => openCell(label, predicted));
  });
  // The map: the point nearest to the pointer, or to which the arrows lead, shows its image.
  const map = one(".map");
  if (map) {
    const svg = one("svg", map);
    const circles = all("circle", svg);
    const points = data.points.map(([label, predicted, confidence, picture, id, x, y], index) => {
      const circle = circles[index];
      return { label, predicted, confidence, picture, id, marks: [circle], at: { tsne: [+circle.getAttribute("cx"), +circle.getAttribute("cy")], pca: [x, y] } };
    });
    points.filter((point) => point.label !== point.predicted).forEach((point, ring) => point.marks.push(circles[points.length + ring]));
    let plane = "tsne";
    let shown = () => true;
    let current = null;
    const tip = one(".tip", map);
    const hide = () => {
      if (current) current.marks[0].classList.remove("at");
      current = null;
      tip.hidden = true;
    };
    const select = (point) => {
      if (point === current) return;
      hide();
      current = point;
      point.marks[0].classList.add("at");
      const answer = point.label === point.predicted ? [make("b", {}, isolated(name(point.label)))]
        : [make("b", {}, isolated(name(point.predicted))), " instead of ", make("b", {}, isolated(name(point.label)))];
      tip.replaceChildren(show(point.picture, ""), make("div", {}, ...answer, ` · ${percent(point.confidence)}`),
        make("div", { className: "muted" }, identifier(point.id)));
      tip.hidden = false;
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const [x, y] = point.at[plane].map((value) => value * scale);
      const left = x + 14 + tip.offsetWidth > box.width ? x - 14 - tip.offsetWidth : x + 14;
      tip.style.left = `${Math.max(0, left)}px`;
      tip.style.top = `${Math.max(0, Math.min(y - 20, box.height - tip.offsetHeight))}px`;
    };
    const nearest = (x, y, among) => {
      let best = null, least = Infinity;
      for (const point of among) {
        const distance = Math.hypot(point.at[plane][0] - x, point.at[plane][1] - y);
        if (distance < least) [best, least] = [point, distance];
      }
      return [best, least];
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const [point, distance] = nearest((event.clientX - box.left) * scale, (event.clientY - box.top) * scale, points.filter(shown));
      if (point && distance < 24 * scale) select(point); else hide();
    });
    svg.addEventListener("pointerleave", hide);
    svg.tabIndex = 0;
    svg.addEventListener("blur", hide);
    svg.addEventListener("focus", () => { if (!current && svg.matches(":focus-visible")) select(points.find(shown) ?? points[0]); });
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
      if (!right && !down) return;
      event.preventDefault();
      if (!current) return select(points.find(shown) ?? points[0]);
      const [x, y] = current.at[plane];
      // Within a quarter of the plane, so that four arrows reach every point.
      const ahead = points.filter((point) => {
        const [across, along] = [point.at[plane][0] - x, point.at[plane][1] - y];
        const [forward, sideways] = right ? [across * right, Math.abs(along)] : [along * down, Math.abs(across)];
        return shown(point) && forward > 0 && sideways <= forward;
      });
      const [point] = nearest(x, y, ahead);
      if (point) select(point);
    });
    const place = () => {
      hide();
      for (const point of points) for (const mark of point.marks) {
        mark.setAttribute("cx", point.at[plane][0]);
        mark.setAttribute("cy", point.at[plane][1]);
      }
    };
    all("[name=plane]").forEach((choice) => choice.addEventListener("change", () => { plane = choice.value; place(); }));
    const choose = (test) => {
      shown = test;
      hide();
      for (const point of points) for (const mark of point.marks) mark.classList.toggle("dim", !shown(point));
    };
    const chips = all("[data-class]");
    const pick = (wanted) => {
      chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.class === wanted)));
      if (wanted === null) choose(() => true);
      else if (wanted === "wrong") choose((point) => point.label !== point.predicted);
      else choose((point) => point.label === +wanted || point.predicted === +wanted);
    };
    chips.forEach((chip) => {
      chip.setAttribute("aria-pressed", "false");
      chip.addEventListener("click", () => pick(chip.ariaPressed === "true" ? null : chip.dataset.class));
    });
    const menu = one("#highlight");
    if (menu) menu.addEventListener("change", () => pick(menu.value === "" ? null : menu.value));
    all(".needs-script").forEach((element) => { element.hidden = false; });
  }
})();
