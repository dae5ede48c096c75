// All VUs write and read one hash. The checks find a write that was lost or done twice.
// k6 reports the speed; no threshold depends on it.
//
//     K6_VUS=8 K6_DURATION=30s k6 run k6/hashes.js

import { check } from 'k6';
import { call, callJson, failOnException, json, runName } from './roomcast.js';

const ROUTE = '/v1/hashes/{hash}';
const FIELD = `${ROUTE}/fields/{field}`;

export const options = {
  // k6 refuses fewer iterations than VUs.
  vus: Math.min(4, Number(__ENV.K6_ITERATIONS || 4)),
  duration: '10s',
  thresholds: { checks: ['rate==1'], iterations: ['count>0'] },
};

export function setup() {
  return runName('hashes');
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
});

export function teardown(hash) {
  const fields = json(call('GET', ROUTE, `/v1/hashes/${hash}`)).fields || {};
  const counters = Object.keys(fields).filter((field) => field.startsWith('by-vu-'));
  const sum = counters.reduce((all, field) => all + Number(fields[field].value), 0);
  check(fields, { 'no increment was lost or done twice': () => sum > 0 && sum === Number(fields.total.value) });
  call('DELETE', ROUTE, `/v1/hashes/${hash}`);
}
