// Opens streams in one room, publishes to it, and checks that each stream gets every event once and in order. It
// needs a k6 with the extension xk6-sse; README.md describes how to get it.
//
//     STREAMS=100 k6 run k6/streams.js
//
// STREAMS is the number of streams (default 50), EVENTS that of events (default 100), RATE that of events per
// second (default 10). A stream blocks its VU until it ends, so each stream has a VU.

// k6 1.2 to 1.7 fetch the extension at this directive. An import would fail in every other k6 without naming it.
'use k6 with k6/x/sse';

import { check, sleep } from 'k6';
import { Trend } from 'k6/metrics';
import { BASE, callJson, failOnException, json, parseId, runName } from './roomcast.js';

const sse = extension();

function extension() {
  // k6's variables replace the scenarios, and with them the numbers of streams and events.
  const replaced = ['K6_VUS', 'K6_DURATION', 'K6_ITERATIONS', 'K6_STAGES'].filter((name) => __ENV[name]);
  if (replaced.length > 0) {
    throw new Error(`unset ${replaced.join(', ')}: STREAMS, EVENTS and RATE set how much streams.js does`);
  }
  try {
    const module = require('k6/x/sse');
    return module.default || module;
  } catch {
    throw new Error('streams.js needs a k6 with the extension xk6-sse: k6/README.md says how to get it');
  }
}

const STREAMS = Number(__ENV.STREAMS || 50);
const EVENTS = Number(__ENV.EVENTS || 100);
const RATE = Number(__ENV.RATE || 10);
// Seconds for streams to open before the first event. A later stream expects the events from its start on.
const HEAD_START = 5;
// Seconds after which a stream ends that never receives the last event.
const TIMEOUT = HEAD_START + Math.ceil(EVENTS / RATE) + 30;

// Time from publish to arrival. Publisher and subscribers use the same clock, this machine's.
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
  let position = null; // the id of stream.open, then of each event
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
      } // Otherwise a heartbeat: the extension turns every comment into an event.
    });
    client.on('error', () => {
      // The extension keeps waiting after an error, and can't close a stream that has not opened.
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
