//! Watchers of a hash that many change at random, through gateways and past them, while the watchers come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Client, Method};
use roomcast::names::EventId;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::{Fields, Told, Watcher, World, number_from, random, spawn, stored_fields, within};

const HASH: &str = "random";
const KEY: &str = "roomcast:hash:{random}";
const WRITERS: usize = 4;
/// Watchers that leave and come back.
const WANDERERS: usize = 6;

/// What a test does.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    fields: usize,
    writes: usize,
    /// A watcher leaves after one in so many events.
    stay: usize,
}

/// A writer that knows the gateways and, if there is one, their Redis.
struct Writer {
    plan: Plan,
    number: usize,
    urls: Vec<String>,
    client: Client,
    redis: Option<BufReader<TcpStream>>,
    random: fastrand::Rng,
    written: Arc<watch::Sender<usize>>,
}

impl Writer {
    async fn run(mut self, writes: usize) {
        for count in 0..writes {
            let value = format!("{}.{count}", self.number);
            let field = self.field();
            match self.random.u8(..100) {
                0..40 => self.send(Method::PUT, &format!("/fields/{field}"), value.into()).await,
                40..60 => {
                    let sets: Map<_, _> =
                        (0..self.random.usize(1..4)).map(|_| (self.field(), json!(value))).collect();
                    let removed = json!({self.field(): null});
                    let both = sets.into_iter().chain(removed.as_object().unwrap().clone());
                    self.patch(both.collect()).await;
                }
                60..70 => self.send(Method::DELETE, &format!("/fields/{field}"), Value::Null).await,
                70..72 => self.clear().await,
                72..80 => {
                    let (path, by) = (format!("/fields/n{}/increment", self.random.u8(..3)), self.random.i8(-5..5));
                    self.send(Method::POST, &path, json!({"by": by})).await;
                }
                80..90 => self.command(&["HSET", KEY, &field, &value]).await,
                90..98 => self.command(&["HDEL", KEY, &field]).await,
                _ if self.plan.fields < 100 => self.command(&["DEL", KEY]).await,
                _ => self.command(&["HINCRBY", KEY, "n0", "7"]).await,
            }
            self.written.send_modify(|written| *written += 1);
        }
    }

    fn field(&mut self) -> String {
        format!("f{}", self.random.usize(..self.plan.fields))
    }

    /// Deletes the hash. A large one is filled again.
    async fn clear(&mut self) {
        if self.plan.fields < 100 || self.random.u8(..8) == 0 {
            self.send(Method::DELETE, "", Value::Null).await;
        }
        if self.plan.fields >= 100 {
            self.fill().await;
        }
    }

    async fn fill(&mut self) {
        for first in (0..self.plan.fields).step_by(1000) {
            let fields = first..self.plan.fields.min(first + 1000);
            self.patch(fields.map(|n| (format!("f{n}"), json!(format!("filled {n}")))).collect()).await;
        }
    }

    async fn patch(&mut self, fields: Map<String, Value>) {
        self.send(Method::PATCH, "", Value::Object(fields)).await;
    }

    async fn send(&mut self, method: Method, path: &str, body: Value) {
        let url = &self.urls[self.random.usize(..self.urls.len())];
        let request = self.client.request(method, format!("{url}/v1/hashes/{HASH}{path}"));
        let request = match &body {
            Value::String(text) => request.body(text.clone()),
            body => request.json(body),
        };
        let status = within("a write", request.send()).await.unwrap().status().as_u16();
        assert!(matches!(status, 200 | 201 | 204 | 404), "{path} {body}: {status}");
    }

