// A chat room with the people who are in it.

import { connect } from '/roomcast.js'

export function openChat({ room, user, token, onMessage, onMembers, onGap }) {
  const client = connect({ token })
  const stream = client.stream({
    rooms: [room],
    recent: 50,
    subscriber: `${user}.${crypto.randomUUID()}`,
    presence: true,
    onEvent: ({ id, data }) => onMessage(id, data),
    onMembers: (_, members) => onMembers(new Set([...members.values()].map(({ user }) => user))),
    onGap,
  })
  const say = (text) => client.publish(room, { user, text }, { event: 'said' })
  return { say, leave: () => stream.close() }
}
