// Feature flags for a page: the fields of a hash, each with a value that holds until the gateway is reached.

import { connect } from '/roomcast.js'

export function flags({ hash, token, defaults, onChange }) {
  const watched = connect({ token }).watch(hash, { onChange: () => onChange?.() })
  return { isOn: (name) => (watched.values.get(name) ?? defaults[name]) === 'on' }
}
