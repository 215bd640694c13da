// Plots of the rows shown, as drawings with a text beside them that says the same.
const MOST_POINTS = 500;
const MOST_RANKS = 40;
const BUDGETS = {
  time: { label: 'adaptation time, ms', name: 'adaptation_s', of: (r) => get(r, 'adaptation_s') },
  memory: {
    label: 'peak memory of adapting and predicting, MiB', name: 'memory',
    of: (r) => get(r, 'peak_device_bytes') ?? get(r, 'peak_host_added_bytes'),
  },
  size: {
    label: 'size of the network as it is tested, MiB', name: 'model_bytes',
    of: (r) => get(r, 'model_bytes'),
  },
};

// Times and ranks of different tables do not compare: rows with a score, best first, of the first
// row's table are drawn.
function scoredOfFirst(rows) {
  const first = rows.length ? tableOf[rows[0]] : -1;
  return rows.filter((r) => tableOf[r] === first && get(r, 'mean') !== null).sort((a, b) => a - b);
}

function drawPlots(rows) {
  const there = byId('plots');
  const own = scoredOfFirst(rows);
  if (!own.length) {
    there.replaceChildren(h('p', {}, 'No row with a score is shown, so there is nothing to draw.'));
    return;
  }
  const table = tables[tableOf[own[0]]];
  const note = unique(rows.map((r) => tableOf[r])).length > 1
    ? ` The rows shown are of several tables; drawn is ${visible(table.title)}.` : '';
  there.replaceChildren(
    h('p', {}, named(visible(table.title)), ` (${visible(table.hardware)}).${note}`),
    paretoFigure(own), rankFigure(own), ...criticalFigures(table));
}

function frontOf(points, cost) {
  // As the tables' own fronts: as good and as cheap as any other, of the rows shown.
  const sign = data.lower ? 1 : -1;
  const order = [...points].sort((a, b) => cost(a) - cost(b)
    || sign * (get(a, 'mean') - get(b, 'mean')));
  let [best, at] = [Infinity, Infinity];
  return order.filter((r) => {
    const bad = sign * get(r, 'mean');
    if (bad < best || (bad === best && cost(r) === at)) {
      [best, at] = [bad, cost(r)];
      return true;
    }
    return false;
  });
}

function scale(low, high, from, to) {
  return (v) => from + ((v - low) / (high - low || 1)) * (to - from);
}

function ticks(low, high, n = 7) {
  const rough = (high - low) / n || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step / 1e6; v += step) found.push(v);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
    const steps = high / low > 1000 ? [1] : [1, 2, 5];
    for (const m of steps) found.push(m * 10 ** e);
  }
  return found.filter((v) => v >= low / 1.001 && v <= high * 1.001);
}
const plain = (v) => Number(v.toPrecision(3)).toLocaleString('en');

function figure(kind, title, drawing, told, ...more) {
  return h('figure', { id: kind }, h('figcaption', {}, title), ...more,
    h('div', { class: 'drawing' }, drawing), h('details', {}, h('summary', {}, 'The same as text'), told));
}

function paretoFigure(rows) {
  const budget = BUDGETS[state.budget];
  const all = rows.filter((r) => budget.of(r) > 0);
  const points = all.slice(0, MOST_POINTS);
  const choice = h('p', {}, h('label', { for: 'budget' }, 'Against '),
    h('select', { id: 'budget', onchange: (e) => { state.budget = e.target.value; update(); byId('budget').focus(); } },
      ...Object.entries(BUDGETS).map(([k, b]) => h('option', { value: k, selected: k === state.budget }, b.label))));
  const title = `${data.metric} against ${budget.label}`;
  if (!points.length) return h('figure', { id: 'pareto' }, h('figcaption', {}, title), choice, h('p', {}, 'Not measured.'));
  const front = frontOf(points, budget.of);
  const told = h('ol', {}, ...front.map((r) => h('li', {}, named(visible(nameOf(r))),
    `: ${score(get(r, 'mean'))} at ${amount(budget.of(r))} ${budget.label.split(', ')[1]}`)));
  const text = `${points.length} rows, ${front.length} on the front: no other row shown is as good at less cost.`
    + (all.length > points.length ? ` The best ${points.length} of ${all.length} are drawn.` : '');
  return figure('pareto', title, paretoDrawing(points, front, budget, `${title}. ${text}`),
    h('div', {}, h('p', {}, text), told), choice);
}

