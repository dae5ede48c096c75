// The parser of event streams, by the rules of HTML, section 9.2.6, and the cases of WPT's eventsource/format-*.

import { eventStreamParser } from '../../../clients/js/roomcast.js'
import { check } from '../support.mjs'

/** What a text gives, in one piece and cut at every place. */
function blocks(text) {
  const parse = (...pieces) => {
    const found = []
    const feed = eventStreamParser(({ event, data, id, retry }) => {
      if (data !== undefined) found.push(retry === undefined ? [event, data, id] : [event, data, id, retry])
    })
    pieces.forEach(feed)
    return found
  }
  const whole = parse(text)
  for (let cut = 0; cut <= text.length; cut++) {
    const found = JSON.stringify(parse(text.slice(0, cut), text.slice(cut)))
    if (found !== JSON.stringify(whole)) throw new Error(`not ok - cut at ${cut} of ${JSON.stringify(text)}: ${found}`)
  }
  if (JSON.stringify(parse(...text)) !== JSON.stringify(whole)) throw new Error(`not ok - in characters: ${text}`)
  return whole
}

for (const [what, text, expected] of [
  ['a byte order mark is left out', '\uFEFFdata:1\n\n', [['message', '1', '']]],
  ['a second one is a part of the name', '\uFEFF\uFEFFdata:1\n\ndata:2\n\n', [['message', '2', '']]],
  ['LF, CR and CRLF end lines', 'data:1\r\ndata:2\rdata:3\n\r\n', [['message', '1\n2\n3', '']]],
  ['a block without its end is dropped', 'data:1\n\ndata:2\n', [['message', '1', '']]],
  ['a comment is no block', ': hello\n\n:\n\ndata:1\n:x\n\n', [['message', '1', '']]],
  ['one space after the colon is left out', 'data:  1\n\ndata: \n\n', [['message', ' 1', ''], ['message', '', '']]],
  ['a field without a colon is empty', 'data\n\ndata\ndata\n\n', [['message', '', ''], ['message', '\n', '']]],
  ['an empty field name is ignored', ':data\n\n', []],
  ['field names are in lower case', 'DATA:1\nData:2\n dat:3\ndata:4\n\n', [['message', '4', '']]],
  ['a name holds for its block', 'event:a\ndata:1\n\ndata:2\n\n', [['a', '1', ''], ['message', '2', '']]],
  ['an empty name is message', 'event:\ndata:1\n\n', [['message', '1', '']]],
  ['a block without data is not passed on', 'event:a\n\ndata:1\n\n', [['message', '1', '']]],
  ['an id stays', 'id:1\ndata:a\n\ndata:b\n\n', [['message', 'a', '1'], ['message', 'b', '1']]],
  ['an id of a block without data counts', 'id:1\n\ndata:b\n\n', [['message', 'b', '1']]],
  ['an empty id is one', 'id:1\ndata:a\n\nid\ndata:b\n\n', [['message', 'a', '1'], ['message', 'b', '']]],
  ['an id with NUL is ignored', 'id:1\ndata:a\n\nid:2\0\ndata:b\n\n', [['message', 'a', '1'], ['message', 'b', '1']]],
  ['retry is a whole number', 'retry:100\ndata:a\n\nretry:1x\ndata:b\n\n', [['message', 'a', '', 100], ['message', 'b', '']]],
  ['colons are a part of the value', 'data:a:b: c\n\n', [['message', 'a:b: c', '']]],
  ['NUL and other characters are data', 'data:\0é🦀\u2028\n\n', [['message', '\0é🦀\u2028', '']]],
]) {
  check(what, blocks(text), expected)
}
