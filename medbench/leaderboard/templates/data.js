// What the page knows: the JSON block, rows of all tables as one list, numbers as they are printed.
const data = JSON.parse(document.getElementById('data').textContent);
const tables = data.tables;

// Row r of the page is row rowOf[r] of tables[tableOf[r]].
const nRows = tables.reduce((n, t) => n + t.n, 0);
const tableOf = new Int32Array(nRows);
const rowOf = new Int32Array(nRows);
// A column whose values are all one is that value; lists of records are as long as the counts say.
const unpacked = (column, n) => (Array.isArray(column) ? column : new Array(n).fill(column));
tables.reduce((start, table, t) => {
  table.counts = unpacked(table.counts, table.n);
  const nRecords = table.counts.reduce((a, b) => a + b, 0);
  for (const [part, n] of [[table.rows, table.n], [table.records, nRecords]]) {
    for (const name of Object.keys(part)) part[name] = unpacked(part[name], n);
  }
  for (let i = 0; i < table.n; i += 1) {
    tableOf[start + i] = t;
    rowOf[start + i] = i;
  }
  table.start = start;
  return start + table.n;
}, 0);

const get = (r, name) => tables[tableOf[r]].rows[name]?.[rowOf[r]] ?? null;
const algorithmOf = (r) => data.algorithms[get(r, 'algorithm')];
const backboneOf = (r) => data.backbones[get(r, 'backbone')];
const overlapOf = (r) => data.overlaps[get(r, 'overlap')];
const weightsOf = (r) => data.weights[get(r, 'weights')];
const licenceOf = (r) => data.licences[get(r, 'licence')];
const nameOf = (r) => `${algorithmOf(r)} on ${backboneOf(r)}`;
const targetOf = (table) =>
  table.target || (table.rule ? `overall, ${table.rule}` : 'overall');
// Rows that compare: one protocol on one class of hardware.
const groupOf = (table) => JSON.stringify([table.protocol, table.hardware]);

const score = (value) => (value === null ? '-' : value.toFixed(data.digits));
const signed = (value) => (value < 0 ? '\u2212' : '+') + Math.abs(value).toFixed(data.digits);
const pText = (p) => (p === null ? '-' : p < 0.001 ? '<0.001' : p.toFixed(3));
function amount(value, digits) {
  if (value === null || value === undefined) return '-';
  const places = digits ?? (value >= 100 ? 0 : value >= 10 ? 1 : 2);
  return value.toLocaleString('en', {
    minimumFractionDigits: places, maximumFractionDigits: places,
  });
}

// A row's records: places in the columns of its table.
function recordsOf(r) {
  const table = tables[tableOf[r]];
  const i = rowOf[r];
  let start = 0;
  for (let k = 0; k < i; k += 1) start += table.counts[k];
  return Array.from({ length: table.counts[i] }, (_, k) => start + k);
}

// The file of a record, as one word of a shell.
function fileOf(r, record) {
  const table = tables[tableOf[r]];
  const name = table.records.key[record];
  if (!name.startsWith('-')) return name;
  const words = [
    table.place, data.slugs.backbones[get(r, 'backbone')],
    data.slugs.algorithms[get(r, 'algorithm')], `seed${table.records.seed[record]}`,
  ];
  return `${data.folder}${words.filter((w) => w).join('_')}${name}.json`;
}

// Every pair of a table's rows takes three characters a number: difference, low, high, -log10 p,
// and with several seeds -log10 of the p that the table's letters go by.
const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_';
const digitOf = new Map([...ALPHABET].map((c, i) => [c, i]));
function packedNumber(pairs, place, at) {
  const start = 3 * (pairs.numbers * place + at);
  return [...pairs.text.slice(start, start + 3)].reduce((sum, c) => sum * 64 + digitOf.get(c), 0);
}

function pairOf(table, a, b) {
  const pairs = table.pairs;
  if (!pairs) return null;
  const i = pairs.rows.indexOf(a);
  const j = pairs.rows.indexOf(b);
  if (i < 0 || j < 0) return null;
  const [first, second] = i < j ? [i, j] : [j, i];
  const n = pairs.rows.length;
  const place = (first * (2 * n - first - 1)) / 2 + second - first - 1;
  const [d, low, high, p] = [0, 1, 2, 3].map((at) => packedNumber(pairs, place, at));
  const value = (v) => (v - 131072) * pairs.unit;
  const told = { mean: value(d), low: value(low), high: value(high), p: 10 ** (-p / 10000) };
  return i < j ? told : { mean: -told.mean, low: -told.high, high: -told.low, p: told.p };
}

// Holm's step-down correction, as the tables' own.
function holm(ps) {
  const order = ps.map((_, i) => i).sort((a, b) => ps[a] - ps[b]);
  const found = new Array(ps.length);
  let most = 0;
  order.forEach((i, rank) => {
    most = Math.max(most, Math.min(1, ps[i] * (ps.length - rank)));
    found[i] = most;
  });
  return found;
}

// The p of a pair, corrected for all pairs of its table: what telling letters apart means.
function corrected(table) {
  if (!table.corrected) {
    const { text, rows, numbers } = table.pairs;
    const ps = Array.from({ length: text.length / 3 / numbers },
      (_, k) => 10 ** (-packedNumber(table.pairs, k, numbers - 1) / 10000));
    const found = holm(ps);
    table.corrected = (a, b) => {
      const [i, j] = [rows.indexOf(a), rows.indexOf(b)].sort((x, y) => x - y);
      return found[(i * (2 * rows.length - i - 1)) / 2 + j - i - 1];
    };
  }
  return table.corrected;
}
