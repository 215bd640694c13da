// All about one row: scores and costs, how its network learned, where it came from, how to run it.
const MOST_FAILED = 200;

function command(text) {
  const code = h('code', { tabindex: '0' }, text);
  const button = h('button', {
    type: 'button', onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = 'Copied';
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = 'Selected';
      }
    },
  }, 'Copy');
  return h('p', { class: 'command' }, code, ' ', button);
}

const list = (pairs) => h('dl', {}, ...pairs.filter(([, v]) => v !== null && v !== '' && v !== '-')
  .flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, typeof value === 'string' ? named(visible(value)) : value)]));

const flat = (value) => (value === null || typeof value !== 'object' ? String(value)
  : Object.entries(value).map(([k, v]) => `${k} ${v !== null && typeof v === 'object' ? JSON.stringify(v) : v}`).join(', '));

function showDetails(r) {
  const table = tables[tableOf[r]];
  const dialog = byId('details');
  const own = ofTargets(r);
  dialog.replaceChildren(
    h('div', { class: 'head' },
      h('h2', { id: 'details-title' }, named(visible(nameOf(r)))),
      h('button', { type: 'button', onclick: () => dialog.close() }, 'Close')),
    h('p', {}, named(visible(table.title))),
    list([
      [`${data.metric} [95 %]`, get(r, 'mean') === null ? data.failed[get(r, 'failed')]
        : `${score(get(r, 'mean'))} [${score(get(r, 'low'))}, ${score(get(r, 'high'))}]`],
      ['measured on', `${get(r, 'n_seeds')} seed${get(r, 'n_seeds') === 1 ? '' : 's'}, ${get(r, 'n_episodes').toLocaleString('en')} episodes`],
      ['rank', rankCell(r)],
      ['setting', get(r, 'transductive') ? 'transductive: sees all queries of an episode at once' : 'inductive'],
      ['pretraining', weightsOf(r).join(', ')],
      ['overlap', overlapOf(r).join('; ')],
      ['data licences', licenceOf(r).join('; ')],
      ['adapt ms', `${amount(get(r, 'adaptation_s'))} (95th percentile ${amount(get(r, 'adaptation_p95_s'))}, interquartile range ${amount(get(r, 'adaptation_iqr_s'))})`],
      ['features ms', amount(get(r, 'feature_s'))],
      ['model MiB', amount(get(r, 'model_bytes'))],
      ['device MiB reserved', amount(get(r, 'peak_device_reserved_bytes'), 1)],
      ['train images', amount(get(r, 'train_images'), 0)],
      ['sources', table.sources.join(', ')],
      ['hardware', table.hardware],
    ]),
    ...own.map((o) => provenance(o, own.length > 1)));
  dialog.showModal();
  dialog.scrollTop = 0;
}

function provenance(r, one) {
  const table = tables[tableOf[r]];
  const records = recordsOf(r);
  const title = one ? `${placeText(table)}: ${get(r, 'mean') === null ? 'no score' : score(get(r, 'mean'))}` : 'Where it comes from';
  const parts = records.map((k) => recordDetails(r, k));
  return one ? h('details', {}, h('summary', {}, named(title)), ...parts) : h('section', {}, h('h3', {}, title), ...parts);
}

function recordDetails(r, k) {
  const told = tables[tableOf[r]].records;
  const part = (name) => (told[name][k] < 0 ? {} : data.parts[told[name][k]] ?? {});
  const [algorithm, backbone, target, machine] = ['algorithm', 'backbone', 'target', 'machine'].map(part);
  const plugin = (spec) => (spec.plugin ? `, version ${spec.version}, from ${spec.plugin.distribution} ${spec.plugin.version}, source ${String(spec.plugin.source).slice(0, 12)}` : '');
  const curve = data.curves[told.curve[k]];
  const created = told.created[k] === null ? '' : new Date(Date.UTC(2000, 0, 1) + 1000 * told.created[k]).toISOString().slice(0, 19).replace('T', ' ');
  return h('div', { class: 'record' },
    h('h4', {}, `Seed ${told.seed[k]}${told.ok[k] ? '' : ': failed'}`),
    command(`medbench reproduce ${fileOf(r, k)}`),
    list([
      ['algorithm', algorithm.name ? `${algorithm.name}${plugin(algorithm)}` : ''],
      ['its parameters', algorithm.params ? flat(algorithm.params) : ''],
      ['backbone', backbone.name ? `${backbone.name}${plugin(backbone)}` : ''],
      ['its parameters ', backbone.params ? flat(backbone.params) : ''],
      ['weights', [backbone.weights, backbone.weights_digest].filter((v) => v).map((v) => String(v).slice(0, 60)).join(', digest ')],
      ['data', target.dataset ? `${target.dataset.name}, version ${target.dataset.version}, digest ${String(target.dataset.digest).slice(0, 16)}` : ''],
      ['episodes', target.n_episodes ? `${target.n_episodes}, digest ${String(target.episodes).slice(0, 16)}` : ''],
      ['training budget', target.budget_images ? `${target.budget_images.toLocaleString('en')} images` : ''],
      ['machine', machine.hardware ? flat(machine.hardware) : ''],
      ['versions', machine.versions ? flat(machine.versions) : ''],
      ['created', created ? `${created} UTC` : ''],
    ]),
    curve && curve.loss.length + curve.val_accuracy.length ? curveDrawing(curve, curveText(curve)) : null);
}

function curveText(curve) {
  const parts = [];
  if (curve.loss.length) parts.push(`loss from ${plain(curve.loss[0])} to ${plain(curve.loss.at(-1))}`);
  if (curve.val_accuracy.length) parts.push(`validation accuracy from ${plain(curve.val_accuracy[0])} to ${plain(curve.val_accuracy.at(-1))}`);
  return `Learning curve: ${parts.join(', ')}.`;
}

function drawFailures() {
  const { protocol, backbone, target, shot } = state.filters;
  // Those of tables over several targets are of all of them.
  const single = tables.some((t) => t.target && t.target === target);
  const text = state.filters.text.trim().toLowerCase();
  const found = data.failures.filter((f) => (!protocol || f.protocol === protocol)
    && (!backbone || f.backbone === backbone) && (!single || f.table === target)
    && (!shot || shot === ALL_SHOTS || `${f.shot}-shot` === shot)
    && (!text || `${f.algorithm} on ${f.backbone}`.toLowerCase().includes(text)));
  byId('failed').replaceChildren(
    h('p', {}, found.length ? `${found.length} cell${found.length === 1 ? '' : 's'}.${found.length > MOST_FAILED ? ` The first ${MOST_FAILED} are shown.` : ''}`
      : data.failures.length ? 'None among these rows.' : 'None: every cell was measured.'),
    ...found.slice(0, MOST_FAILED).map((f) => h('details', { class: 'failure' },
      h('summary', {}, h('span', { class: 'badge failed' }, f.status), ' ', named(visible(f.algorithm)), ' on ',
        named(visible(f.backbone)), ', ', named(visible(f.target)), `, seed ${f.seed}`),
      h('p', {}, `${visible(f.stage) || 'unknown stage'}: `, named(visible(f.error))),
      command(`medbench reproduce ${f.record}`),
      f.log ? h('pre', { tabindex: '0', 'aria-label': 'Last lines of the log' }, f.log.split('\n').map(visible).join('\n')) : h('p', {}, 'No lines of a log are in the page.'))));
}
