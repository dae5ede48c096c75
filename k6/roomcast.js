// Shared by the scripts: the gateway's address, requests, and checks of problem documents.

import { check } from 'k6';
import http from 'k6/http';

export const BASE = (__ENV.ROOMCAST_URL || 'http://127.0.0.1:8080').replace(/\/$/, '');

// k6 keeps one metric for each URL unless requests have a `name`. Room names differ from run to run, so it is the
// route.
export function call(method, route, path, body = null, headers = {}) {
  // The checks need the bodies, also with K6_DISCARD_RESPONSE_BODIES.
  const options = { headers, tags: { name: `${method} ${route}` }, responseType: 'text' };
  return http.request(method, BASE + path, body, options);
}

export function callJson(method, route, path, value, headers = {}) {
  return call(method, route, path, JSON.stringify(value), { 'Content-Type': 'application/json', ...headers });
}

// The JSON body, or {}, so that the checks fail and not the script.
export function json(response) {
  try {
    return response.json() || {};
  } catch {
    return {};
  }
}

export function isProblem(response, status, code) {
  const type = response.headers['Content-Type'] || '';
  const problem = json(response);
  return (
    response.status === status &&
    type.startsWith('application/problem+json') &&
    problem.status === status &&
    problem.code === code &&
    Boolean(problem.request_id)
  );
}

// k6 only prints an exception, and exits with 0. As a failed check, the exception fails the run.
export function failOnException(run) {
  return (...args) => {
    try {
      run(...args);
    } catch (error) {
      check(error, { 'the script ran to its end': () => false });
      throw error;
    }
  };
}

// An event's id is `<epoch>-<offset>`. Both are below 2^53.
export function parseId(id) {
  const match = /^(\d+)-(\d+)$/.exec(id);
  return match && { epoch: Number(match[1]), offset: Number(match[2]) };
}

export function isAfter(id, earlier) {
  return id.epoch > earlier.epoch || (id.epoch === earlier.epoch && id.offset > earlier.offset);
}

// A name for one run, so that several runs can use one gateway.
export function runName(what) {
  return `k6-${what}-${Date.now().toString(36)}`;
}
