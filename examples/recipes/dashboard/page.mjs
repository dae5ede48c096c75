// A table of the fields of a hash, as they are now.

import { connect } from '/roomcast.js'

export function showFigures({ hash, token, table }) {
  return connect({ token }).watch(hash, {
    onChange: ({ hash }) => {
      const rows = [...hash.values].sort().map(([name, value]) => {
        const row = document.createElement('tr')
        for (const text of [name, value]) row.insertCell().textContent = text
        return row
      })
      table.replaceChildren(...rows)
    },
    onState: (state) => (table.ariaBusy = String(state !== 'open')),
  })
}
