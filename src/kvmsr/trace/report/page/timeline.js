/* What one can do with the timeline: zoom, pan, hover, click, and all of that by keys. */
const overview = byId("overview"), thin = overview.getContext("2d"), tip = byId("tip");
let drag = null, queued = false;

function redraw() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => { queued = false; draw(); });
}

function drawOverview(ink) {
  const width = prepare(overview, thin, 34), usable = width - place.left - 20;
  const bins = new Float64Array(Math.max(1, Math.round(usable / 3))), bad = new Float64Array(bins.length);
  data.traces.forEach((all, trace) => all.time.forEach((_, n) => {
    const bin = Math.min(bins.length - 1, Math.max(0, Math.floor(at(trace, n) / view.most * bins.length)));
    bins[bin] += 1;
    if (all.kind[n] >> 1 > 1) bad[bin] += 1;
  }));
  const most = Math.log1p(Math.max(1, ...bins));
  bins.forEach((count, n) => {
    if (!count) return;
    const high = Math.max(2, Math.log1p(count) / most * 24);
    const x = place.left + n / bins.length * usable, red = bad[n] && Math.max(2, bad[n] / count * high);
    thin.fillStyle = ink.strong;
    thin.fillRect(x, 30 - high, 2, high);
    thin.fillStyle = ink.fault;
    thin.fillRect(x, 30 - red, 2, red);
  });
  const from = place.left + view.from / view.most * usable, to = place.left + view.to / view.most * usable;
  thin.fillStyle = ink.accent; thin.globalAlpha = 0.12;
  thin.fillRect(from, 0, to - from, 34);
  thin.globalAlpha = 1; thin.strokeStyle = ink.accent; thin.lineWidth = 1;
  thin.strokeRect(from + 0.5, 0.5, Math.max(2, to - from - 1), 33);
  thin.fillStyle = ink.muted; thin.font = `11px ${ink.sans}`; thin.textBaseline = "middle"; thin.textAlign = "right";
  thin.fillText("whole run", place.left - 12, 17);
}

function show(from, to) {
  const least = view.axis === "order" ? 4 : Math.min(1000, view.most / 4);
  const span = Math.min(view.most, Math.max(least, to - from));
  view.from = Math.max(0, Math.min(view.most - span, from));
  view.to = view.from + span;
  redraw();
}

function zoom(factor, around = (view.from + view.to) / 2) {
  show(around - (around - view.from) * factor, around + (view.to - around) * factor);
}

function pan(by) { show(view.from + by, view.to + by); }

function fit() { measure(); show(0, view.most); }

function nearest(x, y) {
  let found = null, best = 12 * 12;
  data.traces.forEach((all, trace) => {
    const [first, end] = between(trace, valueAt(x - 12), valueAt(x + 12));
    for (let n = first; n < end; n++) {
      const distance = (xOf(at(trace, n)) - x) ** 2 + (yOf(trace, all.msr[n]) - y) ** 2 * (place.lane < 10 ? 1 : 0.5);
      if (distance < best) { best = distance; found = [trace, n]; }
    }
  });
  return found;
}

