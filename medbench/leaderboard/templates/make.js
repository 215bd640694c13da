// Elements made from text alone: a stranger's name can never become markup.
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((c) => c !== null && c !== undefined));
  return element;
}
const h = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
// Keeps right-to-left text from turning what stands beside it.
const named = (text) => h('bdi', {}, text);
const byId = (id) => document.getElementById(id);

// What would be seen as nothing, or turn the letters around it, is shown as a code.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const visible = (text) => String(text).replace(HIDDEN, (c) =>
  `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
const shortened = (text, most) => {
  const letters = [...visible(text)];
  return letters.length > most ? `${letters.slice(0, most - 1).join('')}\u2026` : letters.join('');
};

// The fastest way to sort numbers by a key is a typed array; what is missing comes last.
function sortedBy(ids, value, descending) {
  const sign = descending ? -1 : 1;
  const keys = ids.map(value);
  const order = ids.map((_, i) => i);
  order.sort((a, b) => {
    const x = keys[a];
    const y = keys[b];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    if (x < y) return -sign;
    if (x > y) return sign;
    return a - b;
  });
  return order.map((i) => ids[i]);
}
