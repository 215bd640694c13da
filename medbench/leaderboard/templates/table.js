// The table: columns, sorting, and as many rows as were asked for.
const several = (of) => unique(tablesShown().map(of)).length > 1;
const number = (name, label, digits, help) => ({
  label, help, value: (r) => get(r, name), cell: (r) => amount(get(r, name), digits),
  show: () => tables.some((t) => name in t.rows),
});
const COLUMNS = {
  algorithm: { label: 'algorithm', text: true, value: (r) => algorithmOf(r).toLowerCase(), cell: algorithmCell },
  backbone: { label: 'backbone', text: true, value: (r) => backboneOf(r).toLowerCase(), cell: (r) => named(visible(backboneOf(r))) },
  protocol: {
    label: 'protocol', text: true, value: (r) => tables[tableOf[r]].protocol,
    cell: (r) => named(visible(tables[tableOf[r]].protocol)), show: () => several((t) => t.protocol),
  },
  target: {
    label: 'target', text: true, value: (r) => `${targetOf(tables[tableOf[r]])} ${tables[tableOf[r]].shot}`,
    cell: (r) => named(placeText(tables[tableOf[r]])), show: () => several((t) => placeText(t)),
  },
  hardware: {
    label: 'hardware', text: true, value: (r) => tables[tableOf[r]].hardware,
    cell: (r) => named(visible(tables[tableOf[r]].hardware)), show: () => several((t) => t.hardware),
  },
  score: {
    label: `${data.metric} [95 %]`, value: (r) => get(r, 'mean'), cell: scoreCell, down: !data.lower,
    help: 'mean over episodes, with its interval',
  },
  tied: { label: 'tied', value: (r) => get(r, 'tied') || null, cell: (r) => get(r, 'tied') || '-', help: 'rows that share a letter are not told apart' },
  rank: { label: 'rank [95 %]', value: (r) => get(r, 'rank'), cell: rankCell, help: 'and the ranks that the tests leave open' },
  p: { label: 'p to the best', value: (r) => get(r, 'p'), cell: (r) => pText(get(r, 'p')), help: 'paired test against the best row, corrected by Holm' },
  p_best: {
    ...number('p_best', 'P(best)', 2, 'share of bootstrap replicates in which the row is the best'),
    down: true,
  },
  adaptation_s: { ...number('adaptation_s', 'adapt ms (p95)', null, 'from raw support images to a classifier'), cell: adaptCell },
  prediction_s: number('prediction_s', 'predict ms', null, 'from raw query images to scores'),
  peak_host_added_bytes: number('peak_host_added_bytes', 'host MiB', 1, 'memory added by adapting and predicting'),
  peak_device_bytes: number('peak_device_bytes', 'device MiB', 1, 'peak memory of the device'),
  energy_j: number('energy_j', 'energy J', null, 'energy of an episode'),
  parameters_adapted: number('parameters_adapted', 'adapted', 0, 'parameters that adaptation sets'),
  model_bytes: number('model_bytes', 'model MiB', null, 'bytes of the network as it is tested'),
  train_s: number('train_s', 'train s', 0, 'time of meta-training'),
  front: {
    label: 'front', value: (r) => (get(r, 'front') ? -get(r, 'front') : null),
    cell: (r) => ['-', 'time', 'memory', 'time, memory'][get(r, 'front')],
    help: 'no other row of its table is as accurate at less cost',
  },
};
const columnsShown = () => Object.entries(COLUMNS).filter(([, c]) => !c.show || c.show());
// The rows that one rests on: of its targets, where it is over several, else itself.
function ofTargets(r) {
  const table = tables[tableOf[r]];
  if (table.target) return [r];
  return tables.filter((t) => t.target && groupOf(t) === groupOf(table))
    .flatMap((t) => Array.from({ length: t.n }, (_, i) => t.start + i).filter((o) => keyOf(o) === keyOf(r)));
}

const placeText = (table) =>
  visible(targetOf(table)) + (table.shot === null ? '' : `, ${table.way}-way ${table.shot}-shot`)
  + (table.data ? `, data ${table.data.slice(0, 8)}` : '');

function algorithmCell(r) {
  const overlap = overlapOf(r);
  return [
    h('button', { type: 'button', class: 'name', title: visible(algorithmOf(r)), onclick: () => showDetails(r) },
      named(shortened(algorithmOf(r), 80))),
    get(r, 'transductive') ? h('span', { class: 'badge', title: 'transductive: sees all queries of an episode at once' }, 'T') : null,
    overlap.length ? h('span', { class: 'badge overlap', title: visible(overlap.join('; ')) }, 'overlap') : null,
    get(r, 'n_failed') ? h('span', { class: 'badge failed' }, 'failed') : null,
  ].filter((c) => c);
}

