// Faults of a page that is shown: what is cut, overlaps, cannot be read or has no name. For test_page.py.
() => {
  const found = [], seen = [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && box.height && e.checkVisibility({ visibilityProperty: true }) && !e.closest('.skip');
  });
  const name = e => `${e.tagName} ${e.id || e.className} "${(e.innerText || '').slice(0, 30)}"`;
  if (document.documentElement.scrollWidth > innerWidth) found.push(`${document.documentElement.scrollWidth} wide`);
  for (const e of seen) {
    const box = e.getBoundingClientRect();
    if (box.left < -.5 || box.right > innerWidth + .5) found.push(`beyond the edge: ${name(e)}`);
    const clips = ['TEXTAREA', 'INPUT'].includes(e.tagName) || getComputedStyle(e).overflowX !== 'visible';
    if (!clips && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')
      found.push(`cut: ${name(e)}`);
  }
  const boxes = seen.filter(e => e.matches('h1, h2, p, label, button, textarea, input, summary, a, dt, dd, pre, th, td'
    + ', .turns li, .place, .score')).filter(e => !e.closest('.turns') || e.matches('li'));
  for (const [i, e] of boxes.entries()) for (const other of boxes.slice(i + 1)) {
    if (e.contains(other) || other.contains(e)) continue;
    if (e.matches('li') || other.matches('li')) continue;  // they scroll within their box
    const a = e.getBoundingClientRect(), b = other.getBoundingClientRect();
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1) found.push(`overlap: ${name(e)} / ${name(other)}`);
  }
  const numbers = text => (/rgba?\(([^)]*)\)/.exec(text) ?? ['', '0,0,0,0'])[1].split(',').map(Number);
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
  const ground = e => {
    if (!e) return [255, 255, 255];
    const own = numbers(getComputedStyle(e).backgroundColor);
    return (own[3] ?? 1) === 1 ? own : over(own, ground(e.parentElement));
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  for (const e of seen) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (e.matches(':disabled')) continue;
    const below = ground(e), [x, y] = [light(over(numbers(getComputedStyle(e).color), below)), light(below)];
    const contrast = (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
    if (contrast < 4.5) found.push(`contrast ${contrast.toFixed(2)}: ${name(e)}`);
  }
  for (const e of document.querySelectorAll('textarea, input')) if (!e.labels.length) found.push(`no label: ${name(e)}`);
  for (const e of document.querySelectorAll('button, summary, a')) if (!e.innerText.trim()) found.push(`no name: ${name(e)}`);
  return found;
}
