//! A client that watches a hash as the interface says: it keeps a copy of the hash from the blocks of its streams, and
//! checks each block. A block that a client could not use is a panic.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use roomcast::digest::sha1_hex;
use roomcast::names::{Bookmark, Cursor, EventId, HashName, Topic, WatchBase};
use serde_json::Value;

use super::{SseEvent, Stream, within};

/// Names and values of a hash.
pub type Fields = BTreeMap<String, Vec<u8>>;

/// What a watcher was told about its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Set {
        id: EventId,
        fields: Fields,
        by: Option<String>,
    },
    Delete {
        id: EventId,
        fields: Vec<String>,
        by: Option<String>,
    },
    Clear {
        id: EventId,
        reason: String,
        by: Option<String>,
    },
    /// A whole snapshot.
    Snapshot {
        id: EventId,
        fields: Fields,
    },
    Gap {
        from: EventId,
        to: EventId,
        reason: String,
    },
}

impl Told {
    /// The id of a change; none of a snapshot or a gap.
    pub fn change_id(&self) -> Option<EventId> {
        match self {
            Self::Set { id, .. } | Self::Delete { id, .. } | Self::Clear { id, .. } => Some(*id),
            Self::Snapshot { .. } | Self::Gap { .. } => None,
        }
    }
}

/// A watcher of one hash, which may get events of other topics too.
pub struct Watcher {
    path: String,
    hash: String,
    /// Whether it gets only some fields. Then there may be changes of which it is not told.
    is_filtered: bool,
    stream: Option<Stream>,
    /// What an `EventSource` would send as `Last-Event-ID`.
    pub last_event_id: Option<String>,
    place: Option<Bookmark>,
    /// The copy of the hash; none before the first snapshot.
    fields: Option<Fields>,
    /// The parts of a snapshot that is not whole yet, and how many there are.
    parts: Option<(usize, Fields)>,
    /// Whether a gap was told after the last snapshot.
    needs_snapshot: bool,
    /// Everything that it was told, in order.
    pub told: Vec<Told>,
    /// How its streams began: `fresh`, `complete`, `snapshot` or `gap`.
    pub resumes: Vec<String>,
    /// How many streams ended at once with the reason `unavailable`.
    pub refused_streams: usize,
}

impl Watcher {
    /// A watcher that has no stream yet.
    pub fn new(hash: &str) -> Self {
        Self::with_query(hash, "")
    }

    /// The same with a query, as `?field=a`.
    pub fn with_query(hash: &str, query: &str) -> Self {
        Self::at(hash, &format!("/v1/hashes/{hash}/stream{query}"))
    }

    /// A watcher of a hash on a stream of this path.
    pub fn at(hash: &str, path: &str) -> Self {
        Self {
            path: path.into(),
            hash: hash.into(),
            is_filtered: path.contains("field="),
            stream: None,
            last_event_id: None,
            place: None,
            fields: None,
            parts: None,
            needs_snapshot: false,
            told: Vec::new(),
            resumes: Vec::new(),
            refused_streams: 0,
        }
    }

