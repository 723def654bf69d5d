/* The page as a whole: its theme, the histogram of the selected MSR, copying, and keys. */
for (const element of document.querySelectorAll(".script, .theme")) {
  if (element.id !== "detail") element.hidden = false;
}

byId("timeline").querySelector(".unscripted").hidden = true;

function setTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.dataset.theme = theme;
  redraw();
}

function remembered() { try { return localStorage.getItem("kvmsr-theme"); } catch { return null; } }

for (const input of document.querySelectorAll("[name=theme]")) {
  if (input.value === remembered()) { input.checked = true; setTheme(input.value); }
  input.addEventListener("change", () => {
    setTheme(input.value);
    try { localStorage.setItem("kvmsr-theme", input.value); } catch { /* not allowed: it is for now only */ }
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  document.documentElement.dataset.theme = "light";
  document.querySelector(".about").open = true;
  draw();
});
addEventListener("afterprint", () => setTheme(document.querySelector("[name=theme]:checked").value));

for (const input of document.querySelectorAll("[name=axis]")) {
  input.addEventListener("change", () => { view.axis = input.value; fit(); });
}
byId("zoom-in").addEventListener("click", () => zoom(0.5));
byId("zoom-out").addEventListener("click", () => zoom(2));
byId("zoom-fit").addEventListener("click", fit);

function showOwnLatencies() {
  const chart = byId("histogram"), own = byId("own");
  if (!chart) return;
  own.replaceChildren();
  chart.classList.toggle("dim", state.msr >= 0);
  byId("own-note").textContent = state.msr < 0 ? "" : `; in front, ${nameOf(state.msr)} alone, to a scale of its own`;
  if (state.msr < 0) return;
  const first = +chart.dataset.first, size = +chart.dataset.bins;
  const width = chart.dataset.width / size, height = +chart.dataset.height, share = width / eventsOf.length;
  eventsOf.forEach((lists, trace) => {
    const bins = new Array(size).fill(0);
    for (const n of lists[state.msr]) {
      const latency = data.traces[trace].latency[n];
      const bin = Math.floor(Math.log2(Math.max(1, latency)) * data.bins_per_octave) - first;
      if (latency >= 0 && bin >= 0 && bin < size) bins[bin] += 1;
    }
    const most = Math.max(1, ...bins);
    bins.forEach((count, n) => {
      if (!count) return;
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const high = Math.max(2, count / most * height * 0.9), x = n * width + share * (trace + 0.2);
      const attributes = { class: two ? `own s${trace}` : "own", x, y: height - high, width: share * 0.55, height: high };
      for (const [name, value] of Object.entries(attributes)) bar.setAttribute(name, value);
      own.append(bar);
    });
  });
}
listeners.push(showOwnLatencies);

async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = make("textarea", {});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const was = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = was; }, 1500);
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => {
    const rules = [...document.querySelectorAll("#next pre")].map((pre) => pre.textContent);
    copy(button.dataset.copy ? rules.join("\n") : button.closest("li").querySelector("pre").textContent, button);
  });
}

for (const link of document.querySelectorAll("a.msr")) {
  link.addEventListener("click", (click) => {
    const row = document.querySelector(link.getAttribute("href"));
    if (!row) return;
    click.preventDefault();
    select(+row.dataset.msr);
    goToRow(+row.dataset.msr);
  });
}

document.addEventListener("keydown", (press) => {
  const typing = press.target.closest("input[type=search], select, textarea");
  if (press.key === "/" && !typing && !press.ctrlKey && !press.metaKey) {
    byId("search").focus();
    byId("search").select();
    press.preventDefault();
  }
  if (press.key === "Escape" && press.target.id === "search") { byId("search").value = ""; filterRows(); }
  else if (press.key === "Escape" && press.target !== canvas) select(-1);
});

new ResizeObserver(redraw).observe(canvas.parentElement);
fit();
draw();