function showTip(x, y) {
  tip.hidden = !hovered;
  if (!hovered) return;
  const it = event(...hovered), lines = [sentence(it), `${duration(it.time)} · ${it.cpu}`, `by ${it.rule}`];
  if (it.latency !== null) lines.push(`took ${duration(it.latency)}`);
  if (it.rip !== null) lines.push(`RIP ${it.rip}`);
  tip.replaceChildren(make("b", {}, side(hovered[0]), nameOf(it.msr)), ...lines.map((line) => make("div", {}, line)));
  const left = x + 16 + tip.offsetWidth > canvas.clientWidth ? x - 16 - tip.offsetWidth : x + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, canvas.clientHeight - tip.offsetHeight))}px`;
}

canvas.addEventListener("pointerdown", (press) => {
  canvas.setPointerCapture(press.pointerId);
  drag = { x: press.offsetX, from: view.from, to: view.to, pans: press.shiftKey || press.pointerType === "touch", moved: false };
});

canvas.addEventListener("pointermove", (move) => {
  if (drag) {
    drag.now = move.offsetX;
    drag.moved ||= Math.abs(drag.now - drag.x) > 4;
    if (drag.moved && drag.pans) {
      const by = (drag.x - drag.now) / place.width * (drag.to - drag.from);
      show(drag.from + by, drag.to + by);
    } else if (drag.moved) { draw(); pen.fillStyle = colours().accent; pen.globalAlpha = 0.15; pen.fillRect(drag.x, place.top, drag.now - drag.x, place.height); pen.globalAlpha = 1; }
    return;
  }
  hovered = nearest(move.offsetX, move.offsetY);
  showTip(move.offsetX, move.offsetY);
  redraw();
});

canvas.addEventListener("pointerup", (up) => {
  const was = drag;
  drag = null;
  if (!was) return;
  if (was.moved && !was.pans) show(...[valueAt(was.x), valueAt(was.now)].sort((a, b) => a - b));
  if (was.moved) return;
  const found = nearest(up.offsetX, up.offsetY), lane = Math.floor((up.offsetY - place.top) / place.lane);
  if (found) { select(event(...found).msr, ...found); showRow(); }
  else if (up.offsetX < place.left && lane >= 0 && lane < lanes) { select(lane); showRow(); }
  else select(-1);
});

/* Bring the row into view without leaving the timeline. */
function showRow() {
  const box = rowOf.get(state.msr)?.getBoundingClientRect();
  if (box && box.top > innerHeight - 40 && box.top < innerHeight + 200) rowOf.get(state.msr).scrollIntoView({ block: "nearest" });
}

canvas.addEventListener("pointercancel", () => { drag = null; });
canvas.addEventListener("pointerleave", () => { hovered = null; showTip(); redraw(); });
canvas.addEventListener("dblclick", fit);
canvas.addEventListener("wheel", (turn) => {
  if (turn.ctrlKey || turn.metaKey) zoom(Math.exp(turn.deltaY * 0.004), valueAt(turn.offsetX));
  else if (turn.deltaX || turn.shiftKey) pan((turn.deltaX || turn.deltaY) / place.width * (view.to - view.from));
  else return;
  turn.preventDefault();
}, { passive: false });

function moveWindow(move) {
  if (!(move.buttons & 1)) return;
  const middle = (move.offsetX - place.left) / (overview.clientWidth - place.left - 20) * view.most;
  const half = (view.to - view.from) / 2;
  show(middle - half, middle + half);
}
overview.addEventListener("pointerdown", (press) => { overview.setPointerCapture(press.pointerId); moveWindow(press); });
overview.addEventListener("pointermove", moveWindow);

const keys = {
  ArrowRight: (shift) => (shift ? pan((view.to - view.from) / 5) : step(1)),
  ArrowLeft: (shift) => (shift ? pan((view.from - view.to) / 5) : step(-1)),
  ArrowDown: () => select(Math.min(lanes - 1, state.msr + 1)),
  ArrowUp: () => select(Math.max(0, state.msr < 0 ? lanes - 1 : state.msr - 1)),
  "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: fit,
  Home: () => show(0, view.to - view.from), End: () => show(view.most, view.most + view.to - view.from),
  Enter: () => goToRow(state.msr), Escape: () => select(-1),
};

canvas.addEventListener("keydown", (press) => {
  if (press.ctrlKey || press.metaKey || press.altKey || !(press.key in keys) || !lanes) return;
  keys[press.key](press.shiftKey);
  press.preventDefault();
});

listeners.push(() => {
  if (state.event >= 0) {
    const value = at(state.trace, state.event), span = view.to - view.from;
    if (value < view.from || value > view.to) show(value - span / 2, value + span / 2);
    byId("status").textContent = `${two ? `Run ${"AB"[state.trace]}, ` : ""}${nameOf(state.msr)}, ${sentence(event(state.trace, state.event))}, ${duration(data.traces[state.trace].time[state.event])}`;
  } else byId("status").textContent = state.msr < 0 ? "Nothing selected" : `${nameOf(state.msr)} selected`;
  redraw();
});
