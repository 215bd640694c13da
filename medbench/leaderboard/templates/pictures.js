// A few query images of rows, with what is true and what was predicted; only in pages with such.
const MOST_PICTURED = 24;

const pictureOf = (r) => tables[tableOf[r]].pictures?.[rowOf[r]] ?? null;

function drawPictures(rows) {
  const found = rows.flatMap(ofTargets).filter(pictureOf);
  const shown = found.slice(0, MOST_PICTURED);
  const licences = unique(shown.flatMap(licenceOf));
  byId('pictures').replaceChildren(
    h('p', {}, shown.length ? [
      'The first queries of the first test episode, the same images for rows of one target.',
      data.pictures.masks ? 'Masks: a wash of colour is what was predicted, a line what is true; each class has a colour. Of a volume its slice with most of what is true.'
        : 'Boxes: white and thin what is true; in colours what was predicted, of which as many are drawn as are true, the surest.',
      found.length > shown.length ? `Of ${found.length} the first ${shown.length} are shown: filters and sorting choose which.` : '',
      data.pictures.left_out ? `${data.pictures.left_out} more were left out to keep the page small.` : '',
    ].filter((s) => s).join(' ') : 'None of these rows has a picture.',
    ' ', licences.length ? named(visible(`Data: ${licences.join('; ')}.`)) : null),
    ...shown.map((r) => {
      const place = placeText(tables[tableOf[r]]);
      const value = get(r, 'mean') === null ? 'no score' : score(get(r, 'mean'));
      return h('figure', {},
        h('img', {
          src: pictureOf(r), loading: 'lazy',
          alt: `Query images of ${visible(place)} with truth and answers of ${visible(nameOf(r))}`,
        }),
        h('figcaption', {}, named(visible(nameOf(r))), h('span', { class: 'note' }, named(visible(place)), `: ${data.metric} ${value}`)));
    }));
}
