// All VUs write and read one hash. The checks find a write that was lost or done twice.
// k6 reports the speed; no threshold depends on it.
//
//     K6_VUS=8 K6_DURATION=30s k6 run k6/hashes.js
//     WATCH=1 k6 run k6/hashes.js
//
// WATCH is the number of VUs that also watch the hash (default 0). They check that its stream shows every change
// once and in order.

import { check } from 'k6';
import http from 'k6/http';
import { BASE, call, callJson, failOnException, json, parseId, runName } from './roomcast.js';

const ROUTE = '/v1/hashes/{hash}';
const FIELD = `${ROUTE}/fields/{field}`;
const WATCH = Number(__ENV.WATCH || 0);
// k6 returns what a stream has sent when the request's time is over. The next request resumes.
const READ_TIME = '1s';
const MOST_READS = 30;

export const options = {
  // k6 refuses fewer iterations than VUs.
  vus: Math.min(4, Number(__ENV.K6_ITERATIONS || 4)),
  duration: '10s',
  thresholds: { checks: ['rate==1'], iterations: ['count>0'] },
};

export function setup() {
  return runName(WATCH ? 'watched' : 'hashes');
}

let before = 0; // the total that this VU saw last

export default failOnException((hash) => {
  const path = `/v1/hashes/${hash}`;
  const increment = (field) =>
    callJson('POST', `${FIELD}/increment`, `${path}/fields/${field}/increment`, { by: 1 });

  const own = increment(`by-vu-${__VU}`);
  check(own, {
    'own counter: 200': (r) => r.status === 200,
    'own counter: one more each time': (r) => Number(json(r).value) === __ITER + 1,
  });

  const total = increment('total');
  check(total, {
    'shared counter: 200': (r) => r.status === 200,
    'shared counter: grows': (r) => Number(json(r).value) > before,
  });
  before = Number(json(total).value);

  const value = `${__VU}-${__ITER}`;
  check(callJson('PUT', FIELD, `${path}/fields/value-${__VU}`, { value }), {
    'put: created, then replaced': (r) => r.status === (__ITER === 0 ? 201 : 200),
  });
  check(call('GET', FIELD, `${path}/fields/value-${__VU}`), {
    'get: what was put': (r) => r.status === 200 && json(r).value === value,
  });

  if (__VU <= WATCH) watchUntil(path, `value-${__VU}`, value);
});

const watched = {}; // the fields as the stream of this VU has shown them
let snapshot = {}; // the parts that have come so far
let needsSnapshot = true; // at first, and after a gap
let lastId = ''; // of the last complete block

// Reads the stream until it has shown the value of a field.
function watchUntil(path, field, value) {
  let reads = 0;
  while (watched[field] !== value && reads < MOST_READS) {
    readStream(path);
    reads += 1;
  }
  check(watched, { 'watch: shows what was put': (fields) => fields[field] === value });
}

function readStream(path) {
  const response = http.get(`${BASE}${path}/stream`, {
    headers: lastId ? { 'Last-Event-ID': lastId } : {},
    tags: { name: `GET ${ROUTE}/stream` },
    responseType: 'text',
    timeout: READ_TIME,
  });
  // The last block may be incomplete.
  for (const block of (response.body || '').split('\n\n').slice(0, -1)) {
    const { id, event, data } = Object.fromEntries(block.split('\n').map((line) => line.split(/: (.*)/, 2)));
    if (event) receive(id, event, JSON.parse(data));
  }
}

function receive(id, event, data) {
  const [position, earlier] = [id, lastId].map((text) => parseId(text.replace(/[!~].*/, '')));
  if (event === 'hash.snapshot') {
    snapshot = data.part === 0 ? data.fields : { ...snapshot, ...data.fields };
    if (data.last) {
      needsSnapshot = false;
      for (const field in watched) delete watched[field];
      for (const field in snapshot) watched[field] = snapshot[field].value;
    }
  } else if (event === 'hash.set') {
    check(position, {
      'watch: a snapshot first': () => !needsSnapshot,
      'watch: each change once, in order': (now) => now.epoch === earlier.epoch && now.offset === earlier.offset + 1,
      'watch: counters grow by one': () =>
        Object.keys(data.fields).every((field) => {
          const isCounter = field === 'total' || field.startsWith('by-vu-');
          return !isCounter || Number(data.fields[field].value) === Number(watched[field] || 0) + 1;
        }),
    });
    for (const field in data.fields) watched[field] = data.fields[field].value;
  } else if (event === 'stream.gap') {
    needsSnapshot = true;
  }
  lastId = id;
}

export function teardown(hash) {
  const fields = json(call('GET', ROUTE, `/v1/hashes/${hash}`)).fields || {};
  const counters = Object.keys(fields).filter((field) => field.startsWith('by-vu-'));
  const sum = counters.reduce((all, field) => all + Number(fields[field].value), 0);
  check(fields, { 'no increment was lost or done twice': () => sum > 0 && sum === Number(fields.total.value) });
  call('DELETE', ROUTE, `/v1/hashes/${hash}`);
}
