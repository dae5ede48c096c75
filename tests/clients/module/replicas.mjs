// Replicas on one Redis that can be killed, and a balancer in front of them. ROOMCAST_BIN is the program, REDIS_URL the
// server.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'
import { createInterface } from 'node:readline'
import { within } from '../support.mjs'

const OPTIONS = ['--log', 'error', '--retry', '100ms', '--heartbeat', '1s', '--drain-delay', '0s', '--drain-window', '0s']

/** Starts a replica. Resolves to its process and its port once it is healthy. */
async function startReplica(options) {
  const address = ['--listen', '127.0.0.1:0', '--redis-url', process.env.REDIS_URL]
  const child = spawn(process.env.ROOMCAST_BIN, [...address, ...OPTIONS, ...options], { stdio: ['ignore', 'pipe', 'inherit'] })
  process.on('exit', () => child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout })
  const port = await within('a replica', (async () => {
    for await (const line of lines) {
      const found = /listens on http:\/\/127\.0\.0\.1:(\d+)/.exec(line)
      if (found) return Number(found[1])
    }
  })())
  child.stdout.resume()
  const isHealthy = async () => (await fetch(`http://127.0.0.1:${port}/healthz`).catch(() => ({ ok: false }))).ok
  await within('a healthy replica', (async () => {
    while (!(await isHealthy())) await new Promise((resolve) => setTimeout(resolve, 50))
  })())
  return { child, port }
}

/** Replicas behind a balancer, which takes the next one for each connection. */
export async function startReplicas(count, ...options) {
  const replicas = await Promise.all(Array.from({ length: count }, () => startReplica(options)))
  let next = 0
  const server = net.createServer((near) => {
    const { port } = replicas[next++ % replicas.length]
    const far = net.connect(port, '127.0.0.1')
    near.on('error', () => {}).on('close', () => far.destroy())
    far.on('error', () => {}).on('close', () => near.destroySoon())
    near.pipe(far).pipe(near)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    /** Kills a replica, and starts another one in its place. */
    async replaceOne() {
      const [killed] = replicas.splice(Math.floor(Math.random() * replicas.length), 1)
      killed.child.kill('SIGKILL')
      await once(killed.child, 'exit')
      replicas.push(await startReplica(options))
    },
    async close() {
      server.close()
      for (const { child } of replicas) child.kill('SIGKILL')
    },
  }
}
