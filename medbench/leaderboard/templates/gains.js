// What rows gain over those of the same backbone that adapt to nothing; only in pages with such.
const gainColumn = (name, i) => ({
  label: `gain over ${visible(name)} [95 %]`, down: true,
  value: (r) => get(r, `gain${i}`), cell: (r) => gainCell(r, i),
  show: () => tablesShown().some((t) => `gain${i}` in t.rows),
  help: `mean difference to ${visible(name)} on the same backbone and episodes, and its interval; above zero is better`,
});
function gainCell(r, i) {
  const [mean, low, high] = ['', '_low', '_high'].map((part) => get(r, `gain${i}${part}`));
  return mean === null ? '-' : `${signed(mean)} [${signed(low)}, ${signed(high)}]`;
}

// Columns stand in the order in which they were put there.
const columnsBefore = Object.entries(COLUMNS);
for (const [name] of columnsBefore) delete COLUMNS[name];
for (const [name, column] of columnsBefore) {
  COLUMNS[name] = column;
  if (name === 'score') data.references.forEach((of, i) => { COLUMNS[`gain${i}`] = gainColumn(of, i); });
}
