/* What the timeline looks like: a lane for each MSR, and a mark for each access. */
const canvas = byId("chart"), pen = canvas.getContext("2d");
const lanes = data.msrs.length;
const place = { left: 0, top: 26, width: 0, height: 0, lane: 0 };
const view = { from: 0, to: 1, most: 1, axis: "time" };
let hovered = null;

function at(trace, number) { return view.axis === "time" ? data.traces[trace].time[number] : number; }

function measure() {
  const last = data.traces.map((all, trace) => all.time.length ? at(trace, all.time.length - 1) : 0);
  view.most = Math.max(1, ...last) * 1.01;
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  return { read: get("read"), write: get("write"), fault: get("fault"), text: get("text"), muted: get("muted"),
    line: get("line"), soft: get("soft"), back: get("surface"), accent: get("accent"), strong: get("strong"),
    sans: get("sans"), mono: get("mono"), sides: [get("side0"), get("side1")] };
}

function prepare(target, brush, height) {
  const scale = devicePixelRatio || 1, width = target.clientWidth;
  target.style.height = `${height}px`;
  target.width = Math.round(width * scale);
  target.height = Math.round(height * scale);
  brush.setTransform(scale, 0, 0, scale, 0, 0);
  brush.clearRect(0, 0, width, height);
  return width;
}

function xOf(value) { return place.left + (value - view.from) / (view.to - view.from) * place.width; }

function valueAt(x) { return view.from + (x - place.left) / place.width * (view.to - view.from); }

function yOf(trace, msr) {
  const middle = two ? (trace ? 0.72 : 0.28) : 0.5;
  return place.top + (msr + middle) * place.lane;
}

/* The events of a trace between two values of the axis: [first, end). */
function between(trace, from, to) {
  const size = data.traces[trace].time.length;
  const search = (value) => {
    let low = 0, high = size;
    while (low < high) { const middle = (low + high) >> 1; if (at(trace, middle) < value) low = middle + 1; else high = middle; }
    return low;
  };
  return [search(from), search(to)];
}

function mark(x, y, kind, counted, size) {
  pen.beginPath();
  if (data.outcomes[kind >> 1] === "fault" || data.outcomes[kind >> 1] === "stop") {
    pen.moveTo(x - size, y - size); pen.lineTo(x + size, y + size);
    pen.moveTo(x - size, y + size); pen.lineTo(x + size, y - size);
    pen.stroke();
    return;
  }
  if (kind & 1) pen.rect(x - size, y - size, 2 * size, 2 * size);
  else pen.arc(x, y, size, 0, 7);
  if (counted) pen.stroke(); else pen.fill();
}

function ticks() {
  if (view.axis === "order") return [niceStep(Math.max(1, (view.to - view.from) / 8)), (n) => Math.round(n).toLocaleString("en")];
  return [niceStep((view.to - view.from) / 8), duration];
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
}

function drawGrid(ink) {
  const [step, text] = ticks();
  pen.font = `11px ${ink.sans}`;
  pen.textBaseline = "middle"; pen.textAlign = "center";
  for (let n = Math.ceil(view.from / step); n * step <= view.to; n++) {
    const x = Math.round(xOf(n * step)) + 0.5;
    pen.strokeStyle = ink.line; pen.lineWidth = 1;
    pen.beginPath(); pen.moveTo(x, place.top - 4); pen.lineTo(x, place.top + place.height); pen.stroke();
    pen.fillStyle = ink.muted;
    if (x > place.left + 16 && x < place.left + place.width - 24) pen.fillText(text(n * step), x, 12);
  }
}

function drawLanes(ink) {
  const every = Math.ceil(14 / place.lane);
  pen.textAlign = "right"; pen.textBaseline = "middle";
  for (let msr = 0; msr < lanes; msr++) {
    const y = place.top + msr * place.lane;
    const on = msr === state.msr;
    if (on) { pen.fillStyle = ink.soft; pen.fillRect(0, y, place.left + place.width + 20, Math.max(place.lane, 3)); }
    if (place.lane >= 8) { pen.strokeStyle = ink.line; pen.globalAlpha = 0.6; pen.beginPath(); pen.moveTo(place.left, y + place.lane - 0.5); pen.lineTo(place.left + place.width, y + place.lane - 0.5); pen.stroke(); pen.globalAlpha = 1; }
    const near = state.msr >= 0 && every > 1 && Math.abs(msr - state.msr) < every;
    if (on || (msr % every === 0 && !near)) {
      pen.fillStyle = on ? ink.accent : ink.muted;
      pen.font = `${on ? "600 " : ""}11px ${ink.sans}`;
      pen.fillText(clipped(nameOf(msr), place.left - 22), place.left - 12, y + place.lane / 2);
    }
  }
}

function clipped(text, width) {
  if (pen.measureText(text).width <= width) return text;
  while (text.length > 1 && pen.measureText(`${text}…`).width > width) text = text.slice(0, -1);
  return `${text}…`;
}

function drawMarks(ink) {
  const size = Math.min(3.5, Math.max(1.5, place.lane * (two ? 0.16 : 0.24)));
  pen.lineWidth = 1.6;
  data.traces.forEach((all, trace) => {
    const [first, end] = between(trace, valueAt(place.left - 6), valueAt(place.left + place.width + 6));
    const draw = (number) => {
      const kind = all.kind[number], bad = kind >> 1 > 1;
      pen.fillStyle = pen.strokeStyle = bad ? ink.fault : two ? ink.sides[trace] : kind & 1 ? ink.write : ink.read;
      mark(xOf(at(trace, number)), yOf(trace, all.msr[number]), kind, number in all.counts, bad ? size + 0.5 : size);
    };
    pen.globalAlpha = state.msr < 0 ? 0.85 : 0.28;
    for (let n = first; n < end; n++) if (all.msr[n] !== state.msr) draw(n);
    pen.globalAlpha = 1;
    if (state.msr >= 0) for (const n of eventsOf[trace][state.msr]) if (n >= first && n < end) draw(n);
  });
}

function ring(trace, number, colour) {
  const x = xOf(at(trace, number));
  if (x < place.left - 4 || x > place.left + place.width + 4) return;
  pen.strokeStyle = colour; pen.lineWidth = 2;
  pen.beginPath(); pen.arc(x, yOf(trace, data.traces[trace].msr[number]), 7, 0, 7); pen.stroke();
}

function draw() {
  const ink = colours();
  place.height = Math.max(90, Math.min(560, lanes * (two ? 26 : 20)));
  place.lane = place.height / Math.max(1, lanes);
  const width = prepare(canvas, pen, place.top + place.height + 10);
  place.left = Math.min(width < 700 ? 110 : 200, width / 3);
  place.width = width - place.left - 20;
  drawLanes(ink);
  drawGrid(ink);
  pen.save();
  pen.beginPath(); pen.rect(place.left - 8, 0, place.width + 16, place.top + place.height + 10); pen.clip();
  drawMarks(ink);
  pen.restore();
  if (state.event >= 0) ring(state.trace, state.event, ink.text);
  if (hovered) ring(hovered[0], hovered[1], ink.muted);
  drawOverview(ink);
}
