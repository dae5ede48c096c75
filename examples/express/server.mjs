// A wall of notes: a page follows a room, and the server signs tokens and publishes.

import express from 'express'
import jwt from 'jsonwebtoken'
import { randomUUID } from 'node:crypto'

const gateway = process.env.ROOMCAST_URL ?? 'http://127.0.0.1:8080'
const secret = process.env.ROOMCAST_JWT_HS256_SECRET
const sign = (subject, roomcast) => jwt.sign({ roomcast }, secret, { subject, expiresIn: '10m' })

const app = express()
app.use(express.static(new URL('public', import.meta.url).pathname))
app.use(express.json())

// A real application takes the user from its session.
app.get('/session', (request, response) => {
  const user = String(request.query.user)
  response.json({ gateway, token: sign(user, { subscribe: ['wall'] }) })
})

app.post('/notes', async (request, response) => {
  const { user, text } = request.body
  if (typeof text !== 'string' || !text || text.length > 500) return response.sendStatus(400)
  const answer = await fetch(`${gateway}/v1/rooms/wall/events`, {
    method: 'POST',
    headers: {
      Authorization: `Bearer ${sign('server', { publish: ['wall'] })}`,
      'Content-Type': 'application/json',
      'Idempotency-Key': request.get('Idempotency-Key') ?? randomUUID(),
    },
    body: JSON.stringify({ event: 'note', data: { user, text } }),
    signal: AbortSignal.timeout(5000),
  }).catch(() => undefined)
  response.sendStatus(answer?.ok ? 201 : 503)
})

const server = app.listen(process.env.PORT ?? 3000, '127.0.0.1', () => {
  console.log(`the application is at http://127.0.0.1:${server.address().port}`)
})
