// Publishes as fast as the VUs can, and checks ids and logs. k6 reports the speed; no threshold depends on it.
//
//     K6_VUS=8 K6_DURATION=30s k6 run k6/publish.js
//
// ROOMS is the number of rooms (default 4), BYTES the size of each event's data (default 200).

import { check } from 'k6';
import { call, callJson, failOnException, isAfter, json, parseId, runName } from './roomcast.js';

const ROOMS = Number(__ENV.ROOMS || 4);
const TEXT = 'x'.repeat(Number(__ENV.BYTES || 200));
const ROUTE = '/v1/rooms/{room}/events';

export const options = {
  // k6 refuses fewer iterations than VUs.
  vus: Math.min(4, Number(__ENV.K6_ITERATIONS || 4)),
  duration: '10s',
  thresholds: { checks: ['rate==1'], iterations: ['count>0'] },
};

export function setup() {
  return runName('publish');
}

// The last id that this VU received, by room.
const last = {};

export default failOnException((run) => {
  const room = `${run}-${__ITER % ROOMS}`;
  const response = callJson('POST', ROUTE, `/v1/rooms/${room}/events`, { event: 'load', data: TEXT });
  const id = parseId(json(response).id);
  check(response, {
    'stored: 201': (r) => r.status === 201,
    'an id in this room': (r) => json(r).room === room && id !== null,
    // Other VUs publish to the room too, so the next id need not have the next offset.
    'after the id before': () => id !== null && (!last[room] || isAfter(id, last[room])),
  });
  last[room] = id || last[room];
});

export function teardown(run) {
  let found = 0;
  for (let number = 0; number < ROOMS; number++) {
    const page = json(call('GET', ROUTE, `/v1/rooms/${run}-${number}/events?limit=100`));
    const ids = (page.events || []).map((event) => parseId(event.id));
    found += ids.length;
    check(ids, {
      'the log has no holes': () =>
        ids.every((id, i) => i === 0 || (id.epoch === ids[i - 1].epoch && id.offset === ids[i - 1].offset + 1)),
    });
  }
  check(found, { 'the logs have events': () => found > 0 });
}
