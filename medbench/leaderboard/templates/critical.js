// A critical-difference diagram (Demšar 2006, figure 1): methods on a line of mean ranks over data
// sets, and bars that join those whom Nemenyi's test does not tell apart. No filter changes it,
// since a rank is one among all rows.
const MOST_METHODS = 40;

function criticalFigures(table) {
  if (!table.across) return [];
  const found = table.across;
  const all = found.rows.map((i) => nameOf(table.start + i));
  const shown = all.slice(0, MOST_METHODS);
  const some = shown.length < all.length;
  const length = found.difference.toFixed(2);
  const bars = found.bars.map(([from, to]) => all.slice(from, to + 1));
  const title = `Critical-difference diagram: mean ranks over ${found.n} data sets`;
  const text = [
    `Ranks are among all ${all.length} rows with a score, whatever the filters; shots of a data set are averaged.`,
    some ? `The best ${shown.length} are drawn, and bars up to the last of them; the text lists all.` : '',
    `A bar joins rows that Nemenyi's test does not tell apart at 5\u00a0%: mean ranks less than the critical difference, ${length}, apart.`,
    bars.length ? '' : 'Here it tells all of them apart.',
    found.p < 0.05 ? '' : `Friedman's test (p ${pText(found.p)}) does not show that any rows differ at all.`,
  ].filter((s) => s).join(' ');
  const ranked = shown.map((name, i) => `${i + 1}: ${visible(name)}, ${found.ranks[i].toFixed(2)}`).join('; ');
  const joined = found.bars.map(([from, to]) => `${from + 1} to ${to + 1}`).join(', ');
  const drawing = criticalDrawing(found, shown);
  drawing.prepend(svg('title', { id: 'critical-title' }, `${title}, critical difference ${length}`),
    svg('desc', { id: 'critical-text' }, `${text} Mean ranks: ${ranked}. Bars: ${joined || 'none'}.`));
  const told = h('div', {},
    h('p', {}, `Mean ranks, 1 is best; critical difference ${length}:`),
    h('ol', {}, ...all.map((name, i) => h('li', {}, named(visible(name)), `: ${found.ranks[i].toFixed(2)}`))),
    h('p', {}, bars.length ? 'Joined by a bar:' : 'No two rows are joined by a bar.'),
    h('ul', {}, ...bars.map((names) => h('li', {},
      ...names.flatMap((name, i) => [i ? ', ' : '', named(visible(name))])))));
  return [figure('critical', h('span', {}, title, h('span', { class: 'note' }, text)), drawing, told)];
}

// Each bar on the first level where it comes near no other; returns levels and how many.
function levelsOf(bars) {
  const ends = [];
  const levels = bars.map(([from, to]) => {
    const free = ends.findIndex((end) => end + 12 < from);
    const level = free < 0 ? ends.length : free;
    ends[level] = to;
    return level;
  });
  return [levels, ends.length];
}

function criticalDrawing(found, names) {
  // On a phone there is room for names on one side alone.
  const slim = matchMedia('(max-width: 640px)').matches;
  const [width, side, inset, line, top] = slim ? [400, 150, 38, 19, 58] : [860, 222, 38, 19, 58];
  const right = slim ? width - 12 : width - side - inset;
  const ranks = found.ranks.slice(0, names.length);
  const last = names.length - 1;
  const low = Math.floor(ranks[0]);
  const high = Math.max(Math.ceil(ranks[last]), low + found.difference);
  const x = scale(low, high, side + inset, right);
  // Of bars that go on past the last row drawn, the first holds the others.
  const bars = found.bars.filter(([from], i) => from < last && !(i && found.bars[i - 1][1] >= last))
    .map(([from, to]) => [x(ranks[from]), x(ranks[Math.min(to, last)])]);
  const [levels, deep] = levelsOf(bars);
  const first = top + 14 + deep * 8 + 12;
  const left = slim ? names.length : Math.ceil(names.length / 2);
  const bottom = first + (left - 1) * line;
  const height = bottom + 34;
  const drawing = svg('svg', { viewBox: `0 0 ${width} ${height}`, class: slim ? 'slim' : 'wide', role: 'img', 'aria-labelledby': 'critical-title', 'aria-describedby': 'critical-text' });
  const end = x(low + found.difference);
  drawing.append(
    svg('text', { x: x(low), y: 12, class: 'tick' }, `critical difference ${found.difference.toFixed(2)}`),
    svg('path', { d: `M${x(low)} 17v8m0-4H${end}m0-4v8`, class: 'length' }),
    svg('line', { x1: x(low), x2: x(high), y1: top, y2: top, class: 'axis-line' }),
    svg('text', { x: slim ? right : width / 2, y: height - 5, class: `axis ${slim ? 'end' : 'middle'}` }, `mean rank over ${found.n} data sets (1 is best)`));
  for (const v of ticks(low, high, 8)) {
    drawing.append(svg('line', { x1: x(v), x2: x(v), y1: top - 5, y2: top, class: 'axis-line' }),
      svg('text', { x: x(v), y: top - 9, class: 'tick middle' }, plain(v)));
  }
  names.forEach((name, i) => {
    // The best at the top of the left, the worst at the top of the right: no two leads cross.
    const here = i < left;
    const y = first + (here ? i : last - i) * line;
    const edge = here ? side : width - side;
    const rank = ranks[i].toFixed(2);
    drawing.append(svg('g', { class: 'method' },
      svg('title', {}, `${visible(name)}: mean rank ${rank}`),
      svg('path', { d: `M${x(ranks[i])} ${top}V${y}H${edge}`, class: 'lead' }),
      svg('text', { x: here ? side + 3 : width - side - 3, y: y - 3, class: `tick${here ? '' : ' end'}` }, rank),
      svg('text', { x: here ? side - 6 : width - side + 6, y: y + 4, class: `name${here ? ' end' : ''}` }, shortened(name, slim ? 20 : 30))));
  });
  bars.forEach(([from, to], i) => drawing.append(svg('line', {
    x1: from, x2: to, y1: top + 12 + levels[i] * 8, y2: top + 12 + levels[i] * 8, class: 'joined',
  })));
  return drawing;
}
