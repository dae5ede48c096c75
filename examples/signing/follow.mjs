// Follows a room with EventSource, and renews its token in time. `token(renew)` gives a token; with `renew` a new one.

export function follow({ gateway, room, token, onEvent, onGap, onEnd }) {
  let source
  let last
  let timer

  async function open(renew) {
    clearTimeout(timer)
    const query = new URLSearchParams({ access_token: await token(renew) })
    source?.close()
    if (last) query.set('after', last)
    const url = `${gateway}/v1/rooms/${room}/stream?${query}`
    source = new EventSource(url)
    source.addEventListener('stream.open', ({ data, lastEventId }) => {
      last = lastEventId
      renew = false
      const left = Date.parse(JSON.parse(data).expires_at) - Date.now()
      timer = setTimeout(() => open(true), left - Math.min(30_000, left / 5))
    })
    source.addEventListener('message', ({ data, lastEventId }) => {
      last = lastEventId
      onEvent(data)
    })
    source.addEventListener('stream.gap', ({ data, lastEventId }) => {
      last = lastEventId
      onGap(JSON.parse(data))
    })
    source.addEventListener('stream.end', ({ data }) => {
      const { reason, reconnect } = JSON.parse(data)
      if (reason === 'token_expired') open(true)
      else if (reconnect === 'never') end({ reason })
    })
    source.addEventListener('error', () => {
      if (source.readyState === EventSource.CLOSED) ask(url, renew)
    })
  }

  // EventSource has given up, and tells no reason. The same request by fetch does.
  async function ask(url, hasRenewed) {
    clearTimeout(timer)
    const request = new AbortController()
    const response = await fetch(url, { signal: request.signal }).catch(() => undefined)
    const status = response?.status ?? 503
    if (status === 401 && !hasRenewed) return open(true)
    if (status === 204) return end({ reason: 'ended' })
    if (status >= 400 && status < 500 && status !== 429) return end(await response.json())
    request.abort()
    timer = setTimeout(open, 2000 + 2000 * Math.random())
  }

  function end(why) {
    clearTimeout(timer)
    source.close()
    onEnd(why)
  }

  open(false)
  return () => {
    clearTimeout(timer)
    source?.close()
  }
}
