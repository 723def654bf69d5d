/* The table: sorting, searching, and selecting. */
const table = byId("table"), body = table.tBodies[0];
const tableRows = [...body.querySelectorAll("tr[data-msr]")];
const rowOf = new Map(tableRows.map((row) => [+row.dataset.msr, row]));

[...table.tHead.rows[0].cells].forEach((cell, column) => {
  const button = make("button", { type: "button" }, ...cell.childNodes);
  button.addEventListener("click", () => sortBy(cell, column));
  cell.replaceChildren(button);
});

function sortBy(cell, column) {
  const numbers = cell.dataset.kind === "number";
  const now = cell.getAttribute("aria-sort");
  const order = now ? (now === "ascending" ? "descending" : "ascending") : numbers && column ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", order);
  const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const compare = (a, b) => numbers ? compareNumbers(key(a), key(b)) : key(a).localeCompare(key(b));
  const sign = order === "ascending" ? 1 : -1;
  tableRows.sort((a, b) => sign * compare(a, b) || a.dataset.msr - b.dataset.msr);
  body.append(...tableRows);
}

function compareNumbers(a, b) {
  const difference = BigInt(a) - BigInt(b);
  return difference > 0n ? 1 : difference < 0n ? -1 : 0;
}

function filterRows() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const flag = byId("filter").value;
  let shown = 0;
  for (const row of tableRows) {
    const it = data.msrs[row.dataset.msr];
    const text = `${row.textContent} ${it.about}`.toLowerCase();
    row.hidden = !(words.every((word) => text.includes(word)) && (!flag || row.dataset.flags.split(" ").includes(flag)));
    shown += !row.hidden;
  }
  byId("shown").textContent = shown === tableRows.length ? `${shown}` : `${shown} of ${tableRows.length}`;
}
byId("search").addEventListener("input", filterRows);
byId("filter").addEventListener("change", filterRows);
filterRows();

body.addEventListener("click", (click) => {
  const row = click.target.closest("tr[data-msr]");
  if (row && !getSelection().toString()) select(+row.dataset.msr === state.msr && state.event < 0 ? -1 : +row.dataset.msr);
});

body.addEventListener("keydown", (press) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[press.key];
  const row = press.target.closest("tr[data-msr]");
  if (!by || !row) return;
  const visible = tableRows.filter((one) => !one.hidden);
  visible[visible.indexOf(row) + by]?.querySelector("button").focus();
  press.preventDefault();
});

listeners.push(() => {
  for (const [msr, row] of rowOf) {
    row.classList.toggle("on", msr === state.msr);
    row.querySelector("button").setAttribute("aria-pressed", msr === state.msr);
  }
});

function goToRow(msr) {
  const row = rowOf.get(msr);
  if (!row) return;
  if (row.hidden) { byId("search").value = ""; byId("filter").value = ""; filterRows(); }
  row.scrollIntoView({ block: "center" });
  row.querySelector("button").focus({ preventScroll: true });
}
