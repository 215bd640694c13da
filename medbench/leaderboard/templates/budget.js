// The best of the rows shown within a time and a memory budget: one that is asked, and a grid.
const limits = { time: Infinity, memory: Infinity };
const RUNGS = { time: [1, 10], memory: [1, 4] };

function buildBudget() {
  const input = (name, label) => h('div', {}, h('label', { for: `limit-${name}` }, label), h('input', {
    id: `limit-${name}`, type: 'number', min: '0', step: 'any', inputmode: 'decimal', placeholder: 'no limit',
    oninput: (event) => {
      const value = event.target.valueAsNumber;
      limits[name] = Number.isNaN(value) ? Infinity : value;
      drawWithin(scoredOfFirst(lastRows));
    },
  }));
  byId('limits').append(input('time', 'Adaptation takes at most, ms'),
    input('memory', 'Peak memory is at most, MiB'));
}

// What was not measured is within no limit.
const meets = (r, name, limit) => {
  const cost = BUDGETS[name].of(r);
  return limit === Infinity || (cost !== null && cost <= limit);
};

// Rows come best first, as their table has them.
const bestWithin = (rows, time, memory) =>
  rows.find((r) => meets(r, 'time', time) && meets(r, 'memory', memory)) ?? null;

// From the first step that any row meets to the first that all meet, as the tables' own.
function rungs(rows, name) {
  const known = rows.map(BUDGETS[name].of).filter((v) => v !== null);
  const [unit, factor] = RUNGS[name];
  const found = [];
  if (known.length) {
    const [least, most] = [Math.min(...known), Math.max(...known)];
    for (let step = unit; ; step *= factor) {
      if (step >= least) found.push(step);
      if (step >= most) break;
    }
  }
  if (known.length < rows.length) found.push(Infinity);
  return found;
}

const limitText = (v, unit) => (v === Infinity ? 'no limit' : `${v.toLocaleString('en')} ${unit}`);

function drawWithin(rows) {
  const best = bestWithin(rows, limits.time, limits.memory);
  if (!rows.length) {
    byId('within').textContent = 'No row with a score is shown.';
    return;
  }
  if (best === null) {
    byId('within').textContent = 'No row shown is within these limits.';
    return;
  }
  const costs = [[BUDGETS.time, 'ms'], [BUDGETS.memory, 'MiB']].map(([b, unit]) => {
    const cost = b.of(best);
    return cost === null ? `${unit} not measured` : `${amount(cost)} ${unit}`;
  });
  const n = rows.filter((r) => meets(r, 'time', limits.time) && meets(r, 'memory', limits.memory)).length;
  byId('within').replaceChildren(`Best of ${n} row${n === 1 ? '' : 's'} within these limits: `,
    h('strong', {}, named(visible(nameOf(best)))),
    `, ${data.metric} ${score(get(best, 'mean'))} [${score(get(best, 'low'))}, ${score(get(best, 'high'))}], `
    + `at ${costs.join(' and ')}.`);
}

function drawBudget(rows) {
  const own = scoredOfFirst(rows);
  drawWithin(own);
  const [times, sizes] = [rungs(own, 'time'), rungs(own, 'memory')];
  if (!own.length) {
    byId('ladder').replaceChildren();
    return;
  }
  const cell = (time, memory) => {
    const r = bestWithin(own, time, memory);
    return r === null ? h('td', {}, '-') : h('td', {}, h('strong', {}, score(get(r, 'mean'))), ' ',
      h('span', { title: visible(nameOf(r)) }, named(shortened(nameOf(r), 40))));
  };
  byId('ladder').replaceChildren(
    h('p', {}, `Best ${data.metric} of the rows shown of `, named(visible(tables[tableOf[own[0]]].title)),
      ', by the most that adapting may take (down) and the most memory (across):'),
    h('div', { class: 'scroll', role: 'region', tabindex: '0', 'aria-label': 'Best within budgets' },
      h('table', { id: 'budgets' },
        h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'adapting'),
          ...sizes.map((v) => h('th', { scope: 'col' }, limitText(v, 'MiB'))))),
        h('tbody', {}, ...times.map((time) => h('tr', {},
          h('th', { scope: 'row' }, limitText(time, 'ms')), ...sizes.map((v) => cell(time, v))))))));
}
