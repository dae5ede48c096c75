// Notifications of one user, in each of their tabs with one connection.

import { connect } from '/roomcast.js'

export function followNotifications({ user, token, onNotification, onGap }) {
  return connect({ token }).stream({
    rooms: [`user.${user}`],
    resume: 'notifications',
    shared: user,
    onEvent: ({ id, data }) => onNotification(id, data),
    onGap,
  })
}
