"use strict";
const told = JSON.parse(document.getElementById("numbers").textContent);
const COLOURS = ["#3b82d0", "#e0782f", "#2e9e5b", "#d64550", "#8f6bd1", "#a3714f", "#d163b0", "#7a8a99", "#a5a520", "#1fa5b5"];
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const shown = (value, unit) => {
  if (value == null) return "–";
  if (unit) return value.toFixed(2) + unit;
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(4));
};
const plots = [];

// Upright lines: a stage begins, a model comes or goes.
function mark(plot) {
  const { ctx, bbox } = plot, dot = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.strokeStyle = ctx.fillStyle = css("--soft");
  ctx.lineWidth = dot;
  ctx.font = `${11 * dot}px system-ui`;
  ctx.textAlign = "right";
  for (const [epoch, what] of told.marks) {
    const x = Math.round(plot.valToPos(epoch, "x", true));
    ctx.setLineDash([2 * dot, 3 * dot]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.save();
    ctx.translate(x - 5 * dot, bbox.top + 4 * dot);
    ctx.rotate(-Math.PI / 2);
    ctx.fillText(what.length > 40 ? what.slice(0, 39) + "…" : what, 0, 0);
    ctx.restore();
  }
  ctx.restore();
}

function draw(chart, place) {
  const log = place.dataset.log === "1";
  const soft = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  const few = told.epochs.length < 40;
  const series = Object.keys(chart.series).map((name, i) => ({
    label: name,
    stroke: COLOURS[chart.colours[i] % COLOURS.length],
    width: 2,
    dash: chart.levels.includes(name) ? [6, 5] : chart.colours[i] < COLOURS.length ? undefined : [2, 3],
    points: { show: few && !chart.levels.includes(name), size: 5 },
    spanGaps: true,
    value: (_, value) => shown(value, chart.unit),
  }));
  const values = Object.values(chart.series).flat().filter(value => value != null);
  const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * 0.06;
  const single = told.epochs.length === 1;
  return new uPlot({
    width: place.clientWidth,
    height: 260,
    cursor: { sync: { key: "epochs" }, drag: { x: true, y: false }, focus: { prox: 24 } },
    focus: { alpha: 0.35 },
    scales: {
      x: { time: false, range: single ? () => [told.epochs[0] - 1, told.epochs[0] + 1] : undefined },
      y: log ? { distr: 3 } : { range: (_, a, b) => a == null ? [0, 1] : [Math.max(low >= 0 ? 0 : -Infinity, a - room), b + room] },
    },
    axes: [
      { ...soft, label: "epoch", size: 28, labelSize: 18, labelGap: -2, labelFont: "12px system-ui", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] },
      { ...soft, size: 58, values: (_, ticks) => ticks.map(value => value == null ? "" : shown(value, "") + chart.unit) },
    ],
    legend: { live: true },
    hooks: { drawAxes: [mark] },
    series: [{ label: "epoch", value: (_, value) => value == null ? "–" : value }, ...series],
  }, [told.epochs, ...Object.values(chart.series)], place);
}

function redraw() {
  for (const one of plots) {
    if (one.plot) one.plot.destroy();
    one.plot = draw(one.chart, one.place);
  }
}

document.querySelectorAll(".chart").forEach((element, i) => {
  const one = { chart: told.charts[i], place: element.querySelector(".plot"), plot: null };
  one.place.dataset.log = one.chart.log ? "1" : "0";
  const button = element.querySelector("button");
  if (button) button.onclick = () => {
    one.place.dataset.log = one.place.dataset.log === "1" ? "0" : "1";
    button.textContent = one.place.dataset.log === "1" ? "linear" : "logarithmic";
    one.plot.destroy();
    one.plot = draw(one.chart, one.place);
  };
  plots.push(one);
  new ResizeObserver(() => {
    if (one.plot && one.place.clientWidth && one.plot.width !== one.place.clientWidth)
      one.plot.setSize({ width: one.place.clientWidth, height: 260 });
  }).observe(one.place);
});
redraw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.querySelectorAll("figure img").forEach(picture => {
  picture.onclick = () => picture.classList.toggle("whole");
});
