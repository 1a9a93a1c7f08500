'use strict';
(() => {
  // Texts are inserted through textContent and setAttribute only, never as HTML.
  const data = JSON.parse(document.getElementById('data').textContent);
  const grid = document.getElementById('grid'), more = document.getElementById('more');
  const search = document.getElementById('search'), sort = document.getElementById('sort');
  const STEP = 60;
  const plain = text => text.normalize('NFD').replace(/\p{M}/gu, '').toLowerCase();
  const cards = data.cards.map(([name, common, also, badge, area, expected, max, picture, links], at) =>
    ({name, common, badge, area, expected, max, picture, links, at, words: plain([name, common, also, badge].join(' '))}));
  const km2 = value => value === null ? '–' : Math.round(value).toLocaleString('en') + ' km²';
  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  function draw(card) {
    const article = make('article', 'card');
    const image = make('img');
    image.loading = 'lazy';
    image.width = data.width;
    image.height = data.height;
    image.alt = 'Map of ' + card.name;
    image.src = card.picture;
    article.append(image, make('h2', '', card.name));
    if (card.common) article.append(make('div', 'common', card.common));
    if (card.badge) article.append(make('div', 'badge', card.badge));
    const most = card.max === null ? 'not modelled here' : 'highest ' + card.max.toFixed(2);
    article.append(make('div', 'numbers', card.max === null ? most : km2(card.area) + ' above ' + data.threshold + ', ' + most));
    if (card.links.length) {
      const links = make('div', 'links');
      for (const [label, href] of card.links) {
        const link = make('a', '', label);
        link.setAttribute('href', href);
        links.append(link);
      }
      article.append(links);
    }
    return article;
  }

  let shown = [], drawn = 0;
  function grow() {
    const next = shown.slice(drawn, drawn + STEP);
    drawn += next.length;
    grid.append(...next.map(draw));
  }
  function update() {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    shown = cards.filter(card => words.every(word => card.words.includes(word)));
    const key = sort.value;
    if (key === 'name') shown.sort((a, b) => a.name.localeCompare(b.name));
    else if (key !== 'list') shown.sort((a, b) => (b[key] ?? -1) - (a[key] ?? -1) || a.at - b.at);
    document.getElementById('count').textContent = shown.length.toLocaleString('en') + ' of ' + cards.length.toLocaleString('en');
    grid.replaceChildren();
    drawn = 0;
    grow();
    fill();
  }
  // Adds cards when the end of the page comes into view.
  const near = () => more.getBoundingClientRect().top < innerHeight + 600;
  function fill() { while (drawn < shown.length && near()) grow(); }
  addEventListener('scroll', fill, {passive: true});
  addEventListener('resize', fill);
  addEventListener('beforeprint', () => { while (drawn < shown.length) grow(); });

  const failures = document.getElementById('failures');
  if (data.failures.length) {
    failures.querySelector('summary').textContent = 'Not mapped: ' + data.failures.length.toLocaleString('en');
    for (const [name, why] of data.failures) {
      const row = make('tr');
      row.append(make('td', '', name), make('td', '', why));
      failures.querySelector('tbody').append(row);
    }
  } else failures.remove();
  search.addEventListener('input', update);
  sort.addEventListener('change', update);
  update();
})();
