// Roomcast's client for browsers and Node: streams of rooms and hashes that resume by themselves, publishing, and watched
// hashes. Types and documentation are in roomcast.d.ts.

const sleep = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    signal?.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true })
  })

/** A pause before the nth attempt in a row: one to two times the base, doubled with each attempt, up to 30 s. */
const backOff = (base, attempt) => Math.min(base * 2 ** attempt, 30_000) * (1 + Math.random())

/** The time in `Retry-After`, in milliseconds. */
const retryAfter = (response) => 1000 * (+response.headers.get('retry-after') || 0)

export class RoomcastError extends Error {
  constructor(message, problem = {}) {
    super(message)
    this.name = 'RoomcastError'
    this.status = problem.status
    this.code = problem.code
    this.problem = problem
  }
}

/** The error of a response that is not a success. */
async function failure(response) {
  const text = await response.text().catch(() => '')
  let problem
  try {
    problem = JSON.parse(text)
  } catch {
    problem = { detail: text.slice(0, 200) }
  }
  return new RoomcastError(problem.detail || `HTTP status ${response.status}`, { status: response.status, ...problem })
}

/**
 * Splits an event stream (HTML, section 9.2.6) into blocks. Returns a function that takes text as it arrives, and calls
 * `onBlock` with each whole block.
 */
export function eventStreamParser(onBlock) {
  let rest = ''
  let isFirst = true
  let block = { event: '', data: undefined, id: undefined }
  let id = ''
  return (text) => {
    rest += text
    if (isFirst && rest) {
      isFirst = false
      if (rest[0] === '\uFEFF') rest = rest.slice(1)
    }
    let start = 0
    for (;;) {
      const found = /[\r\n]/g
      found.lastIndex = start
      const end = found.exec(rest)?.index
      // A CR at the end may be the first half of a CRLF.
      if (end === undefined || (rest[end] === '\r' && end + 1 === rest.length)) break
      const line = rest.slice(start, end)
      start = end + (rest.startsWith('\r\n', end) ? 2 : 1)
      if (line) {
        const [, name, value] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line)
        if (name === 'data') block.data = block.data === undefined ? value : `${block.data}\n${value}`
        else if (name === 'event') block.event = value
        else if (name === 'id' && !value.includes('\0')) id = value
        else if (name === 'retry' && /^\d+$/.test(value)) block.retry = +value
      } else {
        onBlock({ ...block, event: block.event || 'message', id })
        block = { event: '', data: undefined }
      }
    }
    rest = rest.slice(start)
  }
}

/** Asks a page's life for signs that a stream may be dead: it woke up, or the network is back. */
function onWake(wake) {
  const page = globalThis.document
  const seen = () => page.visibilityState === 'visible' && wake()
  globalThis.addEventListener?.('online', wake)
  globalThis.addEventListener?.('pageshow', wake)
  page?.addEventListener('visibilitychange', seen)
  return () => {
    globalThis.removeEventListener?.('online', wake)
    globalThis.removeEventListener?.('pageshow', wake)
    page?.removeEventListener('visibilitychange', seen)
  }
}

/** One stream over HTTP, with all its connections. Calls `onBlock` with each block, and `onEnd` once at its end. */
class Connection {
  constructor(client, path, position, { onBlock, onState, onEnd }) {
    Object.assign(this, { client, path, position, onBlock, onState, onEnd })
    this.heartbeat = 15_000
    this.retry = 2000
    this.stopped = new AbortController()
    this.stopWaking = onWake(() => this.check())
    this.run().then((end) => this.stop(end), (error) => this.stop({ error }))
  }

  stop(end) {
    if (this.stopped.signal.aborted) return
    this.stopped.abort()
    this.attempt?.abort()
    this.wakeUp?.abort()
    this.stopWaking()
    clearTimeout(this.timer)
    if (end) this.onEnd(end)
  }

  /** After a pause of the page: is the stream alive? Timers stood still, so only the clock knows. */
  check() {
    this.wakeUp?.abort()
    if (Date.now() > this.deadline) this.attempt?.abort()
  }

  /** The stream says something at least once an interval. After two without a word it is dead. */
  heard() {
    const now = Date.now()
    this.deadline = now + 2 * this.heartbeat
    clearTimeout(this.timer)
    const wait = Math.min(this.deadline, this.renewAt ?? Infinity) - now
    this.timer = setTimeout(() => this.attempt.abort(), Math.max(0, Math.min(wait, 2 ** 31 - 1)))
  }

