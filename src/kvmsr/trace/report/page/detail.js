/* The selected MSR: what it is, its value field by field, who accessed it. */
function head(...names) {
  return make("thead", {}, make("tr", {}, ...names.map((name) => make("th", name === "Count" ? { scope: "col", class: "number" } : { scope: "col" }, name))));
}

function kindRows(msr) {
  const rows = [];
  data.msrs[msr].sides.forEach((kinds, trace) => kinds.forEach((kind) => {
    const bad = kind.outcome === "fault" ? { class: "fault-text" } : {};
    const callers = kind.callers.map(([rip, count]) => `${rip} ×${count.toLocaleString("en")}`);
    rows.push(make("tr", {},
      make("th", { scope: "row" }, side(trace), `${kind.op} `, make("span", bad, kind.outcome === "fault" ? "fault" : "")),
      make("td", { class: "number" }, kind.count.toLocaleString("en")),
      make("td", {}, make("code", {}, kind.rule), ` (${kind.reason})`,
        callers.length ? make("div", { class: "muted" }, "RIP ", make("code", {}, callers.join(", "))) : null)));
  }));
  return rows;
}

function fieldRows(msr, values) {
  const { fields, decoded } = data.msrs[msr];
  const found = values.map((value) => decoded[value]);
  if (!fields.length || found.some((one) => !one)) return null;
  return fields.map(([name, span, about], number) => {
    const cells = found.map((one) => one.fields[number]);
    const differ = cells.length === 2 && cells[0][0] !== cells[1][0];
    return make("tr", { class: cells.every((cell) => Number(cell[0]) === 0) ? "zero" : "" },
      make("td", {}, span), make("th", { scope: "row", title: about }, name),
      ...cells.map(([text, meaning]) => make("td", differ ? { class: "fault-text" } : {}, make("code", {}, text), meaning ? ` ${meaning}` : "")));
  });
}

function valuePart(msr) {
  const it = state.event >= 0 ? event(state.trace, state.event) : null;
  let shown;
  if (it) shown = it.value === null ? [] : [[state.trace, it.value]];
  else {
    shown = data.msrs[msr].sides.map((kinds, trace) => [trace, lastOf(trace, msr, kinds)]);
    shown = shown.filter(([, value]) => value !== null);
  }
  const parts = [make("h4", {}, it ? "Value of this access" : "Last value")];
  if (!shown.length) parts.push(make("p", { class: "muted" }, "None: the guest got no value."));
  for (const [trace, value] of shown) {
    parts.push(make("div", { class: "value" }, side(trace), make("code", { class: "value" }, value)));
    const known = data.msrs[msr].decoded[value];
    if (known && known.summary) parts.push(make("p", { class: "muted" }, known.summary));
  }
  const rows = shown.length ? fieldRows(msr, shown.map(([, value]) => value)) : null;
  if (rows) {
    const heads = shown.length === 2 ? ["A", "B"] : ["Value"];
    parts.push(make("table", {}, head("Bits", "Field", ...heads), make("tbody", {}, ...rows)));
  } else if (shown.length && data.msrs[msr].fields.length) {
    parts.push(make("p", { class: "muted" }, "Decode it with ", make("code", {}, `kvmsr decode ${data.msrs[msr].index} ${shown[0][1]}`)));
  }
  return parts;
}

function lastOf(trace, msr, kinds) {
  const list = eventsOf[trace][msr], all = data.traces[trace];
  for (let n = list.length - 1; n >= 0; n--) if (all.value[list[n]] >= 0) return all.values[all.value[list[n]]];
  return (kinds.find((kind) => kind.last !== null) || { last: null }).last;
}

function accessPart(msr) {
  const list = eventsOf[state.trace][msr];
  const at = state.event >= 0 ? list.indexOf(state.event) + 1 : 0;
  const buttons = make("div", { class: "steps" },
    make("span", {}, at ? `Access ${at.toLocaleString("en")} of ${list.length.toLocaleString("en")} shown` : `${(eventsOf[0][msr].length + (two ? eventsOf[1][msr].length : 0)).toLocaleString("en")} in the timeline`),
    make("button", { type: "button", "aria-label": "Previous access", click: () => step(-1) }, "←"),
    make("button", { type: "button", "aria-label": "Next access", click: () => step(1) }, "→"));
  if (!at) return [buttons];
  const it = event(state.trace, state.event);
  const facts = [["Access", sentence(it)], ["Time", `${duration(it.time)} after the start`], ["vCPU", it.cpu], ["Rule", it.rule]];
  if (it.latency !== null) facts.push(["Latency", duration(it.latency)]);
  if (it.rip !== null) facts.push(["RIP", it.rip]);
  return [buttons, make("table", {}, make("tbody", {}, ...facts.map(([name, text]) =>
    make("tr", {}, make("th", { scope: "row", class: "muted" }, name), make("td", {}, name === "Access" ? side(state.trace) : null, text)))))];
}

function showDetail() {
  const panel = byId("detail"), { msr } = state;
  const focused = panel.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  panel.hidden = msr < 0;
  panel.parentElement.classList.toggle("open", msr >= 0);
  if (msr < 0) return;
  const it = data.msrs[msr];
  panel.replaceChildren(
    make("header", {}, make("h3", {}, it.name || "Not in the catalog"),
      make("button", { type: "button", class: "close", "aria-label": "Close", click: () => select(-1) }, "×")),
    make("div", { class: "muted" }, make("code", {}, it.index), it.about ? ` ${it.about}` : ""),
    ...accessPart(msr), ...valuePart(msr),
    make("h4", {}, "Accesses by rule and caller"),
    make("table", {}, head("Access", "Count", "Rule (reason)"), make("tbody", {}, ...kindRows(msr))));
  if (focused) panel.querySelector(`[aria-label="${focused}"]`)?.focus();
}
listeners.push(showDetail);
