// Calls every REST route and checks that it answers as documented. Takes a few seconds and causes no load.
//
//     k6 run k6/smoke.js

import { check, group } from 'k6';
import { BASE, call, callJson, failOnException, isProblem, json, parseId, runName } from './roomcast.js';

export const options = {
  scenarios: { smoke: { executor: 'per-vu-iterations', vus: 2, iterations: 2, maxDuration: '30s' } },
  thresholds: {
    // A failed check fails the run. k6's variables, as K6_VUS, may set other numbers of iterations than four.
    checks: ['rate==1'],
    iterations: ['count>0'],
  },
};

export function setup() {
  return runName('smoke');
}

export default failOnException((run) => {
  // Iterations run at the same time, so each has its own names.
  const name = `${run}-${__VU}-${__ITER}`;
  group('rooms', () => rooms(name));
  group('hashes', () => hashes(name));
  group('errors', errors);
  group('operations', operations);
});

function rooms(room) {
  const events = `/v1/rooms/${room}/events`;
  const route = '/v1/rooms/{room}/events';

  const first = callJson('POST', route, events, { event: 'tick', data: { n: 1 } });
  check(first, {
    'publish JSON: 201': (r) => r.status === 201,
    'publish JSON: room and id': (r) => json(r).room === room && parseId(json(r).id) !== null,
  });

  const second = call('POST', route, `${events}?event=note`, 'plain words', { 'Content-Type': 'text/plain' });
  check(second, {
    'publish text: 201': (r) => r.status === 201,
    'publish text: the next id': (r) => parseId(json(r).id).offset === parseId(json(first).id).offset + 1,
  });

  const batch = callJson('POST', '/v1/events', '/v1/events', {
    events: [
      { room, event: 'tick', data: 3 },
      { rooms: [room, `${room}-other`], event: 'tick', data: [4] },
    ],
  });
  check(batch, {
    'batch: 200': (r) => r.status === 200,
    'batch: a result for each event': (r) => json(r).results.map((result) => result.status).join() === '201,201',
    'batch: an id for each copy': (r) =>
      json(r).results[1].published.map((copy) => copy.room).sort().join() === `${room},${room}-other`,
  });

  const page = call('GET', route, `${events}?limit=3`);
  const link = /<([^>]+)>;\s*rel="?next"?/.exec(page.headers.Link || '');
  check(page, {
    'log: 200': (r) => r.status === 200,
    'log: oldest first': (r) => json(r).events.map((e) => e.event).join() === 'tick,note,tick',
    'log: the ids of the published events': (r) =>
      json(r).events[0].id === json(first).id && json(r).events[1].id === json(second).id,
    'log: data as published': (r) =>
      json(r).events[0].data.n === 1 && json(r).events[1].data === 'plain words' && json(r).events[2].data === 3,
    'log: published_at is a time': (r) => !Number.isNaN(Date.parse(json(r).events[0].published_at)),
    'log: links to the next page': () => link !== null,
  });

  if (link) {
    // The link may be relative.
    const next = call('GET', route, link[1].startsWith(BASE) ? link[1].slice(BASE.length) : link[1]);
    check(next, {
      'log, next page: 200': (r) => r.status === 200,
      'log, next page: the rest': (r) => json(r).events.length === 1 && json(r).events[0].data[0] === 4,
      'log, next page: the last': (r) => !/rel="?next/.test(r.headers.Link || ''),
    });
  }
  const after = call('GET', route, `${events}?after=${json(second).id}`);
  check(after, { 'log: after is exclusive': (r) => r.status === 200 && json(r).events.length === 2 });

  check(call('GET', '/v1/rooms/{room}', `/v1/rooms/${room}`), {
    'room: 200': (r) => r.status === 200,
    'room: its name': (r) => json(r).room === room,
    'room: its head': (r) => json(r).head === json(after).head,
  });
  check(call('GET', '/v1/rooms', '/v1/rooms'), {
    'rooms: 200': (r) => r.status === 200,
    'rooms: a list': (r) => Array.isArray(json(r).rooms),
  });
}