  async run() {
    let failures = 0
    let renew = false // whether the last token is no good any more
    let wasRefused = false
    for (;;) {
      this.attempt = new AbortController()
      this.renewAt = this.end = undefined
      let hasOpened = false
      let pause = 0
      let error
      try {
        this.heard()
        const headers = { Accept: 'text/event-stream' }
        if (this.position) headers['Last-Event-ID'] = this.position
        const init = { headers, cache: 'no-store', signal: this.attempt.signal }
        const response = await this.client.request(this.path, init, renew)
        if (response.status === 204) return { reason: 'ended' }
        if (response.status === 401 && this.client.token && !wasRefused) {
          renew = wasRefused = true
          continue
        }
        pause = retryAfter(response)
        if (!response.ok) throw await failure(response)
        await this.read(response.body, () => (hasOpened = true))
      } catch (caught) {
        error = caught
        if (error.status < 500 && error.status !== 429) throw error
      }
      if (this.stopped.signal.aborted) return
      renew = this.end?.reason === 'token_expired' || this.renewAt <= Date.now()
      if (this.end?.reconnect === 'never' && !(renew && this.client.token)) return this.end
      if (hasOpened) failures = +(wasRefused = false)
      if (hasOpened && (renew || this.end?.reconnect === 'now')) continue
      this.onState('waiting', this.end ?? { error })
      this.wakeUp = new AbortController()
      await sleep(pause || backOff(this.end ? this.retry : 500, failures++), this.wakeUp.signal)
      if (this.stopped.signal.aborted) return
    }
  }

  async read(body, hasOpened) {
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
    const parse = eventStreamParser((block) => {
      if (this.stopped.signal.aborted || this.end) return
      if (block.retry) this.retry = block.retry
      if (block.id) this.position = block.id
      const data = block.data && JSON.parse(block.data)
      if (block.event === 'stream.end') {
        this.end = data
        return
      }
      if (block.event === 'stream.open') {
        hasOpened()
        this.heartbeat = 1000 * (data.heartbeat_seconds ?? 15)
        // A stream whose token ends is opened anew with the next one shortly before. Not if it has just begun: a callback
        // that gives an old token would be asked again and again.
        const left = Date.parse(data.expires_at) - Date.now()
        if (this.client.token && left) this.renewAt = Date.now() + left - (left > 5000 ? Math.min(30_000, left / 5) : 0)
        this.onState('open', data)
      }
      if (data) this.onBlock(block.event, data, this.position)
    })
    const reader = body.getReader()
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      this.heard()
      parse(decoder.decode(value, { stream: true }))
    }
  }
}

/**
 * One connection for all tabs of an origin that want the same stream. The tab that holds a lock has the connection, and
 * sends what comes to the others over a channel. When it goes, another one takes over where it was.
 */
class SharedConnection {
  constructor(client, path, stream, callbacks) {
    Object.assign(this, { client, path, stream, ...callbacks })
    const name = `roomcast ${client.url} ${path} ${stream.options.shared}`
    this.name = name
    this.id = Math.random()
    this.stopped = new AbortController()
    this.channel = new BroadcastChannel(name)
    this.channel.onmessage = ({ data }) => this.receive(data)
    this.stopWaking = onWake(() => this.greet())
    this.lead()
    this.greet()
  }

  get position() {
    return this.stream.position
  }

  stop(end) {
    if (this.stopped.signal.aborted) return
    this.stopped.abort()
    this.stopWaking()
    clearTimeout(this.timer)
    clearInterval(this.beat)
    this.connection?.stop()
    this.channel.close()
    this.release?.()
    if (end) this.onEnd(end)
  }

  post(message) {
    if (!this.stopped.signal.aborted) this.channel.postMessage(message)
  }

  /** Waits for the lock, or takes it from a tab that is frozen. */
  lead(steal) {
    const options = steal ? { steal } : { signal: this.stopped.signal }
    const hold = async () => {
      // What the last leader has sent comes first.
      await sleep(100)
      if (this.stopped.signal.aborted) return
      clearTimeout(this.timer)
      this.connection?.stop()
      this.isLeader = true
      this.isFollowing = false
      this.queue = this.opened = undefined
      this.beat = setInterval(() => this.post({}), 5000)
      this.connection = this.open((block) => this.post({ block }))
      await new Promise((resolve) => (this.release = resolve))
    }
    navigator.locks.request(this.name, options, hold).catch(() => {
      // Another tab has taken it.
      if (this.stopped.signal.aborted || !this.isLeader) return
      this.isLeader = false
      this.isFollowing = true
      clearInterval(this.beat)
      this.connection.stop()
      this.connection = undefined
      this.lead()
      this.greet()
    })
  }

