const user = new URLSearchParams(location.search).get('user') ?? 'guest'
const session = async () => (await fetch(`/session?user=${encodeURIComponent(user)}`)).json()
const [list, form, text, state] = ['notes', 'form', 'text', 'state'].map((id) => document.getElementById(id))

const { gateway, token: first } = await session()
const { connect } = await import(`${gateway}/roomcast.js`)
let token = first
const client = connect({
  url: gateway,
  token: async ({ renew }) => (renew ? (token = (await session()).token) : token),
})

client.stream({
  rooms: ['wall'],
  recent: 50,
  onEvent: ({ data }) => {
    const item = document.createElement('li')
    item.textContent = `${data.user}: ${data.text}`
    list.append(item)
  },
  // Some notes are gone. An application that stores them would load them here.
  onGap: () => list.replaceChildren(),
  onState: (now) => (state.textContent = now),
  onEnd: ({ reason, error }) => (state.textContent = reason ?? error.message),
})

form.onsubmit = async (event) => {
  event.preventDefault()
  const headers = { 'Content-Type': 'application/json', 'Idempotency-Key': crypto.randomUUID() }
  const body = JSON.stringify({ user, text: text.value })
  const answer = await fetch('/notes', { method: 'POST', headers, body })
  if (answer.ok) text.value = ''
  else state.textContent = 'not posted'
}