function hashes(hash) {
  const path = `/v1/hashes/${hash}`;
  const route = '/v1/hashes/{hash}';
  const fieldRoute = `${route}/fields/{field}`;
  const colour = `${path}/fields/colour`;

  const put = callJson('PUT', fieldRoute, colour, { value: 'red' });
  check(put, { 'put: 201 when created': (r) => r.status === 201 });
  check(call('PUT', fieldRoute, colour, 'blue', { 'Content-Type': 'text/plain' }), {
    'put raw: 200 when replaced': (r) => r.status === 200,
  });
  check(callJson('PUT', fieldRoute, colour, { value: 'green' }, { 'If-None-Match': '*' }), {
    'put: 412 when the field must not exist': (r) => isProblem(r, 412, 'precondition_failed'),
    'put: 412 has the present value': (r) => json(r).present.value === 'blue',
  });

  const got = call('GET', fieldRoute, colour);
  check(got, {
    'get: 200': (r) => r.status === 200,
    'get: the value': (r) => json(r).hash === hash && json(r).field === 'colour' && json(r).value === 'blue',
    'get: an ETag': (r) => Boolean(r.headers.Etag),
  });
  check(call('GET', fieldRoute, colour, null, { 'If-None-Match': got.headers.Etag || '' }), {
    'get: 304 when unchanged': (r) => r.status === 304,
  });
  check(call('GET', fieldRoute, colour, null, { Accept: 'text/plain' }), {
    'get raw: the bytes': (r) => r.status === 200 && r.body === 'blue',
  });

  check(callJson('PATCH', route, path, { colour: null, size: 'large', count: '40' }), {
    'patch: 200': (r) => r.status === 200,
    'patch: counts of created and removed fields': (r) => json(r).created === 2 && json(r).removed === 1,
  });
  check(callJson('POST', `${fieldRoute}/increment`, `${path}/fields/count/increment`, { by: 2 }), {
    'increment: 200': (r) => r.status === 200,
    'increment: the sum': (r) => String(json(r).value) === '42',
  });
  check(callJson('POST', `${fieldRoute}/increment`, `${path}/fields/size/increment`, { by: 1 }), {
    'increment: 409 if the value is not a number': (r) => isProblem(r, 409, 'not_a_number'),
  });
  check(call('GET', route, path), {
    'all: 200': (r) => r.status === 200,
    'all: exactly the fields that were set': (r) => {
      const { size, count, ...others } = json(r).fields;
      return size.value === 'large' && count.value === '42' && Object.keys(others).length === 0;
    },
  });

  check(call('DELETE', fieldRoute, `${path}/fields/size`), { 'delete: 204': (r) => r.status === 204 });
  check(call('DELETE', fieldRoute, `${path}/fields/size`), {
    'delete: 404 when absent': (r) => isProblem(r, 404, 'field_not_found'),
  });
  check(call('GET', fieldRoute, `${path}/fields/size`), {
    'get: 404 when absent': (r) => isProblem(r, 404, 'field_not_found'),
  });
  check(call('DELETE', route, path), { 'delete all: 204': (r) => r.status === 204 });
}

function errors() {
  check(call('GET', '/nowhere', '/v1/nowhere'), {
    'no such route: a 404 problem': (r) => isProblem(r, 404, 'route_not_found'),
  });
  check(callJson('POST', '/v1/rooms/{room}/events', '/v1/rooms/a%20b/events', { data: 1 }), {
    'a bad room name: a 400 problem': (r) => isProblem(r, 400, 'invalid_name'),
  });
}

function operations() {
  for (const path of ['/livez', '/readyz', '/healthz']) {
    check(call('GET', path, path), { [`${path}: 200`]: (r) => r.status === 200 });
  }
  check(call('GET', '/openapi.json', '/openapi.json'), {
    'openapi: 200': (r) => r.status === 200,
    'openapi: version 3': (r) => /^3\./.test(json(r).openapi),
    'openapi: has the routes': (r) => '/v1/rooms/{room}/events' in json(r).paths,
  });
}
