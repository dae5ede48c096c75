// Gateways and sites for the tests of examples and recipes. ROOMCAST_BIN is the gateway's program.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import http from 'node:http'
import net from 'node:net'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import jwt from 'jsonwebtoken'
import { within } from '../support.mjs'

export const clients = fileURLToPath(new URL('..', import.meta.url))
export const examples = fileURLToPath(new URL('../../../examples', import.meta.url))
export const SECRET = 'a-secret-for-tests-that-is-long-enough'
process.env.ROOMCAST_JWT_HS256_SECRET = SECRET
process.setMaxListeners(0) // one for each program that is started

const TYPES = { '.html': 'text/html', '.mjs': 'text/javascript', '.js': 'text/javascript' }
const BROKER = process.env.REDIS_URL ? ['--redis-url', process.env.REDIS_URL] : []
const QUICK = ['--log', 'error', '--retry', '100ms', '--heartbeat', '1s', '--drain-delay', '0s', '--drain-window', '0s']

/** A token that is signed with `SECRET`. */
export function sign(sub, roomcast, expiresIn = 600) {
  return jwt.sign({ sub, roomcast }, SECRET, { expiresIn })
}

/** A copy of an example, where Node finds the packages that are installed for the tests. It is removed at the end. */
export function copyOf(example) {
  const folder = mkdtempSync(path.join(clients, 'generated-'))
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
  cpSync(path.join(examples, example), folder, { recursive: true })
  return folder
}

/** Waits until a function returns something true, and returns it. */
export async function eventually(what, look) {
  return within(what, (async () => {
    for (;;) {
      const found = await look()
      if (found) return found
      await sleep(20)
    }
  })())
}

/** Starts a program, and waits for the line that says where it listens. It ends with this one. */
export async function start(program, parameters, { env = {}, cwd = clients } = {}) {
  const child = spawn(program, parameters, { cwd, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
  process.on('exit', () => child.kill('SIGKILL'))
  let printed = ''
  const look = (stream) => new Promise((resolve) => {
    createInterface({ input: stream }).on('line', (line) => {
      printed = `${printed}${line}\n`.slice(-5000)
      const url = /http:\/\/127\.0\.0\.1:\d+/.exec(line)
      if (url) resolve(url[0])
    })
  })
  const ended = once(child, 'exit').then(() => {
    throw new Error(`${program} ${parameters.join(' ')} did not start:\n${printed}`)
  })
  ended.catch(() => {})
  const url = await within(`${program} ${parameters[0]}`, Promise.race([look(child.stdout), look(child.stderr), ended]))
  return { url, child }
}

/** Starts a gateway with keys, unless the environment is another one. Resolves once it is healthy. */
export async function startGateway(options = [], env = {}) {
  const gateway = await start(process.env.ROOMCAST_BIN, ['--listen', '127.0.0.1:0', ...QUICK, ...BROKER, ...options], { env })
  await eventually('a healthy gateway', async () => (await fetch(`${gateway.url}/healthz`).catch(() => ({}))).ok)
  return gateway
}

/** A port that is free now. */
export async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

/**
 * A site as a reverse proxy makes it: files of a folder, routes of the application, and the gateway for everything else.
 * `gateways` is a list that may change; a request goes to the next one.
 */
export async function startSite(folder, gateways, routes = {}) {
  let next = 0
  const server = http.createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, 'http://site')
    if (routes[pathname]) {
      const answer = await routes[pathname](searchParams, request)
      response.setHeader('Content-Type', 'application/json')
      return response.end(JSON.stringify(answer ?? null))
    }
    if (pathname === '/blank.html') return response.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html>')
    const type = TYPES[path.extname(pathname)]
    if (type && pathname !== '/roomcast.js') {
      const file = await readFile(path.join(folder, pathname)).catch(() => undefined)
      if (!file) return response.writeHead(404).end()
      response.setHeader('Content-Type', type)
      return response.end(file)
    }
    const chunks = []
    for await (const chunk of request) chunks.push(chunk)
    pass(request, Buffer.concat(chunks), response, gateways.length)
  })
  /** Passes a request on. If a gateway takes no connection, or gives a GET no answer, another one is asked. */
  function pass(request, body, response, attempts) {
    const { hostname, port } = new URL(gateways[next++ % gateways.length])
    const { method, headers, url } = request
    const onward = http.request({ hostname, port, method, path: url, headers })
    onward.on('response', (answer) => {
      response.writeHead(answer.statusCode, answer.headers)
      response.flushHeaders()
      answer.pipe(response)
      answer.on('error', () => response.destroy())
    })
    onward.on('error', ({ code }) => {
      if (response.headersSent || response.closed) return response.destroy()
      const mayRepeat = method === 'GET' || code === 'ECONNREFUSED'
      if (attempts > 1 && mayRepeat) pass(request, body, response, attempts - 1)
      else response.writeHead(502).end()
    })
    response.on('close', () => onward.destroy())
    onward.end(body)
  }
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  server.unref()
  return `http://127.0.0.1:${server.address().port}`
}
