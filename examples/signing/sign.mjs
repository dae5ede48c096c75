// Prints a token for a user, as a server in Node would sign it.

import jwt from 'jsonwebtoken'

export function tokenFor(user) {
  const roomcast = { subscribe: ['chat.*', 'user.{sub}'], publish: ['chat.*'] }
  return jwt.sign({ roomcast }, process.env.ROOMCAST_JWT_HS256_SECRET, {
    algorithm: 'HS256',
    subject: user,
    expiresIn: '10m',
  })
}

if (process.argv[2]) console.log(tokenFor(process.argv[2]))
