// Two rows compared on every target they share, by the paired tests that were made with the page.
const MOST_CHOICES = 400;

function pick(key) {
  if (state.picks.includes(key)) state.picks = state.picks.filter((k) => k !== key);
  else {
    // Rows compare within one protocol on one class of hardware; a third takes the first one's place.
    const group = JSON.parse(key)[0];
    state.picks = [...state.picks.filter((k) => JSON.parse(k)[0] === group), key].slice(-2);
  }
  picked();
}

function picked() {
  for (const line of byId('rows').tBodies[0].rows) {
    const on = state.picks.includes(keyOf(Number(line.dataset.row)));
    line.classList.toggle('picked', on);
    line.querySelector('input').checked = on;
  }
  for (const point of document.querySelectorAll('#pareto .point')) {
    point.classList.toggle('picked', state.picks.includes(keyOf(Number(point.dataset.row))));
  }
  drawCompare();
}

const keyName = (key) => {
  const [, a, b] = JSON.parse(key);
  return `${data.algorithms[a]} on ${data.backbones[b]}`;
};

function drawCompare() {
  const choices = unique(lastRows.filter((r) => get(r, 'mean') !== null).slice(0, MOST_CHOICES).map(keyOf)
    .concat(state.picks));
  const selects = [0, 1].map((i) => {
    const select = h('select', {
      id: `pick-${i}`, onchange: (event) => {
        const other = state.picks[1 - i];
        const own = event.target.value;
        const fits = other && own && other !== own && JSON.parse(other)[0] === JSON.parse(own)[0];
        state.picks = i ? [fits ? other : null, own] : [own, fits ? other : null];
        state.picks = state.picks.filter((k) => k);
        picked();
        byId(`pick-${i}`).focus();
      },
    }, h('option', { value: '' }, 'pick a row'));
    for (const key of choices) select.append(h('option', { value: key }, shortened(keyName(key), 60)));
    select.value = state.picks[i] ?? '';
    return h('div', {}, h('label', { for: `pick-${i}` }, i ? 'Second row' : 'First row'), select);
  });
  byId('picks').replaceChildren(...selects);
  byId('comparison').replaceChildren(...(state.picks.length === 2 ? comparison() : [
    h('p', {}, 'Pick two rows, here or by their boxes in the table.')]));
}

function sharedTables() {
  const [one, other] = state.picks.map((k) => JSON.parse(k));
  const found = [];
  for (const table of tables) {
    if (groupOf(table) !== one[0] || table.rule) continue;
    const place = ([, a, b]) => {
      for (let i = 0; i < table.n; i += 1) {
        if (table.rows.algorithm[i] === a && table.rows.backbone[i] === b) return i;
      }
      return -1;
    };
    const [i, j] = [place(one), place(other)];
    if (i < 0 || j < 0) continue;
    found.push({ table, i, j, a: table.start + i, b: table.start + j, pair: pairOf(table, i, j) });
  }
  return found;
}

// As `medbench compare` words it; p is after its correction.
function verdictOf({ mean, low, high }, p) {
  const within = -data.matters < low && high < data.matters;
  if (p < 0.05) return ((mean > 0) === !data.lower ? 'better' : 'worse') + (within ? ', slightly' : '');
  return within ? 'equal in practice' : 'not told apart';
}

function comparison() {
  const shared = sharedTables();
  const [first, second] = state.picks.map(keyName);
  const title = h('p', {}, named(visible(first)), ' minus ', named(visible(second)),
    `, ${data.metric}${data.factor > 1 ? ' in points' : ''}:`);
  if (!shared.length) return [title, h('p', {}, 'They share no target.')];
  const targets = shared.filter((s) => s.table.target && s.pair);
  const ps = holm(targets.map((s) => s.pair.p));
  targets.forEach((s, k) => { s.p = ps[k]; });
  for (const s of shared) if (!s.table.target && s.pair) s.p = s.pair.p;
  const body = shared.map((s) => {
    const means = [s.a, s.b].map((r) => score(get(r, 'mean')));
    const times = [s.a, s.b].map((r) => amount(get(r, 'adaptation_s')));
    const d = s.pair;
    const told = d === null ? h('td', { colspan: 4 }, get(s.a, 'mean') === null || get(s.b, 'mean') === null
      ? 'one of them has no score here' : 'no test of this pair is in the page; ask the command below') : null;
    return h('tr', { class: s.table.target ? null : 'total' },
      h('th', { scope: 'row' }, named(placeText(s.table))),
      h('td', {}, means[0]), h('td', {}, means[1]),
      ...(told ? [told] : [
        h('td', {}, `${signed(d.mean * data.factor)} [${signed(d.low * data.factor)}, ${signed(d.high * data.factor)}]`),
        h('td', {}, pText(s.p)), h('td', {}, pText(corrected(s.table)(s.i, s.j))),
        h('td', { class: 'text' }, verdictOf(d, s.p))]),
      h('td', {}, times[0]), h('td', {}, times[1]));
  });
  const head = ['target', 'first', 'second', 'difference [95 %]', 'p', 'p, all pairs', 'verdict', 'adapt ms, first', 'second'];
  const words = state.picks.map((k) => {
    const [, a, b] = JSON.parse(k);
    return shellWord(`${data.algorithms[a]}@${data.backbones[b]}`);
  });
  return [
    title,
    h('div', { class: 'scroll', role: 'region', tabindex: '0', 'aria-label': 'Comparison' },
      h('table', { id: 'pairs' }, h('thead', {}, h('tr', {}, ...head.map((t) => h('th', { scope: 'col' }, t)))),
        h('tbody', {}, ...body))),
    h('p', {}, 'Paired on shared seeds and episodes. p: corrected by Holm\u2019s method for the targets shown; '
      + 'all pairs: for all pairs of the table, as is due when the two were picked by their scores. '
      + `The smallest difference that matters is ${(data.matters * data.factor).toFixed(data.digits)}. On a terminal:`),
    command(`medbench compare ${data.metric_name === 'accuracy' ? '' : `--metric ${data.metric_name} `}-- ${words.join(' ')} .`),
  ];
}

// One word of a shell, with nothing in it that could hide or act.
function shellWord(text) {
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text)) return text;
  if (visible(text) === text) return `'${text.replaceAll("'", "'\\''")}'`;
  const escaped = [...text].map((c) => (visible(c) === c && !"'\\".includes(c)
    ? c : `\\U${c.codePointAt(0).toString(16).padStart(8, '0')}`));
  return `$'${escaped.join('')}'`;
}