  open(pass) {
    return new Connection(this.client, this.path, this.position, {
      onBlock: (...block) => {
        pass(block)
        this.onBlock(...block)
      },
      onState: (state, detail) => {
        this.onState(state, detail)
        const isFirst = state === 'open' && !this.opened
        if (state === 'open') this.opened = detail
        if (isFirst && this.isLeader) this.welcome(true)
      },
      onEnd: (end) => {
        this.post({ end: { ...end, error: undefined } })
        this.stop(end)
      },
    })
  }

  /** Asks whether there is a leader, and where it is. */
  greet() {
    if (this.isLeader) return this.connection?.check()
    this.post({ greets: this.id })
    this.expect(3000)
  }

  /** Says where the leader is, so that others can follow. */
  welcome(welcomes) {
    this.post(this.opened ? { welcomes, opened: this.opened, ...this.stream.state() } : {})
  }

  /** If nobody says anything for so long, the leader is frozen. */
  expect(ms) {
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.isLeader || this.lead(true), ms)
  }

  receive({ greets, welcomes, block, end, ...state }) {
    if (this.isLeader) {
      if (greets) this.welcome(greets)
      return
    }
    if (greets) return
    this.expect(90_000)
    if (end) return this.stop(end)
    if ((welcomes === true || welcomes === this.id) && !this.connection && !this.isFollowing) this.follow(state)
    if (!block) return
    if (this.queue) this.queue.push(block)
    else if (this.isFollowing) this.onBlock(...block)
  }

  /** Goes on from where the leader is; first, by a connection of its own, from a position of its own to there. */
  follow({ opened, position, seen, snapshots }) {
    const join = () => {
      this.isFollowing = true
      this.connection?.stop()
      this.connection = undefined
      for (const block of snapshots) this.onBlock(...block, position)
      for (const block of this.queue ?? []) this.onBlock(...block)
      this.queue = undefined
    }
    const isThere = () => Object.entries(seen).every(([room, id]) => !isAfter(id, this.stream.seen[room]))
    if (!this.position || isThere()) {
      this.opened = opened
      this.stream.take(position, seen)
      this.onState('open', opened)
      return join()
    }
    this.queue = []
    this.connection = this.open(() => queueMicrotask(() => this.queue && isThere() && join()))
  }
}

/** Whether an event id comes after another one. */
function isAfter(id, other) {
  if (!other) return true
  const [a, b] = [id, other].map((text) => text.match(/\d+/g).map(BigInt))
  return a[0] === b[0] ? a[1] > b[1] : a[0] > b[0]
}

/** Calls a function of the application. What it throws is the application's, and must not end the stream. */
function call(callback, ...values) {
  try {
    callback?.(...values)
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
  }
}

const canShare = () => globalThis.navigator?.locks && globalThis.BroadcastChannel && globalThis.document

/** A stream of rooms and hashes. */
export class Stream {
  constructor(client, options) {
    if (typeof options.onGap !== 'function') {
      throw new TypeError('a stream needs onGap: it is called where events may be missing, and has to load the state anew')
    }
    if (options.resume && options.hashes?.length) {
      throw new TypeError('resume is for streams of rooms alone: what a hash has is not kept over page loads')
    }
    this.client = client
    this.options = options
    this.seen = {}
    this.members = {}
    this.hashes = new Map()
    const { rooms = [], hashes = [], events = [], fields = [], subscriber, presence, recent, from, info, resume, heartbeat } = options
    const query = new URLSearchParams()
    const all = { room: rooms, hash: hashes, event: events, field: fields, subscriber, presence, recent, from, heartbeat }
    for (const [name, values] of Object.entries({ ...all, info: info && JSON.stringify(info) })) {
      for (const value of [values ?? []].flat()) query.append(name, value)
    }
    for (const hash of hashes) this.hashes.set(hash, new Hash(this, hash))
    for (const room of presence ? rooms : []) this.members[room] = new Map()
    this.store = resume && (options.store ?? globalThis.sessionStorage)
    this.key = `roomcast ${client.url} ${resume}`
    const saved = JSON.parse(this.store?.getItem(this.key) ?? 'null')
    this.position = saved?.position ?? options.after
    Object.assign(this.seen, saved?.seen)
    const path = `/v1/stream?${query}`
    const callbacks = {
      onBlock: (...block) => this.receive(...block),
      onState: (state, detail) => call(options.onState, state, detail),
      onEnd: (end) => call(options.onEnd, end),
    }
    this.connection =
      options.shared && canShare()
        ? new SharedConnection(client, path, this, callbacks)
        : new Connection(client, path, this.position, callbacks)
  }