function paretoDrawing(points, front, budget, text) {
  const [width, height, left, right, top, bottom] = [720, 400, 56, 16, 12, 48];
  const costs = points.map(budget.of);
  const means = points.map((r) => get(r, 'mean'));
  const [low, high] = [Math.min(...costs) / 1.25, Math.max(...costs) * 1.25];
  const pad = (Math.max(...means) - Math.min(...means)) * 0.06 || 1;
  const [worst, best] = [Math.min(...means) - pad, Math.max(...means) + pad];
  const x = (v) => scale(Math.log(low), Math.log(high), left, width - right)(Math.log(v));
  const y = scale(worst, best, height - bottom, top);
  const drawing = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': text });
  for (const v of ticks(worst, best)) {
    drawing.append(svg('line', { x1: left, x2: width - right, y1: y(v), y2: y(v), class: 'grid' }),
      svg('text', { x: left - 6, y: y(v) + 4, class: 'tick end' }, plain(v)));
  }
  for (const v of logTicks(low, high)) {
    drawing.append(svg('line', { x1: x(v), x2: x(v), y1: top, y2: height - bottom, class: 'grid' }),
      svg('text', { x: x(v), y: height - bottom + 16, class: 'tick middle' }, plain(v)));
  }
  drawing.append(
    svg('text', { x: (left + width - right) / 2, y: height - 8, class: 'axis middle' }, `${budget.label} (logarithmic)`),
    svg('text', { x: 12, y: (top + height - bottom) / 2, class: 'axis middle', transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, data.metric));
  const steps = front.map((r, i) => (i ? `H${x(budget.of(r))}V${y(get(r, 'mean'))}` : `M${x(budget.of(r))} ${y(get(r, 'mean'))}`));
  drawing.append(svg('path', { d: `${steps.join('')}H${width - right}`, class: 'front' }));
  const on = new Set(front);
  for (const r of points) drawing.append(mark(r, x(budget.of(r)), y(get(r, 'mean')), on.has(r)));
  labels(drawing, front.map((r) => ({ r, x: x(budget.of(r)), y: y(get(r, 'mean')) })), width);
  return drawing;
}

// Inductive rows are circles, transductive ones diamonds: colour alone tells nothing.
function mark(r, x, y, front) {
  const kind = `point ${get(r, 'transductive') ? 'transductive' : 'inductive'}${front ? ' on-front' : ''}${
    state.picks.includes(keyOf(r)) ? ' picked' : ''}`;
  const title = svg('title', {}, `${visible(nameOf(r))}: ${score(get(r, 'mean'))}, ${
    amount(BUDGETS[state.budget].of(r))}${get(r, 'transductive') ? ' (transductive)' : ''}`);
  return get(r, 'transductive')
    ? svg('path', { d: `M${x} ${y - 6}l6 6l-6 6l-6-6z`, class: kind, 'data-row': r }, title)
    : svg('circle', { cx: x, cy: y, r: 4.5, class: kind, 'data-row': r }, title);
}

function labels(drawing, points, width) {
  const taken = [];
  // The best first: theirs are the names that are looked for.
  for (const { r, x, y } of [...points].reverse()) {
    const text = shortened(algorithmOf(r), 24);
    const wide = 6.6 * text.length;
    const end = x + 9 + wide > width;
    const box = { left: end ? x - 9 - wide : x + 9, top: y + 2, right: end ? x - 9 : x + 9 + wide, bottom: y + 18 };
    if (taken.some((t) => t.left < box.right && box.left < t.right && t.top < box.bottom && box.top < t.bottom)) continue;
    taken.push(box);
    drawing.append(svg('text', { x: end ? x - 9 : x + 9, y: y + 14, class: `name${end ? ' end' : ''}` }, text));
  }
}

function rankFigure(rows) {
  const all = rows.filter((r) => get(r, 'rank') !== null);
  const best = sortedBy(all, (r) => get(r, 'rank'), false).slice(0, MOST_RANKS);
  const title = 'Ranks, and those that the tests leave open';
  if (!best.length) return h('figure', { id: 'ranks' }, h('figcaption', {}, title), h('p', {}, 'No row shown has a rank.'));
  const [width, left, right, line] = [720, 230, 16, 18];
  const height = best.length * line + 44;
  const ends = (r) => [get(r, 'rank_low') ?? get(r, 'rank'), get(r, 'rank_high') ?? get(r, 'rank')];
  const most = Math.max(...best.map((r) => ends(r)[1]));
  const x = scale(1, most, left, width - right);
  const text = `${title}, in the whole table: ${best.length === all.length ? 'all' : `the best ${best.length} of`} ${all.length} rows.`;
  const drawing = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': text });
  for (const v of ticks(1, most, 8).filter((t) => t >= 1)) {
    drawing.append(svg('line', { x1: x(v), x2: x(v), y1: 4, y2: height - 36, class: 'grid' }),
      svg('text', { x: x(v), y: height - 22, class: 'tick middle' }, plain(v)));
  }
  drawing.append(svg('text', { x: (left + width) / 2, y: height - 5, class: 'axis middle' }, 'rank in the whole table (1 is best)'));
  best.forEach((r, i) => {
    const y = i * line + 14;
    const [low, high] = ends(r);
    const group = svg('g', { class: state.picks.includes(keyOf(r)) ? 'picked' : 'row' },
      svg('title', {}, `${visible(nameOf(r))}: ${rankCell(r)}`),
      svg('text', { x: left - 8, y: y + 4, class: 'name end' }, shortened(nameOf(r), 34)),
      svg('line', { x1: x(low), x2: x(high), y1: y, y2: y, class: 'interval' }),
      svg('circle', { cx: x(get(r, 'rank')), cy: y, r: 4, class: 'mean' }));
    drawing.append(group);
  });
  const told = h('ol', {}, ...best.map((r) => h('li', {}, named(visible(nameOf(r))), `: ${rankCell(r)}`)));
  return figure('ranks', title, drawing, h('div', {}, h('p', {}, text), told));
}

// What a training's loss and validation came to, over the images it looked at.
function curveDrawing(curve, text) {
  const [width, height, left, right, top, bottom] = [460, 190, 44, 44, 10, 34];
  const at = [...curve.loss_at, ...curve.val_accuracy_at];
  const x = scale(0, Math.max(...at), left, width - right);
  const drawing = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': text });
  const part = (xs, values, kind, side) => {
    if (!values.length) return;
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const y = scale(low, high, height - bottom, top);
    const edge = side === 'end' ? left - 5 : width - right + 5;
    for (const v of unique([low, high])) drawing.append(svg('text', { x: edge, y: y(v) + 4, class: `tick ${side} ${kind}` }, plain(v)));
    drawing.append(svg('polyline', { points: values.map((v, i) => `${x(xs[i])},${y(v)}`).join(' '), class: kind }));
  };
  part(curve.loss_at, curve.loss, 'loss', 'end');
  part(curve.val_accuracy_at, curve.val_accuracy, 'validation', 'start');
  drawing.append(
    svg('line', { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: 'grid' }),
    svg('text', { x: left, y: height - bottom + 14, class: 'tick start' }, '0'),
    svg('text', { x: width - right, y: height - bottom + 14, class: 'tick end' }, plain(Math.max(...at))),
    svg('text', { x: width / 2, y: height - 6, class: 'axis middle' }, 'training images'),
    svg('text', { x: left + 4, y: top + 8, class: 'tick loss' }, 'loss'),
    svg('text', { x: width - right - 4, y: top + 8, class: 'tick end validation' }, 'validation accuracy'));
  return drawing;
}
