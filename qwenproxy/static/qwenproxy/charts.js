// The two charts of the Overview. Drag to zoom, double click to see all, click a bar for its requests.
"use strict";

const data = JSON.parse(document.getElementById("chart-data").textContent);
const starts = data.start.map((ms) => ms / 1000);
const inZone = (seconds) => uPlot.tzDate(new Date(seconds * 1000), data.zone === "UTC" ? "Etc/UTC" : data.zone);
const shownTime = new Intl.DateTimeFormat("sv-SE", {
  timeZone: data.zone, year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit",
});

function shownMs(ms) {
  if (ms === null) return "–";
  return ms < 999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function colours(element) {
  const style = getComputedStyle(element);
  return (name) => style.getPropertyValue(name).trim();
}

function axes(colour, values) {
  const common = { stroke: colour("--body-quiet-color"), grid: { stroke: colour("--hairline-color"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  return [{ ...common, grid: { show: false }, size: 34, values: times }, { ...common, size: 52, values }];
}

// 24-hour clock; a date where a day begins.
function times(plot, splits) {
  let day = null;
  return splits.map((seconds) => {
    const at = inZone(seconds);
    const date = `${at.getMonth() + 1}/${at.getDate()}`;
    const clock = `${String(at.getHours()).padStart(2, "0")}:${String(at.getMinutes()).padStart(2, "0")}`;
    const isNew = date !== day;
    day = date;
    if (clock === "00:00") return date;
    return isNew && splits.length && seconds === splits[0] ? `${clock}\n${date}` : clock;
  });
}

// What is not over yet is veiled.
function veil(plot, colour) {
  const last = data.is_complete.length - 1;
  if (last < 0 || data.is_complete[last]) return;
  const left = plot.valToPos(starts[last], "x", true);
  const right = Math.min(plot.valToPos(data.end[last] / 1000, "x", true), plot.bbox.left + plot.bbox.width);
  plot.ctx.save();
  plot.ctx.strokeStyle = colour("--card-bg");
  plot.ctx.lineWidth = 2 * devicePixelRatio;
  plot.ctx.beginPath();
  plot.ctx.rect(left, plot.bbox.top, right - left, plot.bbox.height);
  plot.ctx.clip();
  for (let x = left - plot.bbox.height; x < right; x += 6 * devicePixelRatio) {
    plot.ctx.moveTo(x, plot.bbox.top + plot.bbox.height);
    plot.ctx.lineTo(x + plot.bbox.height, plot.bbox.top);
  }
  plot.ctx.stroke();
  plot.ctx.restore();
}

function tip(lines) {
  const box = document.createElement("div");
  box.className = "chart-tip";
  box.hidden = true;
  return {
    hooks: {
      init: (plot) => plot.over.append(box),
      setCursor: (plot) => {
        const index = plot.cursor.idx;
        box.hidden = index === null || index === undefined || plot.cursor.left < 0;
        if (box.hidden) return;
        box.textContent = [shownTime.format(data.start[index]), ...lines(index)].join("\n");
        const room = plot.over.clientWidth - box.offsetWidth - 8;
        box.style.left = `${Math.max(0, Math.min(plot.cursor.left + 8, room))}px`;
        box.style.top = "4px";
      },
    },
  };
}

// `top`: of the axis while there is nothing to show.
function base(element, colour, values, top = 1) {
  const first = starts[0];
  const end = data.end.at(-1) / 1000;
  return {
    width: element.clientWidth,
    height: element.clientHeight,
    tzDate: inZone,
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
    scales: { x: { time: true, range: (plot, min, max) => (min === first && max === starts.at(-1) ? [first, end] : [min, max]) }, y: { range: (plot, min, max) => [0, max > 0 ? max * 1.05 : top] } },
    axes: axes(colour, values),
  };
}

function drawRequests(element) {
  const colour = colours(element);
  const failed = data.completed.map((n, index) => n + data.failed[index]);
  const all = failed.map((n, index) => n + data.cancelled[index]);
  // Bars stand at the beginning of their time and reach to its right.
  const paths = uPlot.paths.bars({ align: 1, size: [0.85, Infinity] });
  const bar = (name) => ({ paths, points: { show: false }, fill: colour(name), stroke: colour(name), width: 0 });
  const options = base(element, colour, (plot, splits) => splits.map((n) => (Number.isInteger(n) ? n.toLocaleString("en") : "")));
  const plot = new uPlot(
    {
      ...options,
      series: [{}, bar("--chart-cancelled"), bar("--chart-failed"), bar("--chart-completed")],
      hooks: { draw: [(one) => veil(one, colour)] },
      plugins: [tip((i) => [`${data.completed[i]} completed`, `${data.failed[i]} failed`, `${data.cancelled[i]} cancelled`])],
    },
    [starts, all, failed, data.completed],
    element,
  );
  openOnClick(plot);
  return plot;
}

function openOnClick(plot) {
  // Not everyone may see them.
  if (!data.requests_url) return;
  let downAt = null;
  plot.over.addEventListener("mousedown", (event) => { downAt = event.clientX; });
  plot.over.addEventListener("click", (event) => {
    const index = plot.cursor.idx;
    // A drag has zoomed.
    if (index === null || index === undefined || Math.abs(event.clientX - downAt) > 3) return;
    location.href = `${data.requests_url}?from=${data.start[index]}&to=${data.end[index]}&by=ended`;
  });
}

function drawLatency(element) {
  const colour = colours(element);
  const line = (name) => ({ stroke: colour(name), width: 2, spanGaps: false, points: { show: false } });
  const options = base(element, colour, (plot, splits) => splits.map(shownMs), 1000);
  return new uPlot(
    {
      ...options,
      series: [{}, line("--chart-p50"), line("--chart-p95")],
      plugins: [tip((i) => [`p50 ${shownMs(data.p50_ms[i])}`, `p95 ${shownMs(data.p95_ms[i])}`])],
    },
    [starts, data.p50_ms, data.p95_ms],
    element,
  );
}

const charts = [["chart-requests", drawRequests], ["chart-ttft", drawLatency]].map(([id, draw]) => ({ element: document.getElementById(id), draw, plot: null }));

function drawAll() {
  for (const chart of charts) {
    chart.plot?.destroy();
    chart.plot = chart.draw(chart.element);
  }
}

if (starts.length > 1) {
  drawAll();
  new MutationObserver(drawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => {
    for (const { plot, element } of charts) plot.setSize({ width: element.clientWidth, height: element.clientHeight });
  });
}
