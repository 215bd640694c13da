// Which rows are shown: filters, and what each can be set to.
const ANY = '';
const state = {
  filters: {
    protocol: ANY, target: ANY, shot: ANY, hardware: ANY, backbone: ANY,
    setting: ANY, weights: ANY, licence: ANY, overlap: ANY, text: '',
  },
  sort: 'score', descending: !data.lower, shown: 100, picks: [], budget: 'time',
};

const ALL_SHOTS = 'all shots';
const unique = (values) => [...new Set(values)];
// Filters that choose tables, and those that choose rows in them.
const OF_TABLES = {
  protocol: ['Protocol', (t) => t.protocol],
  target: ['Target', targetOf],
  shot: ['Shot', (t) => (t.shot === null ? ALL_SHOTS : `${t.shot}-shot`)],
  hardware: ['Hardware', (t) => t.hardware],
};
const OF_ROWS = {
  backbone: ['Backbone', (r) => [backboneOf(r)]],
  setting: ['Setting', (r) => [get(r, 'transductive') ? 'transductive' : 'inductive']],
  weights: ['Pretraining', (r) => weightsOf(r).map((w) => (w === 'random' ? 'none' : w))],
  licence: ['Data licence', (r) => licenceOf(r)],
  overlap: ['Overlap', (r) => [overlapOf(r).length ? 'with overlap' : 'no overlap known']],
};

function tablesShown() {
  return tables.filter((table) => Object.entries(OF_TABLES).every(([name, [, of]]) =>
    state.filters[name] === ANY || of(table) === state.filters[name]));
}

function rowsShown() {
  const wanted = Object.entries(OF_ROWS).filter(([name]) => state.filters[name] !== ANY);
  const text = state.filters.text.trim().toLowerCase();
  const found = [];
  for (const table of tablesShown()) {
    for (let r = table.start; r < table.start + table.n; r += 1) {
      if (wanted.every(([name, [, of]]) => of(r).includes(state.filters[name]))
        && (!text || nameOf(r).toLowerCase().includes(text))) found.push(r);
    }
  }
  return found;
}

const LABELS = Object.fromEntries(
  [...Object.entries(OF_TABLES), ...Object.entries(OF_ROWS)].map(([k, [label]]) => [k, label]),
);
function choices() {
  const rows = Array.from({ length: nRows }, (_, r) => r);
  return Object.fromEntries([
    ...Object.entries(OF_TABLES).map(([name, [, of]]) => [name, unique(tables.map(of))]),
    ...Object.entries(OF_ROWS).map(([name, [, of]]) => {
      // Rows share few different lists; going through all of them would take long.
      const seen = new Set();
      for (const r of rows) for (const value of of(r)) seen.add(value);
      return [name, [...seen].sort()];
    }),
  ]);
}

function startFilters() {
  const overall = tables.find((t) => !t.target && !t.rule);
  state.filters.protocol = (overall ?? tables[0])?.protocol ?? ANY;
  const own = tables.filter((t) => t.protocol === state.filters.protocol);
  const first = own.find((t) => !t.target && !t.rule) ?? own[0];
  if (!first) return;
  state.filters.target = targetOf(first);
  if (first.target) state.filters.shot = OF_TABLES.shot[1](first);
  if (unique(own.map((t) => t.hardware)).length > 1) state.filters.hardware = first.hardware;
}

// A target without the shots that were chosen leaves no table: such a choice gives way to the last.
function letGo(chosen) {
  for (const other of ['shot', 'hardware', 'target', 'protocol']) {
    if (tablesShown().length) break;
    if (other !== chosen) state.filters[other] = ANY;
  }
  showFilters();
}

function buildFilters(update) {
  const form = byId('filters');
  const options = choices();
  for (const [name, label] of Object.entries(LABELS)) {
    // With one value there is nothing to choose.
    if (options[name].length < 2) {
      state.filters[name] = ANY;
      continue;
    }
    const select = h('select', {
      id: `filter-${name}`, onchange: (event) => {
        state.filters[name] = event.target.value;
        letGo(name);
        update();
      },
    }, h('option', { value: ANY }, 'any'));
    for (const value of options[name]) {
      select.append(h('option', { value }, shortened(value || 'none', 60)));
    }
    form.append(h('div', {}, h('label', { for: `filter-${name}` }, label), select));
  }
  form.append(h('div', {},
    h('label', { for: 'filter-text' }, 'Name contains'),
    h('input', {
      id: 'filter-text', type: 'search', autocomplete: 'off',
      oninput: (event) => { state.filters.text = event.target.value; update(); },
    })));
  form.append(h('div', { class: 'narrow' },
    h('label', { for: 'sort' }, 'Sort by'),
    h('select', {
      id: 'sort', onchange: (event) => sortOn(event.target.value),
    }),
    h('button', { id: 'turn', type: 'button', onclick: () => sortOn(state.sort) }, 'Turn round')));
  form.append(h('div', {}, h('button', {
    type: 'button', id: 'reset', onclick: () => {
      for (const name of Object.keys(state.filters)) state.filters[name] = ANY;
      startFilters();
      showFilters();
      update();
    },
  }, 'Reset')));
  form.addEventListener('submit', (event) => event.preventDefault());
  showFilters();
}

function showFilters() {
  for (const [name, value] of Object.entries(state.filters)) {
    const control = byId(`filter-${name}`);
    if (control) control.value = value;
    else state.filters[name] = ANY;
  }
}
