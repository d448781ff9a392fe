// Asks /worker.json many times at once and draws how many of the answers came from which worker.
'use strict';

const REQUESTS = 40;
const AT_ONCE = 8; // A browser may open fewer connections to one host (often 6) and queue the rest.

const button = document.getElementById('send');
const progress = document.getElementById('progress');
const table = document.getElementById('tally');

// Without this file the button would do nothing, so the page shows it only here.
button.hidden = false;
button.addEventListener('click', async () => {
  button.disabled = true;
  await sendAll();
  button.disabled = false;
});

async function sendAll() {
  const counts = new Map();
  const started = performance.now();
  let sent = 0;
  let failed = 0;

  async function sendSome() {
    while (sent < REQUESTS) {
      sent += 1;
      try {
        const worker = await askOnce(sent);
        counts.set(worker, (counts.get(worker) || 0) + 1);
      } catch {
        failed += 1;
      }
      draw(counts);
      progress.textContent = `${answered(counts)} of ${REQUESTS} answered${failed ? `, ${failed} failed` : ''} …`;
    }
  }

  await Promise.all(Array.from({ length: AT_ONCE }, sendSome));
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  const workers = counts.size === 1 ? '1 worker' : `${counts.size} workers`;
  progress.textContent =
    `${answered(counts)} requests answered by ${workers} in ${seconds} s` + (failed ? `; ${failed} failed.` : '.');
}

async function askOnce(number) {
  // A browser sends requests for one and the same URL one after another when it might cache them; hence the number.
  const response = await fetch(`${button.dataset.url}?n=${number}`, { cache: 'no-store' });
  if (!response.ok) throw new Error(`HTTP status ${response.status}`);
  const { pid, hostname } = await response.json();
  return `${pid} on ${hostname}`;
}

function answered(counts) {
  return [...counts.values()].reduce((sum, count) => sum + count, 0);
}

function draw(counts) {
  const longest = Math.max(1, ...counts.values());
  const rows = [...counts].sort().map(([worker, count]) => row(worker, count, count / longest));
  table.tBodies[0].replaceChildren(...rows);
  table.hidden = rows.length === 0;
}

function row(worker, count, share) {
  const line = document.createElement('tr');
  const head = document.createElement('th');
  head.scope = 'row';
  head.textContent = worker;
  const number = document.createElement('td');
  number.textContent = count;
  const bar = document.createElement('td');
  bar.append(document.createElement('div'));
  bar.firstChild.className = 'bar';
  bar.firstChild.style.width = `${share * 100}%`;
  line.append(head, number, bar);
  return line;
}
