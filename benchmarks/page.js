// Curves of all runs: one panel a task, filtered by what is chosen. The choice is in the address, so that a link keeps it.
"use strict";
const RUNS = JSON.parse(document.getElementById("runs").textContent);
const NAMES = { deterministic_return: "return", stochastic_return: "return, stochastic policy", success_rate: "success rate",
  stochastic_success_rate: "success rate, stochastic policy" };
const [W, H, LEFT, RIGHT, TOP, BOTTOM] = [460, 280, 56, 18, 10, 34];
const controls = document.getElementById("controls");
const panels = document.getElementById("panels");
const details = document.getElementById("details");
const unique = (values) => [...new Set(values)];

function element(name, attributes = {}, parent = null, text = "") {
  const isSvg = ["svg", "g", "path", "line", "rect", "circle", "text"].includes(name);
  const node = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const choice = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
const count = (set) => RUNS.filter((run) => run.set === set).length;
if (!count(choice.set)) choice.set = unique(RUNS.map((run) => run.set)).sort((a, b) => count(b) - count(a))[0];

function chosen() {
  const inSet = RUNS.filter((run) => run.set === choice.set);
  const metrics = Object.keys(NAMES).filter((name) => inSet.some((run) => run.values[name]));
  if (!metrics.includes(choice.metric)) choice.metric = metrics.includes("success_rate") ? "success_rate" : metrics[0];
  const hidden = new Set((choice.without || "").split(" "));
  const measured = inSet.filter((run) => run.values[choice.metric]);
  const tasks = unique(measured.map((run) => run.task));
  if (!tasks.includes(choice.task)) choice.task = "";
  const shown = measured.filter((run) => (!choice.task || run.task === choice.task) && !hidden.has(run.algo));
  return { inSet, metrics, tasks, measured, shown, hidden };
}

function draw() {
  const now = chosen();
  const kept = Object.fromEntries(Object.entries(choice).filter(([, value]) => value));
  history.replaceState(null, "", "#" + new URLSearchParams(kept));
  drawControls(now);
  panels.replaceChildren();
  for (const task of unique(now.shown.map((run) => run.task))) drawPanel(task, now.shown.filter((run) => run.task === task));
  const pinned = now.shown.find((run) => run.file === choice.run);
  if (pinned) describe(pinned, pinned.values[choice.metric].at(-1));
  else details.textContent = "Point at a curve for its settings and commit; a click keeps them.";
}

function drawControls({ metrics, tasks, measured, hidden }) {
  controls.replaceChildren();
  select("results", "set", unique(RUNS.map((run) => run.set)), (name) => name);
  select("what", "metric", metrics, (name) => NAMES[name]);
  select("task", "task", ["", ...tasks], (name) => name || "all");
  const group = element("div", { class: "algos" }, controls);
  for (const algo of unique(measured.filter((run) => !choice.task || run.task === choice.task).map((run) => run.algo))) {
    const { label, color } = measured.find((run) => run.algo === algo);
    const box = element("label", {}, group);
    const input = element("input", { type: "checkbox" }, box);
    input.checked = !hidden.has(algo);
    input.onchange = () => {
      input.checked ? hidden.delete(algo) : hidden.add(algo);
      choice.without = [...hidden].filter(Boolean).join(" ");
      draw();
    };
    element("span", { class: "dot", style: `background:${color}` }, box);
    box.append(label);
  }
}

function select(title, key, values, name) {
  const box = element("label", {}, controls, `${title} `);
  const list = element("select", {}, box);
  for (const value of values) element("option", { value }, list, name(value));
  list.value = choice[key] || "";
  list.onchange = () => { choice[key] = list.value; draw(); };
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) found.push(value);
  return found;
}

const short = (value) => (Math.abs(value) >= 1000 ? `${+(value / 1000).toFixed(1)}k` : `${+value.toFixed(2)}`);

