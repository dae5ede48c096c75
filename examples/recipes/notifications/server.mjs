// Signs tokens for users, and notifies them.

import jwt from 'jsonwebtoken'

const sign = (subject, roomcast) =>
  jwt.sign({ roomcast }, process.env.ROOMCAST_JWT_HS256_SECRET, { subject, expiresIn: '10m' })

/** A user may follow the room of their own name, and nothing else. */
export const tokenFor = (user) => sign(user, { subscribe: ['user.{sub}'] })

export async function notify(gateway, users, data, key) {
  const response = await fetch(`${gateway}/v1/events`, {
    method: 'POST',
    headers: {
      Authorization: `Bearer ${sign('server', { publish: ['user.*'] })}`,
      'Content-Type': 'application/json',
      'Idempotency-Key': key,
    },
    body: JSON.stringify({ events: [{ rooms: users.map((user) => `user.${user}`), data }] }),
  })
  if (response.status !== 200) throw new Error(await response.text())
}
