// Charts: the history in buckets of time, as SVG.

import { get } from "./api.js";
import { cells, h, s, setText, set, table } from "./dom.js";
import { bytes, clock, moment, perSecond, seconds } from "./format.js";

const EVERY_MS = 5000;
const WIDTH = 360;
const HEIGHT = 130;
const LEFT = 58;
const BOTTOM = 18;

const RANGES = [
  [15, "15 minutes"],
  [60, "1 hour"],
  [360, "6 hours"],
  [1440, "1 day"],
  [10080, "7 days"],
];

const whole = (value) => String(Math.round(value));

const COLUMNS = ["from", "requests", "failed", "first token", "speed", "max wait", "switches", "memory"];

const CHARTS = [
  { title: "Time to first token", keys: ["first_token_s", "first_token_p95_s"], names: ["median", "95th percentile"], unit: seconds },
  { title: "Speed", keys: ["tokens_per_s"], names: ["tokens per second"], unit: perSecond },
  { title: "Longest wait in the queue", keys: ["queue_s"], names: ["longest wait"], unit: seconds },
  { title: "Requests", keys: ["requests", "failed"], names: ["all", "failed"], unit: whole, bars: true },
  { title: "Switches", keys: ["switches"], names: ["total"], unit: whole, bars: true },
  { title: "Longest switch", keys: ["switch_s"], names: ["longest switch"], unit: seconds },
  { title: "Memory of models", keys: ["memory"], names: ["memory"], unit: bytes, area: true },
];

export function build(root) {
  const range = h("select", { id: "range" }, ...RANGES.map(([minutes, words]) => h("option", { value: minutes, selected: minutes === 60 }, words)));
  const grid = h("div", { class: "charts" });
  const charts = CHARTS.map((chart) => figure(chart));
  grid.append(...charts.map((chart) => chart.node));
  const numbers = h("tbody");
  const problem = h("p", { class: "bad" });
  root.append(
    h("div", { class: "fields" }, h("div", { class: "field" }, h("label", { for: "range" }, "Range"), range)),
    problem,
    grid,
    h(
      "details",
      { class: "card" },
      h("summary", {}, "As a table"),
      table("Figures", COLUMNS, numbers),
    ),
  );
  let timer = null;
  const draw = async () => {
    clearTimeout(timer);
    try {
      const minutes = Number(range.value);
      const buckets = await get(`/admin/figures?minutes=${minutes}&buckets=${minutes > 15 ? 72 : 45}`);
      for (const chart of charts) chart.draw(buckets);
      const rows = buckets.filter((each) => each.requests || each.switches).reverse();
      numbers.replaceChildren(
        ...rows.map((each) => {
          const row = [moment(each.at), each.requests, each.failed, seconds(each.first_token_s), each.tokens_per_s ? perSecond(each.tokens_per_s) : "–", seconds(each.queue_s), each.switches, bytes(each.memory)];
          return h("tr", { role: "row" }, ...cells(COLUMNS, row.map(String)));
        }),
      );
      setText(problem, "");
    } catch (error) {
      setText(problem, error.message);
    }
    timer = setTimeout(draw, EVERY_MS);
  };
  range.addEventListener("change", draw);
  return { enter: draw, leave: () => clearTimeout(timer) };
}

function figure({ title, keys, names, unit, bars, area }) {
  const last = h("span");
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const node = h("figure", { class: "card" }, h("figcaption", {}, title, last), svg);
  const draw = (buckets) => {
    const series = keys.map((key) => buckets.map((each) => each[key]));
    const values = series.flat().filter((value) => value !== null && value !== undefined);
    const top = nice(Math.max(0, ...values), unit === whole, unit === bytes ? 1024 : 1000);
    const x = (index) => LEFT + ((index + 0.5) / buckets.length) * (WIDTH - LEFT - 4);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - 8);
    const marks = [];
    for (const part of [0, 0.5, 1]) {
      const at = y(part * top);
      marks.push(s("line", { class: "grid", x1: LEFT, x2: WIDTH - 4, y1: at, y2: at }));
      // Half of the smallest unit has the same label as the unit.
      if (values.length && !(part === 0.5 && (unit(part * top) === unit(top) || (unit === whole && top < 2)))) marks.push(s("text", { x: LEFT - 5, y: at + 4, "text-anchor": "end" }, part ? unit(part * top) : "0"));
    }
    marks.push(s("text", { x: LEFT, y: HEIGHT - 4 }, label(buckets[0].at, buckets)));
    marks.push(s("text", { x: WIDTH - 4, y: HEIGHT - 4, "text-anchor": "end" }, "now"));
    series.forEach((line, number) => {
      if (bars) marks.push(...barsOf(line, number, x, y, buckets.length));
      else marks.push(...linesOf(line, number, x, y, area));
    });
    if (!values.length) marks.push(s("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no data yet"));
    svg.replaceChildren(...marks);
    const latest = series.map((line) => line.findLast((value) => value !== null && value !== undefined));
    const summary = bars ? series.map((line, number) => `${names[number]} ${line.reduce((sum, value) => sum + (value ?? 0), 0)}`) : latest.map((value, number) => (value === undefined ? "" : `${keys.length > 1 ? `${names[number]} ` : ""}${unit(value)}`)).filter(Boolean);
    setText(last, summary.join(", "));
    set(svg, "aria-label", values.length ? `${title}: ${bars ? "" : "latest "}${summary.join(", ")}; at most ${unit(Math.max(...values))}` : `${title}: no data yet`);
  };
  return { node, draw };
}

function label(at, buckets) {
  return buckets.at(-1).at - at > 86400 ? moment(at) : clock(at);
}

function barsOf(line, number, x, y, count) {
  const width = Math.max(1, ((WIDTH - LEFT) / count) * 0.75);
  return line.flatMap((value, index) => (value ? [s("rect", { class: number ? "failed" : "barred", x: x(index) - width / 2, y: y(value), width, height: Math.max(1, y(0) - y(value)) })] : []));
}

/** Lines with gaps where there is no data; a single value is a dot. */
function linesOf(line, number, x, y, area) {
  const marks = [];
  let run = [];
  const flush = () => {
    if (run.length === 1) marks.push(s("circle", { class: "dot", cx: run[0][0], cy: run[0][1], r: 2.5 }));
    else if (run.length) {
      const path = run.map(([px, py], index) => `${index ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
      if (area) marks.push(s("path", { class: "area", d: `${path}L${run.at(-1)[0].toFixed(1)} ${y(0)}L${run[0][0].toFixed(1)} ${y(0)}Z` }));
      marks.push(s("path", { class: number ? "b" : "a", d: path }));
    }
    run = [];
  };
  line.forEach((value, index) => {
    if (value === null || value === undefined) flush();
    else run.push([x(index), y(value)]);
  });
  flush();
  return marks;
}

/** The next round number above, in steps of the unit: a thousand, or 1024. */
function nice(value, integer, step) {
  if (value <= 0) return 1;
  const unit = step ** Math.floor(Math.log(value) / Math.log(step));
  const power = unit * 10 ** Math.floor(Math.log10(value / unit));
  const top = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= value) ?? value;
  return integer ? Math.max(1, Math.ceil(top)) : top;
}
