"use strict";
/* What the parts of the page share: the data, what is selected, and how elements are made. Text of a
   trace is only ever set as text. */
const data = JSON.parse(document.getElementById("data").textContent);
const two = data.traces.length === 2;
const state = { msr: -1, trace: 0, event: -1 };
const listeners = [];

function byId(id) { return document.getElementById(id); }

function select(msr, trace = 0, event = -1) {
  Object.assign(state, { msr, trace, event });
  for (const listener of listeners) listener();
}

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "click") element.addEventListener("click", value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function side(trace) {
  return two ? make("span", { class: `side s${trace}` }, make("abbr", {}, "AB"[trace])) : null;
}

function nameOf(msr) { return data.msrs[msr].name || data.msrs[msr].index; }

function duration(ns) {
  const size = Math.abs(ns);
  for (const [unit, name] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (size >= unit) return `${+(ns / unit).toPrecision(size >= 1000 * unit ? 12 : 6)} ${name}`;
  }
  return `${ns} ns`;
}

function event(trace, number) {
  const all = data.traces[trace], kind = all.kind[number];
  return {
    time: all.time[number], msr: all.msr[number], op: data.ops[kind & 1],
    outcome: data.outcomes[kind >> 1], cpu: all.cpus[all.cpu[number]],
    value: all.value[number] < 0 ? null : all.values[all.value[number]],
    rule: all.rules[all.rule[number]],
    latency: all.latency[number] < 0 ? null : all.latency[number],
    rip: all.rip[number] < 0 ? null : all.rips[all.rip[number]],
    count: all.counts[number] || 1, counted: number in all.counts,
  };
}

function sentence(it) {
  const value = it.value === null ? "" : ` ${it.value}`;
  const end = it.outcome === "fault" ? ", fault" : it.outcome === "stop" ? ", stopped the run" : "";
  const many = it.counted ? `, ${it.count} accesses, only counted` : "";
  return `${it.op}${value}${end}${many}`;
}

/* The events of each MSR, trace by trace. */
const eventsOf = data.traces.map((all) => {
  const found = data.msrs.map(() => []);
  all.msr.forEach((msr, number) => found[msr].push(number));
  return found;
});

/* Go to the next access of the selected MSR, or of any: also across the two traces, by time. */
function step(by) {
  const { msr, trace, event: at } = state;
  const all = data.traces[trace];
  if (at < 0) {
    const other = msr >= 0 && !eventsOf[trace][msr].length ? 1 - trace : trace;
    const list = msr >= 0 ? (eventsOf[other] || [])[msr] || [] : all.time.map((_, n) => n);
    if (list.length) select(data.traces[other].msr[list.at(by > 0 ? 0 : -1)], other, list.at(by > 0 ? 0 : -1));
    return;
  }
  const list = eventsOf[trace][msr], place = list.indexOf(at) + by;
  if (place >= 0 && place < list.length) select(msr, trace, list[place]);
}
