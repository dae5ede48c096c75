//! Records are read as they were written, and are those of format 1.

use super::*;

/// One of each kind of record.
pub struct Samples {
    pub topic: Topic,
    pub room: RoomName,
    pub hash: HashName,
    pub subscriber: SubscriberId,
    pub head: Head,
    pub entry: LogEntry,
    pub expiry: HashExpiry,
    pub key: IdempotencyRecord,
    pub hash_key: IdempotencyRecord,
    pub member: StoredMember,
    pub removal: Removal,
}

impl Samples {
    pub fn new() -> Self {
        let room = RoomName::new("a").unwrap();
        let subscriber = SubscriberId::new("ann").unwrap();
        let epochs = vec![
            Epoch::new(5, 3),
            Epoch {
                lost_since: Some(EventId::new(5, 2)),
                late_loss: Some(LateLoss { since: EventId::new(5, 1), entered: 5 }),
                ..Epoch::new(9, 4)
            },
        ];
        let history = EpochHistory::from_parts(epochs, 4, EventId::new(5, 2)).unwrap();
        let entry = LogEntry { id: EventId::new(9, 4), stored: Bytes::from_static(b"\x00stored") };
        Self {
            topic: Topic::from(room.clone()),
            hash: HashName::new("h").unwrap(),
            expiry: HashExpiry { at: 55, refresh: Some(1000) },
            head: Head { replication_id: "mark".into(), history, last_message: None },
            key: IdempotencyRecord { content: "c".into(), answer: RecordedAnswer::Appended(entry.id), until: 99 },
            hash_key: IdempotencyRecord {
                content: "c".into(),
                answer: RecordedAnswer::Written(WriteEffect {
                    replaced: 1,
                    sum: Some("1.5".into()),
                    ..WriteEffect::default()
                }),
                until: 99,
            },
            member: StoredMember {
                generation: 7,
                since: "now".into(),
                owner: "o".into(),
                address: Some("192.0.2.1".parse().unwrap()),
                profile: "\"subscriber\":\"ann\"".into(),
                is_stale: false,
            },
            removal: Removal {
                room: Some(room.clone()),
                subscriber: Some(subscriber.clone()),
                ..Removal::default()
            },
            room,
            subscriber,
            entry,
        }
    }

    /// In the order in which [`FORMAT_1`] shows them.
    pub fn changes(&self) -> [RecordChange; 9] {
        [
            RecordChange::head(&self.topic, &self.head, 77),
            RecordChange::entry(&self.topic, &self.entry, 66),
            RecordChange::field(&self.hash, "é f", Some(Bytes::from_static(b"\xff"))),
            RecordChange::idempotency_key(&self.topic, "digest", &self.key),
            RecordChange::member(&self.room, &self.subscriber, Some(&self.member)),
            RecordChange::watched(&self.room, true),
            RecordChange::removal(88, Some(&self.removal)),
            RecordChange::idempotency_key(&self.hash.clone().into(), "digest", &self.hash_key),
            RecordChange::expiry(&self.hash, Some(&self.expiry)),
        ]
    }
}