let range = [0, 1];
function scoreCell(r) {
  const mean = get(r, 'mean');
  if (mean === null) return h('span', { class: 'failed' }, visible(data.failed[get(r, 'failed')] ?? '-'));
  const [low, high] = [get(r, 'low'), get(r, 'high')];
  const x = (v) => (100 * (v - range[0])) / (range[1] - range[0] || 1);
  return [
    svg('svg', { class: 'bar', viewBox: '0 0 100 10', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      svg('rect', { x: 0, y: 4.5, width: 100, height: 1, class: 'track' }),
      svg('rect', { x: x(low), y: 3, width: Math.max(x(high) - x(low), 2), height: 4, class: 'interval' }),
      svg('rect', { x: x(mean) - 0.75, y: 0, width: 1.5, height: 10, class: 'mean' })),
    h('span', {}, `${score(mean)} [${score(low)}, ${score(high)}]`),
  ];
}

function rankCell(r) {
  const [rank, low, high] = ['rank', 'rank_low', 'rank_high'].map((n) => get(r, n));
  if (rank === null) return '-';
  return rank.toFixed(1) + (low === null ? '' : ` [${low.toFixed(1)}, ${high.toFixed(1)}]`);
}

function adaptCell(r) {
  if (get(r, 'adaptation_s') === null) return '-';
  return `${amount(get(r, 'adaptation_s'))} (${amount(get(r, 'adaptation_p95_s'))})`;
}

function sortOn(name) {
  if (state.sort === name) state.descending = !state.descending;
  else {
    state.sort = name;
    state.descending = Boolean(COLUMNS[name].down);
  }
  update();
}

const keyOf = (r) => JSON.stringify([groupOf(tables[tableOf[r]]), get(r, 'algorithm'), get(r, 'backbone')]);

function drawTable(rows) {
  const columns = columnsShown();
  drawHead(columns);
  const some = rows.slice(0, state.shown);
  const known = some.filter((r) => get(r, 'mean') !== null);
  range = known.length
    ? [Math.min(...known.map((r) => get(r, 'low'))), Math.max(...known.map((r) => get(r, 'high')))]
    : [0, 1];
  const body = document.createDocumentFragment();
  for (const r of some) body.append(rowElement(r, columns));
  byId('rows').tBodies[0].replaceChildren(body);
  const left = rows.length - some.length;
  byId('more').replaceChildren(...(left <= 0 ? [] : [
    `${some.length} of ${rows.length.toLocaleString('en')} rows are shown. `,
    h('button', { type: 'button', onclick: () => { state.shown += 100; update(); } }, `Show ${Math.min(100, left)} more`), ' ',
    h('button', { type: 'button', onclick: () => { state.shown = rows.length; update(); } }, 'Show all'),
  ]));
}

function rowElement(r, columns) {
  const picked = state.picks.includes(keyOf(r));
  const line = h('tr', { class: picked ? 'picked' : null, 'data-row': r },
    h('td', { class: 'pick', 'data-label': 'compare' }, h('input', {
      type: 'checkbox', 'aria-label': `Compare ${visible(nameOf(r))}`,
      onchange: () => pick(keyOf(r)),
    })));
  line.firstChild.firstChild.checked = picked;
  for (const [name, column] of columns) {
    const content = column.cell(r);
    const children = Array.isArray(content) ? content : [content];
    line.append(name === 'algorithm'
      ? h('th', { scope: 'row', 'data-label': column.label }, ...children)
      : h('td', { class: column.text ? 'text' : null, 'data-label': column.label }, ...children));
  }
  return line;
}

function drawHead(columns) {
  const head = byId('rows').tHead;
  const focused = document.activeElement?.dataset?.column;
  const order = state.descending ? 'descending' : 'ascending';
  head.replaceChildren(h('tr', {},
    h('th', { scope: 'col' }, 'compare'),
    ...columns.map(([name, column]) => h('th', {
      scope: 'col', 'aria-sort': state.sort === name ? order : null, class: column.text ? 'text' : null,
    }, h('button', {
      type: 'button', 'data-column': name, title: column.help, onclick: () => sortOn(name),
    }, column.label, h('span', { class: 'arrow', 'aria-hidden': 'true' },
      state.sort === name ? (state.descending ? ' \u25bc' : ' \u25b2') : ''))))));
  // The buttons are new; whoever works by keyboard stays where they were.
  if (focused) [...head.querySelectorAll('button')].find((b) => b.dataset.column === focused)?.focus();
  const sort = byId('sort');
  sort.replaceChildren(...columns.map(([name, column]) => h('option', { value: name }, column.label)));
  sort.value = state.sort;
}