  close() {
    this.connection.stop()
  }

  take(position, seen) {
    this.position = position
    Object.assign(this.seen, seen)
    this.store?.setItem(this.key, JSON.stringify({ position, seen: this.seen }))
  }

  /** What another tab needs to go on from here. */
  state() {
    const snapshots = [...this.hashes.values()].filter((hash) => hash.isReady).map((hash) => ['hash.snapshot', hash.snapshot()])
    for (const [room, members] of Object.entries(this.members)) {
      snapshots.push(['presence.list', { room, members: [...members.values()] }])
    }
    return { position: this.position, seen: this.seen, snapshots }
  }

  receive(event, data, position) {
    const { onGap, onEvent } = this.options
    const { room, hash, id } = data
    if (event === 'stream.gap') {
      if (room) this.seen[room] = data.to
      call(onGap, data)
    }
    if (event === 'stream.open' || event === 'stream.gap') {
      for (const name of room ? [room] : Object.keys(this.members)) this.loadMembers(name)
    } else if (event === 'presence.list') {
      this.setMembers(room, data.members)
    } else if (hash) {
      this.hashes.get(hash)?.apply(event, data)
    } else if (id) {
      // Two tabs, or a connection that was taken over, may bring an event twice.
      if (!isAfter(id, this.seen[room])) return
      this.seen[room] = id
      if (event.startsWith('presence.')) this.changeMembers(room, event, data.data)
      else call(onEvent, data)
    }
    this.take(position, {})
  }

  /** Reads the list of members. What the stream says meanwhile is applied after it. */
  async loadMembers(room) {
    const members = this.members[room]
    if (!members) return
    const changes = (members.changes = [])
    const list = []
    try {
      for (let path = `/v1/rooms/${room}/subscribers?limit=1000`; path; ) {
        const response = await this.client.request(path, {})
        if (!response.ok) throw await failure(response)
        list.push(...(await response.json()).subscribers)
        path = /<([^>]*)>; *rel="next"/.exec(response.headers.get('link'))?.[1]
      }
    } catch (error) {
      call(this.options.onState, 'waiting', { error })
      await sleep(2000)
      if (members.changes === changes && !this.connection.stopped.signal.aborted) this.loadMembers(room)
      return
    }
    if (members.changes !== changes) return
    members.changes = undefined
    this.setMembers(room, list)
    for (const change of changes) this.changeMembers(room, ...change)
  }

  setMembers(room, list) {
    const members = this.members[room]
    members.clear()
    for (const member of list) members.set(member.subscriber, member)
    call(this.options.onMembers, room, members)
  }

  changeMembers(room, event, { members: changed }) {
    const members = this.members[room]
    if (!members) return
    members.changes?.push([event, { members: changed }])
    for (const member of changed) {
      if (event === 'presence.join') members.set(member.subscriber, member)
      else members.delete(member.subscriber)
    }
    call(this.options.onMembers, room, members)
  }
}

const decode = ({ value, value_base64 }) =>
  value ?? Uint8Array.from(atob(value_base64), (character) => character.charCodeAt(0))

/** A hash as it is now. `values` is a Map of its fields. */
export class Hash {
  constructor(stream, name) {
    this.stream = stream
    this.name = name
    this.values = new Map()
    this.etags = new Map()
    this.ready = new Promise((resolve) => (this.resolve = resolve))
  }

  close() {
    this.stream.close()
  }

  snapshot() {
    const fields = {}
    for (const [field, value] of this.values) fields[field] = { value, etag: this.etags.get(field) }
    return { hash: this.name, fields, part: 0, last: true }
  }