/// The records of [`Samples`], as a gateway finds them in a data folder.
const FORMAT_1: [(&str, &str); 9] = [
    (
        "ha",
        r#"{"mark":"mark","touched":77,"dropped":4,"cleared":[5,2],"epochs":[{"epoch":5,"end":3},{"epoch":9,"end":4,"lost_since":[5,2],"late":{"since":[5,1],"entered":5}}]}"#,
    ),
    (
        r"l\x01a\x00\x00\x00\x00\x00\x00\x00\t\x00\x00\x00\x00\x00\x00\x00\x04",
        r"\x00\x00\x00\x00\x00\x00\x00B\x00stored",
    ),
    (r"f\x01h\xc3\xa9 f", r"\xff"),
    (r"o\x01adigest", r#"{"content":"c","id":[9,4],"until":99}"#),
    (
        r"m\x01aann",
        r#"{"stamp":7,"since":"now","owner":"o","address":"192.0.2.1","card":"\"subscriber\":\"ann\""}"#,
    ),
    ("wa", ""),
    (r"r\x00\x00\x00\x00\x00\x00\x00X", r#"{"room":"a","subscriber":"ann","until":0}"#),
    (
        r"O\x01hdigest",
        r#"{"content":"c","done":{"created":0,"replaced":1,"removed":0,"copied":0,"sum":"1.5"},"until":99}"#,
    ),
    ("eh", r#"{"at":55,"refresh":1000}"#),
];

/// Bytes as text: those of JSON as they are, others escaped.
fn shown(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if text.starts_with('{') => text.into(),
        _ => bytes.escape_ascii().to_string(),
    }
}

fn parsed(change: &RecordChange) -> Record {
    Record::parse(&change.key, change.value.as_ref().unwrap()).unwrap()
}

/// Another form of a record is another format.
#[test]
fn records_are_those_of_format_1() {
    let changes = Samples::new().changes();
    let shown = changes.each_ref().map(|change| (shown(&change.key), shown(change.value.as_ref().unwrap())));
    assert_eq!(shown, FORMAT_1.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert!(changes[0].key < changes[1].key, "a head is loaded before its entries");
}

#[test]
fn a_finished_log_reads_as_it_was_written() {
    let samples = Samples::new();
    let history = samples.head.history.clone().with_finished(Some(EventId::new(9, 3)));
    let head = Head { history, last_message: Some(EventId::new(9, 3)), ..samples.head };
    let Record::Head { head: read, .. } = parsed(&RecordChange::head(&samples.topic, &head, 77)) else { panic!() };
    assert_eq!(read, head);
}

#[test]
fn records_read_as_they_were_written() {
    let samples = Samples::new();
    let [head, entry, field, key, member, watched, removal, hash_key, expiry] = samples.changes();

    let Record::Head { topic, head: read, touched } = parsed(&head) else { panic!() };
    assert_eq!((&topic, &read, touched), (&samples.topic, &samples.head, 77));
    let Record::Entry { topic, entry: read, appended_at } = parsed(&entry) else { panic!() };
    assert_eq!((&topic, &read, appended_at), (&samples.topic, &samples.entry, 66));
    let Record::Field { hash, field, value } = parsed(&field) else { panic!() };
    assert_eq!((&hash, field.as_str(), &value[..]), (&samples.hash, "é f", &b"\xff"[..]));
    let Record::IdempotencyKey { topic, digest, record } = parsed(&key) else { panic!() };
    assert_eq!((&topic, digest.as_str(), &record), (&samples.topic, "digest", &samples.key));
    let Record::IdempotencyKey { topic, digest, record } = parsed(&hash_key) else { panic!() };
    assert_eq!((topic, digest.as_str(), &record), (samples.hash.clone().into(), "digest", &samples.hash_key));
    let Record::Member { room, subscriber, member } = parsed(&member) else { panic!() };
    assert_eq!((&room, &subscriber, &member), (&samples.room, &samples.subscriber, &samples.member));
    let Record::PresenceWatch { room } = parsed(&watched) else { panic!() };
    assert_eq!(room, samples.room);
    let Record::Removal { id, removal } = parsed(&removal) else { panic!() };
    assert_eq!((id, &removal), (88, &samples.removal));
    let Record::Expiry { hash, expiry } = parsed(&expiry) else { panic!() };
    assert_eq!((hash, expiry), (samples.hash, samples.expiry));
}

/// A record is removed by the key that it has.
#[test]
fn records_are_removed_by_their_keys() {
    let samples = Samples::new();
    let [head, entry, _, key, .., expiry] = samples.changes();
    assert_eq!(RecordChange::no_head(&samples.topic).key, head.key);
    assert_eq!(RecordChange::no_entry(&samples.topic, samples.entry.id).key, entry.key);
    assert_eq!(RecordChange::no_idempotency_key(&samples.topic, "digest").key, key.key);
    assert_eq!(RecordChange::expiry(&samples.hash, None).key, expiry.key);
}