function drawPanel(task, runs) {
  const figure = element("figure", {}, panels);
  element("figcaption", {}, figure, task);
  const svg = element("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `curves on ${task}` }, figure);
  const points = runs.flatMap((run) => run.values[choice.metric]);
  const last = Math.max(...points.map(([step]) => step));
  let [low, high] = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
  if (choice.metric.includes("success")) [low, high] = [0, 1];
  const margin = (high - low || 1) * 0.04;
  const x = (step) => LEFT + ((W - LEFT - RIGHT) * step) / last;
  const y = (value) => H - BOTTOM - ((H - TOP - BOTTOM) * (value - low + margin)) / (high - low + 2 * margin);
  const offline = Math.max(...runs.map((run) => run.offline));
  if (offline) element("rect", { class: "offline", x: LEFT, y: TOP, width: x(offline) - LEFT, height: H - TOP - BOTTOM }, svg);
  for (const value of ticks(low, high, 5)) {
    element("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }, svg);
    element("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, svg, short(value));
  }
  for (const step of ticks(0, last, 5)) element("text", { x: x(step), y: H - BOTTOM + 16, "text-anchor": "middle" }, svg, short(step));
  element("text", { x: (W + LEFT) / 2, y: H - 3, "text-anchor": "middle" }, svg, offline ? "steps, updates from data shaded" : "steps");
  const line = (values, attributes) =>
    element("path", { d: "M" + values.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("L"), ...attributes }, svg);
  for (const algo of unique(runs.map((run) => run.algo))) {
    const seeds = runs.filter((run) => run.algo === algo).map((run) => ({ run, values: run.values[choice.metric] }));
    for (const { run, values } of seeds) run.path = line(values, { class: seeds.length > 1 ? "run" : "mean", stroke: run.color });
    if (seeds.length > 1) line(mean(seeds.map((seed) => seed.values)), { class: "mean", stroke: seeds[0].run.color });
  }
  const mark = element("circle", { class: "mark", r: 4, visibility: "hidden" }, svg);
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    const [px, py] = [((event.clientX - box.left) * W) / box.width, ((event.clientY - box.top) * H) / box.height];
    let best = { distance: Infinity };
    for (const run of runs)
      for (const point of run.values[choice.metric]) {
        const distance = Math.hypot(x(point[0]) - px, y(point[1]) - py);
        if (distance < best.distance) best = { distance, run, point };
      }
    return best;
  };
  svg.onpointermove = (event) => {
    const { run, point } = nearest(event);
    for (const attribute of [["cx", x(point[0])], ["cy", y(point[1])], ["fill", run.color], ["visibility", "visible"]]) mark.setAttribute(...attribute);
    describe(run, point);
  };
  svg.onclick = (event) => { choice.run = nearest(event).run.file; draw(); };
  svg.onpointerleave = () => { mark.setAttribute("visibility", "hidden"); if (!choice.run) return; draw(); };
}

function mean(curves) {
  // At the steps that all seeds have
  const at = curves.map((curve) => new Map(curve));
  return [...at[0].keys()].filter((step) => at.every((curve) => curve.has(step)))
    .map((step) => [step, at.reduce((sum, curve) => sum + curve.get(step), 0) / at.length]);
}

function describe(run, [step, value]) {
  document.querySelectorAll("path.chosen").forEach((path) => path.classList.remove("chosen"));
  if (run.path) run.path.classList.add("chosen");
  details.replaceChildren();
  element("b", {}, details, `${run.label}, seed ${run.seed}, ${run.task}: `);
  details.append(`${NAMES[choice.metric]} ${short(value)} at ${step.toLocaleString("en")} steps`);
  const facts = { commit: run.commit || "not recorded", machine: run.machine, file: run.file, ...run.settings };
  const list = element("dl", {}, details);
  for (const [name, fact] of Object.entries(facts)) {
    if (fact === "" || fact === undefined) continue;
    element("dt", {}, list, name);
    element("dd", {}, list, String(fact));
  }
}

draw();