    /// Opens a stream at a gateway, where the last one ended. Returns how it resumes. A stream that is refused for now is
    /// opened again, as a slow machine may not read a large hash in time.
    pub async fn open(&mut self, url: &str) -> &str {
        within("a stream opens", async {
            while !self.try_open(url).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        self.resumes.last().expect("a stream has opened")
    }

    /// The same. Returns false if there was no connection, or if the stream was refused for now.
    pub async fn try_open(&mut self, url: &str) -> bool {
        self.parts = None;
        let resume = self.last_event_id.as_deref();
        let Ok(mut stream) = Stream::connect(&format!("{url}{}", self.path), resume).await else { return false };
        let Some(first) = stream.next().await else { return false };
        if first.event == "stream.end" {
            self.refused_streams += 1;
            assert_eq!(
                Some(&first.id).filter(|id| !id.is_empty()),
                self.last_event_id.as_ref(),
                "a refusal keeps the id"
            );
            return false;
        }
        assert_eq!(first.event, "stream.open");
        stream.opened = first.json();
        let opened = &stream.opened["hashes"][&self.hash];
        let (resume, place) = (text(&opened["resume"]), self.place_of(&first.id));
        assert_eq!(text(&opened["position"]), place.to_string());
        match (self.place, resume.as_str()) {
            (None, "fresh") => assert_eq!(place.base, Some(WatchBase::Unfinished)),
            (Some(before), "complete" | "snapshot" | "gap") => {
                assert!(before.id <= place.id, "{before} was resumed at {place}");
                assert_eq!(before.base.unwrap_or(WatchBase::Unfinished), place.base.unwrap(), "{resume}");
                let has_base = matches!(before.base, Some(WatchBase::Mirror(_)));
                assert!(has_base || resume != "complete", "{before} has no base");
            }
            other => panic!("{other:?}"),
        }
        self.needs_snapshot |= resume == "gap";
        self.note_place(&first, place);
        self.resumes.push(resume);
        self.stream = Some(stream);
        true
    }

    /// The data of the present stream's `stream.open`.
    pub fn opened(&self) -> &Value {
        &self.stream.as_ref().expect("a stream is open").opened
    }

    /// Drops the stream, as a client does whose connection breaks.
    pub fn leave(&mut self) {
        self.stream = None;
    }

    /// The copy of the hash. None if there is none, or if it may lack something.
    pub fn fields(&self) -> Option<&Fields> {
        self.fields.as_ref().filter(|_| !self.needs_snapshot && self.parts.is_none())
    }

    /// The next event, applied to the copy. None at the stream's end, which drops the stream.
    pub async fn next(&mut self) -> Option<SseEvent> {
        let event = self.stream.as_mut().expect("a stream is open").next().await;
        match &event {
            Some(event) => self.apply(event),
            None => self.stream = None,
        }
        event
    }

    /// The next change, snapshot or gap that is whole. Panics at the stream's end.
    pub async fn told(&mut self) -> Told {
        let count = self.told.len();
        while self.told.len() == count {
            self.next().await.expect("the stream goes on");
        }
        self.told[count].clone()
    }

    /// Reads until the copy has these fields.
    pub async fn until(&mut self, fields: &Fields) {
        within("a watcher has the state that is stored", async {
            while self.fields() != Some(fields) {
                self.next().await.expect("the stream goes on");
            }
        })
        .await;
    }

    /// Reads until the copy has this value of this field.
    pub async fn until_value(&mut self, field: &str, value: &str) {
        within("a watcher has a value", async {
            while self.fields().and_then(|fields| fields.get(field)).is_none_or(|found| found != value.as_bytes()) {
                self.next().await.expect("the stream goes on");
            }
        })
        .await;
    }

    /// The reasons of the gaps that it was told.
    pub fn gaps(&self) -> Vec<&str> {
        let mut reasons = Vec::new();
        for told in &self.told {
            if let Told::Gap { reason, .. } = told {
                reasons.push(&**reason);
            }
        }
        reasons
    }

    /// A watcher without a stream that has been told as much as this one had before it was told the rest.
    pub fn rewound(&self, told: usize) -> Self {
        let mut watcher = Self::at(&self.hash, &self.path);
        let base = self.place.expect("a stream has opened").base;
        for told in &self.told[..told] {
            let fields = watcher.fields.get_or_insert_default();
            let id = match told {
                Told::Snapshot { id, fields: all } => {
                    fields.clone_from(all);
                    id
                }
                Told::Set { id, fields: set, .. } => {
                    fields.extend(set.clone());
                    id
                }
                Told::Delete { id, fields: names, .. } => {
                    for name in names {
                        fields.remove(name);
                    }
                    id
                }
                Told::Clear { id, .. } => {
                    fields.clear();
                    id
                }
                Told::Gap { .. } => panic!("a gap has no state"),
            };
            watcher.place = Some(Bookmark { id: *id, base });
            watcher.last_event_id = Some(Bookmark { id: *id, base }.to_string());
            watcher.told.push(told.clone());
        }
        watcher
    }

    fn place_of(&self, id: &str) -> Bookmark {
        match Cursor::decode(id) {
            Ok(cursor) => cursor.bookmark(&Topic::from(HashName::new(&self.hash).unwrap())).unwrap(),
            Err(_) => id.parse().unwrap(),
        }
    }

    fn note_place(&mut self, event: &SseEvent, place: Bookmark) {
        self.place = Some(place);
        self.last_event_id = Some(event.id.clone());
    }

    fn apply(&mut self, event: &SseEvent) {
        let (before, now) = (self.place.expect("a stream has opened"), self.place_of(&event.id));
        assert!(before.id <= now.id, "a position moved back from {before} to {now} at {event:?}");
        let is_own = event.event.starts_with("hash.") || event.event == "stream.gap";
        let data = event.json();
        if is_own && data["hash"] == *self.hash {
            match event.event.as_str() {
                "hash.snapshot" => self.apply_part(&data, now),
                "stream.gap" => self.apply_gap(&data, now),
                _ => self.apply_change(event, &data, before, now),
            }
        } else {
            // A stream may need a snapshot of which nothing has been sent.
            let is_same = before.base == now.base || now.base == Some(WatchBase::Unfinished);
            assert!(is_same, "{before} {event:?}");
        }
        self.note_place(event, now);
    }

    fn apply_gap(&mut self, data: &Value, now: Bookmark) {
        let id = |name: &str| text(&data[name]).parse().unwrap();
        let gap = Told::Gap { from: id("from"), to: id("to"), reason: text(&data["reason"]) };
        assert_eq!(now, Bookmark { id: id("to"), base: Some(WatchBase::Unfinished) }, "{data}");
        self.needs_snapshot = true;
        self.parts = None;
        self.told.push(gap);
    }

    fn apply_part(&mut self, data: &Value, now: Bookmark) {
        let part = usize::try_from(data["part"].as_u64().unwrap()).unwrap();
        let (count, mut fields) =
            if part == 0 { Default::default() } else { self.parts.take().expect("parts follow") };
        assert_eq!(part, count, "the parts of a snapshot come in their order");
        for (field, value) in values(&data["fields"]) {
            assert_eq!(fields.insert(field, value), None, "a snapshot has each field once");
        }
        if data["last"] == true {
            assert!(matches!(now.base, Some(WatchBase::Mirror(_))), "{now}");
            self.told.push(Told::Snapshot { id: now.id, fields: fields.clone() });
            (self.fields, self.needs_snapshot, self.parts) = (Some(fields), false, None);
        } else {
            assert_eq!(now.base, Some(WatchBase::Unfinished));
            self.parts = Some((count + 1, fields));
        }
    }

    fn apply_change(&mut self, event: &SseEvent, data: &Value, before: Bookmark, now: Bookmark) {
        assert!(self.fields().is_some(), "a change without a base: {event:?}");
        assert!(matches!(before.base, Some(WatchBase::Mirror(_))) && before.base == now.base, "{before} {now}");
        assert!(before.id < now.id, "a change is told twice: {before} {event:?}");
        let is_next = now.id.before() == before.id || before.id.epoch < now.id.epoch && now.id.offset == 1;
        assert!(is_next || self.is_filtered, "a change is missing between {before} and {event:?}");
        let fields = self.fields.as_mut().expect("checked above");
        let (id, by) = (now.id, data["by"].as_str().map(str::to_owned));
        self.told.push(match event.event.as_str() {
            "hash.set" => {
                let set = values(&data["fields"]);
                assert!(!set.is_empty());
                fields.extend(set.clone());
                Told::Set { id, fields: set, by }
            }
            "hash.delete" => {
                let names: Vec<_> = data["fields"].as_array().unwrap().iter().map(text).collect();
                assert!(!names.is_empty());
                for name in &names {
                    fields.remove(name);
                }
                Told::Delete { id, fields: names, by }
            }
            "hash.clear" => {
                fields.clear();
                Told::Clear { id, reason: text(&data["reason"]), by }
            }
            other => panic!("an unknown event {other}"),
        });
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

/// Names and values of a block. Checks their entity tags.
fn values(fields: &Value) -> Fields {
    let value = |(field, told): (&String, &Value)| {
        let value = bytes(told);
        assert_eq!(told["etag"], format!("\"{}\"", sha1_hex(&value)), "{field}");
        (field.clone(), value)
    };
    fields.as_object().unwrap().iter().map(value).collect()
}

/// A value in JSON: `value`, or `value_base64` if it is not UTF-8.
fn bytes(told: &Value) -> Vec<u8> {
    match (&told["value"], &told["value_base64"]) {
        (Value::String(value), Value::Null) => value.clone().into_bytes(),
        (Value::Null, Value::String(value)) => STANDARD.decode(value).unwrap(),
        _ => panic!("{told}"),
    }
}

/// The fields of a hash as a gateway serves them.
pub async fn stored_fields(url: &str, hash: &str) -> Fields {
    let (mut fields, mut after) = (Fields::new(), String::new());
    loop {
        let answer =
            within("a page of a hash", reqwest::get(format!("{url}/v1/hashes/{hash}?limit=1000{after}"))).await;
        let page: Value = answer.unwrap().json().await.unwrap();
        let page_fields = page["fields"].as_object().unwrap_or_else(|| panic!("{page}"));
        fields.extend(page_fields.iter().map(|(field, value)| (field.clone(), bytes(value))));
        let Some(next) = page["next"].as_str() else { return fields };
        after = format!("&after={}", form_urlencoded::byte_serialize(next.as_bytes()).collect::<String>());
    }
}