    /// Changes the hash past the gateways.
    async fn command(&mut self, words: &[&str]) {
        let Some(redis) = &mut self.redis else { return };
        redis.write_all(format!("{}\r\n", words.join(" ")).as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("an answer of Redis", redis.read_line(&mut answer)).await.unwrap();
        assert!(answer.starts_with(':'), "{words:?}: {answer}");
    }
}

/// Watches until it has the last state. Leaves now and then, and comes back at any gateway, some writes later.
async fn wander(
    plan: Plan,
    urls: Vec<String>,
    mut random: fastrand::Rng,
    mut written: watch::Receiver<usize>,
    mut last: watch::Receiver<Option<Fields>>,
) -> Watcher {
    let mut watcher = Watcher::new(HASH);
    watcher.open(&urls[random.usize(..urls.len())]).await;
    while last.borrow().is_none() {
        tokio::select! {
            event = watcher.next() => assert!(event.is_some(), "the stream ended"),
            _ = last.changed() => {}
        }
        if random.usize(..plan.stay) == 0 {
            watcher.leave();
            let until = *written.borrow() + random.usize(..40);
            tokio::select! {
                _ = written.wait_for(|written| *written >= until) => {}
                _ = last.wait_for(Option::is_some) => {}
            }
            watcher.open(&urls[random.usize(..urls.len())]).await;
        }
    }
    let last = last.borrow().clone().expect("it is there");
    watcher.until(&last).await;
    watcher
}

/// Changes the hash at random. Checks that each watcher has what is stored at the end, and that those who have stayed were
/// told the log's changes, all of them.
async fn changes(world: World, plan: Plan) {
    let mut random = random(plan.seed);
    let total = number_from("ROOMCAST_WRITES").map_or(plan.writes, |writes| usize::try_from(writes).unwrap());
    let mut gateways = Vec::new();
    // Two gateways with the embedded broker would have two hashes.
    for _ in 0..if world.redis.is_some() { 2 } else { 1 } {
        gateways.push(world.gateway_with(|settings| settings.streams.heartbeat = Duration::from_millis(500)).await);
    }
    let urls: Vec<_> = gateways.iter().map(|gateway| gateway.url.clone()).collect();
    let written = Arc::new(watch::channel(0).0);
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let redis = match &world.redis {
            Some(redis) => Some(BufReader::new(TcpStream::connect(("127.0.0.1", redis.port())).await.unwrap())),
            None => None,
        };
        let (urls, client, random, written) = (urls.clone(), Client::new(), random.fork(), written.clone());
        writers.push(Writer { plan, number, urls, client, redis, random, written });
    }
    writers[0].fill().await;
    let last = watch::channel(None).0;
    let never = Plan { stay: usize::MAX, ..plan };
    let staying = (0..2).map(|n| (never, vec![urls[n % urls.len()].clone()]));
    let wandering = (0..WANDERERS).map(|_| (plan, urls.clone()));
    let watchers: Vec<_> = staying
        .chain(wandering)
        .map(|(plan, urls)| spawn(wander(plan, urls, random.fork(), written.subscribe(), last.subscribe())))
        .collect();
    join_all(writers.into_iter().map(|writer| writer.run(total / WRITERS))).await;
    last.send_replace(Some(stored_fields(&urls[0], HASH).await));
    let mut ended = Vec::new();
    for watcher in watchers {
        ended.push(within("a watcher has the state that is stored", watcher).await.unwrap());
    }
    let log = world.redis.as_ref().map(|redis| {
        let text = redis.cli(&["XRANGE", &format!("{KEY}:log"), "-", "+"]);
        text.lines().filter_map(|line| line.parse::<EventId>().ok()).collect::<Vec<_>>()
    });
    for watcher in &ended {
        assert_eq!(watcher.gaps(), [""; 0]);
    }
    // Nothing is left out of what they were told: the watcher checks that.
    let changes = |watcher: &Watcher| {
        let (first, changes) = watcher.told.split_first().unwrap();
        assert!(matches!(first, Told::Snapshot { .. }), "{first:?}");
        let id = |told: &Told| told.change_id().unwrap_or_else(|| panic!("one more snapshot: {told:?}"));
        changes.iter().map(|told| (id(told), told.clone())).collect::<BTreeMap<_, _>>()
    };
    let (first, second) = (changes(&ended[0]), changes(&ended[1]));
    assert!(first.len() > total / 3, "{} changes", first.len());
    let common = first.iter().filter(|(id, _)| second.contains_key(id)).count();
    assert!(common > total / 3, "{common} changes were told to both");
    for (id, told) in &first {
        assert!(second.get(id).is_none_or(|other| told == other), "{told:?} {:?}", second[id]);
    }
    // The log keeps the last ones.
    if let Some(log) = log {
        let told: Vec<_> = first.keys().copied().filter(|id| *id >= log[0]).collect();
        let logged: Vec<_> = log.into_iter().skip_while(|id| *id < told[0]).take(told.len()).collect();
        assert_eq!(logged, told);
    }
    let mut resumes = BTreeMap::<_, usize>::new();
    for resume in ended.iter().flat_map(|watcher| &watcher.resumes) {
        *resumes.entry(resume).or_default() += 1;
    }
    println!("{} changes, {resumes:?}", first.len());
}

on_both_brokers! {
    async fn p9_watchers_of_a_small_hash_that_come_and_go_end_with_what_is_stored(world) {
        changes(world, Plan { seed: 51, fields: 20, writes: 2000, stay: 20 }).await;
    }

    async fn p9_watchers_of_a_large_hash_that_come_and_go_end_with_what_is_stored(world) {
        changes(world, Plan { seed: 52, fields: 2500, writes: 1000, stay: 50 }).await;
    }
}

/// The time between two comparisons is longer than any wait of a test if Redis tells of changes.
#[tokio::test]
async fn p9_watchers_of_a_hash_of_which_redis_notifies_end_with_what_is_stored() {
    let world = World::redis().await;
    world.server().cli(&["CONFIG", "SET", "notify-keyspace-events", "KA"]);
    changes(world, Plan { seed: 53, fields: 20, writes: 2000, stay: 20 }).await;
}
