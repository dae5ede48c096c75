// Opens streams in one room, publishes to it, and checks that each stream gets every event once and in order.
// Needs a k6 with the extension xk6-sse, see README.md.
//
//     STREAMS=100 k6 run k6/streams.js
//
// STREAMS (default 50), EVENTS (default 100) and RATE (events a second, default 10) shape the load. A stream
// blocks its VU until it ends, so there is one VU a stream.

import { check, sleep } from 'k6';
import { Trend } from 'k6/metrics';
import sse from 'k6/x/sse';
import { BASE, callJson, failOnException, json, parseId, runName } from './roomcast.js';

const STREAMS = Number(__ENV.STREAMS || 50);
const EVENTS = Number(__ENV.EVENTS || 100);
const RATE = Number(__ENV.RATE || 10);
// Streams get this long to open before the first event. One that is later has less to expect, no more.
const HEAD_START = 5;
// Nothing but `timeout` ends a stream that never sees the last event.
const TIMEOUT = HEAD_START + Math.ceil(EVENTS / RATE) + 30;

// Publisher and subscribers share this machine's clock.
const delivery = new Trend('delivery', true);

export const options = {
  scenarios: {
    subscribe: {
      executor: 'per-vu-iterations',
      exec: 'subscribe',
      vus: STREAMS,
      iterations: 1,
      maxDuration: `${TIMEOUT + 10}s`,
    },
    publish: {
      executor: 'per-vu-iterations',
      exec: 'publish',
      vus: 1,
      iterations: 1,
      startTime: `${HEAD_START}s`,
      maxDuration: `${TIMEOUT}s`,
    },
  },
  thresholds: {
    checks: ['rate==1'],
    // Every stream ended, and so did the publisher.
    iterations: [`count==${STREAMS + 1}`],
  },
};

export function setup() {
  return runName('streams');
}

export const subscribe = failOnException((room) => {
  let open = false;
  let position = null; // where the stream stands: from stream.open, then from each event
  let inOrder = true;
  let gaps = 0;
  let finished = false;

  const response = sse.open(`${BASE}/v1/rooms/${room}/stream`, { timeout: `${TIMEOUT}s` }, (client) => {
    client.on('open', () => {
      open = true;
    });
    client.on('event', (event) => {
      if (event.name === 'stream.open') {
        position = parseId(event.id);
      } else if (event.name === 'stream.gap') {
        gaps += 1;
      } else if (event.name === 'stream.end') {
        client.close();
      } else if (event.name === 'tick' || event.name === 'last') {
        const id = parseId(event.id);
        inOrder = inOrder && position !== null && id.epoch === position.epoch && id.offset === position.offset + 1;
        position = id;
        delivery.add(Date.now() - JSON.parse(event.data).at);
        finished = event.name === 'last';
        if (finished) client.close();
      } // else a heartbeat: the extension makes an event of every comment
    });
    client.on('error', () => {
      // The extension goes on waiting after an error, and can't close what did not open.
      if (open) client.close();
    });
  });

  check(response, {
    'stream: 200': (r) => r !== null && r.status === 200,
    'stream: begins with its position': () => position !== null,
    'stream: each event once, in order': () => inOrder,
    'stream: no gap': () => gaps === 0,
    'stream: up to the last event': () => finished,
  });
});

export const publish = failOnException((room) => {
  for (let number = 1; number <= EVENTS; number++) {
    const event = number === EVENTS ? 'last' : 'tick';
    const response = callJson('POST', '/v1/rooms/{room}/events', `/v1/rooms/${room}/events`, {
      event,
      data: { at: Date.now() },
    });
    check(response, { 'publish: 201': (r) => r.status === 201 && parseId(json(r).id) !== null });
    sleep(1 / RATE);
  }
});
