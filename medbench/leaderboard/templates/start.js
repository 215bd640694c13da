// What happens when a filter, the sorting or a pick changes.
let lastRows = [];
let lastFilters = '';

function update() {
  const filters = JSON.stringify(state.filters) + state.budget;
  const changed = filters !== lastFilters;
  lastFilters = filters;
  const found = changed ? rowsShown() : lastRows.slice().sort((a, b) => a - b);
  const column = COLUMNS[state.sort];
  lastRows = sortedBy(found, column.value, state.descending);
  drawTable(lastRows);
  if (!changed) return;
  const shown = unique(lastRows.map((r) => tableOf[r])).map((t) => tables[t]);
  const n = lastRows.length;
  byId('status').textContent = n
    ? `${n.toLocaleString('en')} row${n === 1 ? '' : 's'} of ${shown.length} table${shown.length === 1 ? '' : 's'}.`
    : 'No row fits these filters; Reset shows rows again.';
  byId('caption').textContent = shown.length === 1 ? visible(shown[0].title) : `Rows of ${shown.length} tables`;
  const machines = unique(shown.map((t) => t.hardware));
  const warnings = byId('warnings');
  warnings.hidden = machines.length < 2;
  warnings.textContent = `Times and memory were taken on ${machines.length} classes of hardware and do not compare between them.`;
  byId('facts').replaceChildren(...(shown.length === 1 ? shown[0].facts : []).map((f) => h('li', {}, named(visible(f)))));
  if (data.pictures) drawPictures(lastRows);
  drawBudget(lastRows);
  drawPlots(lastRows);
  drawCompare();
  drawFailures();
}

startFilters();
buildFilters(update);
buildBudget();
byId('notes').append(...data.notes.map((n) => h('li', {}, named(visible(n)))));
if (data.n_curves > data.curves.length) {
  byId('notes').append(h('li', {}, `Learning curves of ${data.curves.length} of ${data.n_curves} trainings are in the page.`));
}
update();