  apply(event, { fields, part, last, by }) {
    if (event === 'hash.snapshot') {
      if (part === 0) this.parts = []
      this.parts?.push(...Object.entries(fields))
      if (!last || !this.parts) return
      this.values.clear()
      this.etags.clear()
      fields = Object.fromEntries(this.parts)
      this.parts = undefined
    }
    if (event === 'hash.clear') {
      fields = [...this.values.keys()]
    }
    if (Array.isArray(fields)) {
      for (const field of fields) [this.values, this.etags].forEach((map) => map.delete(field))
    } else {
      for (const [field, tagged] of Object.entries(fields)) {
        this.values.set(field, tagged.value instanceof Uint8Array ? tagged.value : decode(tagged))
        this.etags.set(field, tagged.etag)
      }
      fields = Object.keys(fields)
    }
    this.isReady = true
    this.resolve(this)
    call(this.stream.options.onChange, { hash: this, event, fields, by })
  }

  /** Sends a write that holds only if the field is as it was seen here. */
  async write(method, field, body, { force, ifMatch, key = crypto.randomUUID() } = {}) {
    const etag = ifMatch ?? this.etags.get(field)
    const condition = force ? {} : etag ? { 'If-Match': etag } : { 'If-None-Match': '*' }
    const headers = { 'Content-Type': 'application/octet-stream', 'Idempotency-Key': key, ...condition }
    const path = `/v1/hashes/${this.name}/fields/${encodeURIComponent(field)}`
    return this.stream.client.repeat(path, { method, body, headers })
  }

  set(field, value, options) {
    return this.write('PUT', field, value, options)
  }

  delete(field, options) {
    return this.write('DELETE', field, undefined, options)
  }

  /** Sets a field to what a function makes of its value, again if another write came between. */
  async update(field, change) {
    for (;;) {
      const seen = this.etags.get(field)
      const value = change(this.values.get(field))
      try {
        return await this.set(field, value)
      } catch (error) {
        if (error.status !== 412) throw error
        // The stream brings the value that was there.
        const began = Date.now()
        while (this.etags.get(field) === seen && Date.now() - began < 5000) await sleep(20)
      }
    }
  }
}

class Client {
  constructor({ url = globalThis.location?.origin, token, fetch = (...values) => globalThis.fetch(...values) } = {}) {
    this.url = String(url).replace(/\/$/, '')
    this.token = token
    this.fetch = fetch
  }

  /** Sends a request with a token, a new one if the last one is no good any more. */
  async request(path, init = {}, renew = false) {
    const token = await this.token?.({ renew })
    const headers = { ...init.headers, ...(token && { Authorization: `Bearer ${token}` }) }
    return this.fetch(this.url + path, { ...init, headers })
  }

  /** Sends a write with an idempotency key until its outcome is known, for half a minute. */
  async repeat(path, init) {
    const end = Date.now() + 30_000
    for (let attempt = 0, renew = false; ; attempt++) {
      let response, error
      try {
        response = await this.request(path, { ...init, signal: AbortSignal.timeout(10_000) }, renew)
      } catch (caught) {
        error = caught
      }
      if (response?.ok) return response.status === 204 ? undefined : response.json()
      error ??= await failure(response)
      if (response?.status === 401 && this.token && !renew) {
        renew = true
        continue
      }
      const pause = (response && retryAfter(response)) || backOff(200, attempt)
      if ((response && response.status < 500 && response.status !== 429) || Date.now() + pause > end) throw error
      await sleep(pause)
    }
  }

  publish(room, data, { event, final, except, key = crypto.randomUUID() } = {}) {
    return this.repeat(`/v1/rooms/${room}/events`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'Idempotency-Key': key },
      body: JSON.stringify({ event, data, except, final }),
    })
  }

  async events(room, { after, before, limit } = {}) {
    const query = new URLSearchParams(Object.entries({ after, before, limit }).filter(([, value]) => value !== undefined))
    const response = await this.request(`/v1/rooms/${room}/events?${query}`, {})
    if (!response.ok) throw await failure(response)
    return response.json()
  }

  stream(options) {
    return new Stream(this, options)
  }

  watch(name, options = {}) {
    // A snapshot follows each gap, so what the hash has is true again.
    return this.stream({ onGap() {}, ...options, hashes: [name] }).hashes.get(name)
  }
}

/** A gateway. */
export function connect(options) {
  return new Client(options)
}
