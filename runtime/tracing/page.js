
"use strict";
(() => {
  const trace = JSON.parse(document.getElementById("trace").textContent);
  const count = trace.members.length;
  const NONE = count;
  const tokens = trace.tokens.length;
  const promptTokens = trace.tokens.filter((token) => !token.generated).length;
  const none = { name: "no member", letter: "-", colour: null };
  // A smaller share is rounding, and is not shown.
  const LEAST_SHARE = 0.0005;
  const memberAt = (index) => (index === NONE ? none : trace.members[index]);
  const kindsOn = trace.kinds.map(() => true);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosenMember = null;
  let chosenToken = null;
  // Of the modules that are counted: the members' weights per token, [tokens][members + 1], rows summing to 1.
  let shares = null;

  const byId = (id) => document.getElementById(id);
  const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    // Text from the trace enters the page here, as text nodes and never as markup.
    element.append(...children);
    return element;
  }

  // Characters that nobody sees, or that reorder others, are shown by their code.
  function visible(text) {
    return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (character) => {
      if (character === "\n") return "\u21b5";
      if (character === "\t") return "\u21e5";
      return "\\u{" + character.codePointAt(0).toString(16) + "}";
    });
  }

  function percent(share) {
    const value = 100 * share;
    if (value > 0 && value < 0.5) return "<1 %";
    return `${value > 99 && value < 100 ? Math.floor(value) : Math.round(value)} %`;
  }

  // The paths of layers without what is the same in all of them.
  const layerNames = (() => {
    const stacks = new Set(trace.layers.filter((layer) => layer).map((layer) => layer.replace(/\.?\d+$/, "")));
    return trace.layers.map((layer) => {
      if (!layer) return "outside";
      return stacks.size === 1 ? layer.match(/\d+$/)[0] : layer;
    });
  })();

  function sharesOf(modules) {
    const total = new Float32Array(tokens * (count + 1));
    if (!modules.length) return total;
    // Modules that share a table are counted in one pass over it.
    const times = new Map();
    for (const module of modules) times.set(module.routing, (times.get(module.routing) ?? 0) + 1);
    for (const [index, factor] of times) {
      const { slots, selection, weights } = trace.routings[index];
      const scale = factor / (1000 * modules.length);
      for (let token = 0; token < tokens; token++) {
        for (let entry = token * slots; entry < (token + 1) * slots; entry++) {
          if (selection[entry] >= 0) total[token * (count + 1) + selection[entry]] += weights[entry] * scale;
        }
      }
    }
    for (let token = 0; token < tokens; token++) {
      let sum = 0;
      for (let member = 0; member < count; member++) sum += total[token * (count + 1) + member];
      // Weights were rounded to a thousandth.
      total[token * (count + 1) + NONE] = sum > 0.99 ? 0 : 1 - sum;
    }
    return total;
  }

  const rowOf = (table, token) => table.subarray(token * (count + 1), (token + 1) * (count + 1));

  function leading(row) {
    let best = 0;
    for (let member = 1; member <= count; member++) if (row[member] > row[best]) best = member;
    return best;
  }

  function ranked(row) {
    return [...row.keys()].filter((member) => row[member] > LEAST_SHARE).sort((a, b) => row[b] - row[a] || a - b);
  }

  // All members, and no member where some row has a share for it.
  function shownMembers(rows) {
    return [...Array(count).keys(), ...(rows.some((row) => row[NONE] > LEAST_SHARE) ? [NONE] : [])];
  }

  const countedModules = () => trace.modules.filter((module) => kindsOn[module.kind]);

  const channels = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  const pageColour = () => (dark.matches ? "#14171c" : "#ffffff");

  function mix(colour, amount) {
    const page = channels(pageColour());
    return channels(colour).map((value, i) => Math.round(value * amount + page[i] * (1 - amount)));
  }

  function inkOn(rgb) {
    const [r, g, b] = rgb.map((value) => (value / 255 <= 0.04045 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
  }

  function letterChip(member) {
    const { letter, colour } = memberAt(member);
    const chip = make("span", { class: colour ? "letter" : "letter none", "aria-hidden": "true" }, letter);
    if (colour) chip.style.backgroundColor = colour;
    return chip;
  }

  function showFacts() {
    const facts = [
      ["Bundle", trace.bundle], ["Base", trace.base ?? "not named"], ["Scope", trace.scope],
      ["Slots", String(trace.topK)], ["Temperature", String(trace.temperature)],
      ["Tokens", `${promptTokens} of the prompt, ${tokens - promptTokens} of the answer`],
      ["Modules", `${trace.modules.length} in ${trace.layers.length} layers`],
    ];
    byId("facts").append(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, visible(value)))));
    byId("warning").hidden = trace.gateFitted;
    document.title = `Routing trace of ${visible(trace.bundle)}`;
  }

  function meanShares(table, from, to) {
    const mean = new Float64Array(count + 1);
    for (let token = from; token < to; token++) rowOf(table, token).forEach((share, member) => { mean[member] += share; });
    return to > from ? mean.map((share) => share / (to - from)) : mean;
  }

  function showMembers() {
    const mean = meanShares(shares, 0, tokens);
    byId("members").replaceChildren(...shownMembers([mean]).map((member) => {
      const name = memberAt(member).name;
      const button = make("button", { type: "button", "aria-pressed": String(chosenMember === member), title: name },
        letterChip(member), make("span", { class: "name" }, name), make("span", { class: "share" }, percent(mean[member])));
      button.dataset.member = member;
      button.addEventListener("click", () => {
        chosenMember = chosenMember === member ? null : member;
        document.querySelectorAll("#members button").forEach((each) => {
          each.setAttribute("aria-pressed", String(Number(each.dataset.member) === chosenMember));
        });
        dimTokens();
      });
      return make("li", {}, button);
    }));
  }

  function showKinds() {
    byId("kinds").append(...trace.kinds.map((kind, index) => {
      const box = make("input", { type: "checkbox", "data-kind": kind });
      box.checked = true;
      box.addEventListener("change", () => {
        // One kind always stays, or there would be nothing to show.
        if (!box.checked && kindsOn.filter(Boolean).length === 1) { box.checked = true; return; }
        kindsOn[index] = box.checked;
        draw();
      });
      return make("label", {}, box, " " + kind);
    }));
  }

  function describeToken(token, row) {
    const parts = ranked(row).map((member) => `${memberAt(member).name} ${percent(row[member])}`);
    return `\u201c${visible(trace.tokens[token].text)}\u201d: ${parts.join(", ")}`;
  }

  function makeTokens() {
    for (const [id, from, to] of [["prompt", 0, promptTokens], ["answer", promptTokens, tokens]]) {
      const box = byId(id);
      for (let token = from; token < to; token++) {
        const text = trace.tokens[token].text;
        const element = make("span", { role: "option", class: "token", id: `token-${token}` }, visible(text) || "\u00b7");
        element.dataset.token = token;
        element.tabIndex = token === from ? 0 : -1;
        box.append(element);
        if (text.endsWith("\n")) box.append("\n");
      }
      box.addEventListener("pointerover", (event) => { if (event.target.dataset.token) showTip(event.target); });
      box.addEventListener("pointerleave", hideTip);
      box.addEventListener("focusin", (event) => { if (event.target.dataset.token) showTip(event.target); });
      box.addEventListener("focusout", hideTip);
      box.addEventListener("click", (event) => { if (event.target.dataset.token) chooseToken(Number(event.target.dataset.token)); });
      box.addEventListener("keydown", (event) => moveBetweenTokens(event, from, to));
    }
  }

  function moveBetweenTokens(event, from, to) {
    const here = Number(event.target.dataset.token);
    const steps = { ArrowRight: here + 1, ArrowDown: here + 10, ArrowLeft: here - 1, ArrowUp: here - 10, Home: from, End: to - 1 };
    if (event.key === "Enter" || event.key === " ") chooseToken(here);
    else if (event.key === "Escape") { hideTip(); return; }
    else if (event.key in steps) {
      const next = byId(`token-${clamp(steps[event.key], from, to - 1)}`);
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    } else return;
    event.preventDefault();
  }

  function colourTokens() {
    let before = null;
    for (let token = 0; token < tokens; token++) {
      if (token === promptTokens) before = null;
      const row = rowOf(shares, token);
      const best = leading(row);
      const { colour, letter } = memberAt(best);
      const element = byId(`token-${token}`);
      element.classList.toggle("none", colour === null);
      element.classList.toggle("first", best !== before);
      element.dataset.letter = letter;
      element.dataset.member = best;
      element.style.backgroundColor = colour ?? "";
      element.style.backgroundImage = row[best] < 0.95 ? shareLine(row) : "";
      element.setAttribute("aria-label", describeToken(token, row));
      before = best;
    }
  }

  function shareLine(row) {
    let at = 0;
    const stops = ranked(row).map((member) => {
      const colour = memberAt(member).colour ?? pageColour();
      const stop = `${colour} ${(100 * at).toFixed(1)}% ${(100 * (at + row[member])).toFixed(1)}%`;
      at += row[member];
      return stop;
    });
    return `linear-gradient(to right, ${stops.join(", ")})`;
  }

  function dimTokens() {
    for (let token = 0; token < tokens; token++) {
      const element = byId(`token-${token}`);
      element.classList.toggle("dim", chosenMember !== null && Number(element.dataset.member) !== chosenMember);
    }
  }

  function chooseToken(token) {
    if (chosenToken !== null) {
      byId(`token-${chosenToken}`).classList.remove("chosen");
      byId(`token-${chosenToken}`).removeAttribute("aria-selected");
    }
    chosenToken = token;
    const element = byId(`token-${token}`);
    element.classList.add("chosen");
    element.setAttribute("aria-selected", "true");
    moveCursor(0, token);
    const scroll = byId("grid-scroll");
    scroll.scrollLeft = token * grid.width - scroll.clientWidth / 2;
  }

  const SHOWN_MEMBERS = 8;

  function fillTip(head, text, row) {
    const order = ranked(row);
    const rows = order.slice(0, SHOWN_MEMBERS).map((member) =>
      make("div", { class: "row" }, letterChip(member), make("span", {}, memberAt(member).name), make("span", {}, percent(row[member]))));
    if (order.length > SHOWN_MEMBERS) rows.push(make("div", { class: "head" }, `and ${order.length - SHOWN_MEMBERS} more`));
    byId("tip").replaceChildren(make("div", { class: "head" }, head), make("code", {}, visible(text) || "\u00b7"), ...rows);
  }

  function placeTip(box) {
    const tip = byId("tip");
    tip.hidden = false;
    const left = Math.min(box.left, innerWidth - tip.offsetWidth - 8);
    const below = box.bottom + 8;
    const top = below + tip.offsetHeight < innerHeight ? below : box.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  }

  const headOf = (token) => {
    const { generated, id } = trace.tokens[token];
    return `token ${token + 1} of ${tokens}, ${generated ? "answer" : "prompt"}, id ${id}`;
  };

  function showTip(element) {
    const token = Number(element.dataset.token);
    fillTip(headOf(token), trace.tokens[token].text, rowOf(shares, token));
    element.setAttribute("aria-describedby", "tip");
    placeTip(element.getClientRects()[0] ?? element.getBoundingClientRect());
  }

  function hideTip() { byId("tip").hidden = true; }

  // Past this width browsers stop drawing; past so many tokens a letter in each cell helps nobody.
  const MAX_WIDTH = 30000;
  const LETTERED_TOKENS = 1024;
  const grid = {
    width: tokens <= LETTERED_TOKENS ? 16 : clamp(Math.floor(MAX_WIDTH / tokens), 3, 8),
    height: 16,
    layer: 0,
    token: 0,
  };
  let layerShares = [];

  function countLayers() {
    const modules = countedModules();
    layerShares = trace.layers.map((_, layer) => sharesOf(modules.filter((module) => module.layer === layer)));
  }

  function drawGrid() {
    const canvas = byId("grid-cells");
    const context = canvas.getContext("2d");
    const [width, height] = [tokens * grid.width, trace.layers.length * grid.height];
    const sharpness = width * devicePixelRatio <= MAX_WIDTH ? devicePixelRatio : 1;
    canvas.width = Math.round(width * sharpness);
    canvas.height = Math.round(height * sharpness);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    context.scale(sharpness, sharpness);
    context.font = "10px ui-monospace, 'DejaVu Sans Mono', monospace";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let layer = 0; layer < trace.layers.length; layer++) {
      for (let token = 0; token < tokens; token++) drawCell(context, layer, token);
    }
    if (promptTokens && promptTokens < tokens) {
      context.fillStyle = getComputedStyle(document.body).color;
      context.fillRect(promptTokens * grid.width - 1, 0, 2, height);
    }
  }

  function drawCell(context, layer, token) {
    const row = rowOf(layerShares[layer], token);
    const best = leading(row);
    const { colour, letter } = memberAt(best);
    if (colour === null || !row[best]) return;
    const rgb = mix(colour, 0.25 + 0.75 * row[best]);
    context.fillStyle = `rgb(${rgb.join(" ")})`;
    const gap = grid.width > 6 ? 1 : 0;
    context.fillRect(token * grid.width, layer * grid.height, grid.width - gap, grid.height - 1);
    if (tokens <= LETTERED_TOKENS) {
      context.fillStyle = inkOn(rgb);
      context.fillText(letter, (token + 0.5) * grid.width - gap / 2, (layer + 0.5) * grid.height, grid.width - 2);
    }
  }

  function makeGrid() {
    byId("grid-layers").append(...layerNames.map((name) => {
      const label = make("div", { title: name }, name);
      label.style.height = label.style.lineHeight = `${grid.height}px`;
      return label;
    }));
    const canvas = byId("grid-cells");
    const cellAt = (event) => {
      const box = canvas.getBoundingClientRect();
      const layer = Math.floor((event.clientY - box.top) / grid.height);
      const token = Math.floor((event.clientX - box.left) / grid.width);
      return [clamp(layer, 0, trace.layers.length - 1), clamp(token, 0, tokens - 1)];
    };
    canvas.addEventListener("pointermove", (event) => {
      const [layer, token] = cellAt(event);
      moveCursor(layer, token);
      fillTip(`layer ${layerNames[layer]}, ${headOf(token)}`, trace.tokens[token].text, rowOf(layerShares[layer], token));
      placeTip(byId("grid-cursor").getBoundingClientRect());
    });
    canvas.addEventListener("pointerleave", hideTip);
    canvas.addEventListener("focus", () => moveCursor(grid.layer, grid.token));
    canvas.addEventListener("click", (event) => {
      const [layer, token] = cellAt(event);
      const { scrollLeft } = byId("grid-scroll");
      chooseToken(token);
      moveCursor(layer, token);
      byId("grid-scroll").scrollLeft = scrollLeft;
      byId(`token-${token}`).scrollIntoView({ block: "nearest" });
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      moveCursor(clamp(grid.layer + step[0], 0, trace.layers.length - 1), clamp(grid.token + step[1], 0, tokens - 1));
      byId("grid-cursor").scrollIntoView({ block: "nearest", inline: "nearest" });
    });
  }

  function moveCursor(layer, token) {
    [grid.layer, grid.token] = [layer, token];
    const cursor = byId("grid-cursor");
    cursor.hidden = false;
    cursor.style.left = `${token * grid.width}px`;
    cursor.style.top = `${layer * grid.height}px`;
    cursor.style.width = `${grid.width - 1}px`;
    cursor.style.height = `${grid.height - 1}px`;
    byId("grid-cell").textContent =
      `Layer ${layerNames[layer]}, token ${token + 1}, ${describeToken(token, rowOf(layerShares[layer], token))}`;
  }

  function drawMap() {
    const chosen = byId("map-tokens").value;
    const [from, to] = { all: [0, tokens], prompt: [0, promptTokens], answer: [promptTokens, tokens] }[chosen];
    const rows = layerShares.map((table) => meanShares(table, from, to));
    const shown = shownMembers(rows);
    const head = make("tr", {}, make("th", { scope: "col" }, "layer"));
    for (const member of shown) {
      head.append(make("th", { scope: "col", title: memberAt(member).name },
        make("span", { class: "name" }, memberAt(member).name), letterChip(member)));
    }
    byId("map").tHead.replaceChildren(head);
    byId("map").tBodies[0].replaceChildren(...rows.map((row, layer) => {
      const line = make("tr", {}, make("th", { scope: "row" }, layerNames[layer]));
      for (const member of shown) line.append(mapCell(layer, member, row[member]));
      return line;
    }));
  }

  function mapCell(layer, member, share) {
    const { name, colour } = memberAt(member);
    const cell = make("td", { title: `layer ${layerNames[layer]}, ${name}: ${(100 * share).toFixed(1)} %` }, share < 0.005 ? "" : String(Math.round(100 * share)));
    const rgb = mix(colour ?? "#888888", share);
    cell.style.backgroundColor = `rgb(${rgb.join(" ")})`;
    cell.style.color = inkOn(rgb);
    return cell;
  }

  function draw() {
    shares = sharesOf(countedModules());
    countLayers();
    showMembers();
    colourTokens();
    dimTokens();
    drawGrid();
    drawMap();
  }

  showFacts();
  showKinds();
  makeTokens();
  makeGrid();
  draw();
  byId("map-tokens").addEventListener("change", drawMap);
  dark.addEventListener("change", draw);
  document.documentElement.dataset.ready = "true";
})();
