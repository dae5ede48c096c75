//! Concurrent writes and reads of one field are linearizable: each takes effect at one moment between its request and its
//! answer. Random clients record what they send and get, and a checker looks for an order that explains it.

use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{DEADLINE, Gateway, Link, Proxy, Way, random};

const CLIENTS: usize = 4;
/// Operations of each client in one history.
const OPERATIONS: usize = 10;
/// Histories that are recorded at one time.
const AT_ONCE: usize = 5;
/// Such rounds without faults, and with one fault in each.
const ROUNDS: usize = 60;
const FAULTS: usize = 40;
/// Longest time for which answers are lost before the links are cut.
const LOSS: Duration = Duration::from_millis(20);

/// The condition of a write; a value stands for its entity tag.
#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Always,
    Absent,
    Matches(i64),
}

#[derive(Clone, Debug, PartialEq)]
enum Operation {
    Get,
    Set(Condition, i64),
    Delete(Condition),
    Increment(Condition, i64),
}

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Value(Option<i64>),
    Created,
    Replaced,
    Removed,
    Absent,
    Refused,
    Sum(i64),
    /// The operation certainly had no effect, and says nothing about the value.
    NotDone,
}

/// The field, as if there were one client only.
#[derive(Clone)]
struct Field(Option<i64>);

impl Field {
    fn meets(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Absent => self.0.is_none(),
            Condition::Matches(value) => self.0 == Some(*value),
        }
    }
}

impl SequentialSpec for Field {
    type Op = Operation;
    type Ret = Answer;

    fn invoke(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Get => Answer::Value(self.0),
            Operation::Set(condition, _) | Operation::Delete(condition) | Operation::Increment(condition, _)
                if !self.meets(condition) =>
            {
                Answer::Refused
            }
            Operation::Set(_, value) => match self.0.replace(*value) {
                None => Answer::Created,
                Some(_) => Answer::Replaced,
            },
            Operation::Delete(_) => match self.0.take() {
                None => Answer::Absent,
                Some(_) => Answer::Removed,
            },
            Operation::Increment(_, by) => Answer::Sum(*self.0.insert(self.0.unwrap_or(0) + by)),
        }
    }

    fn is_valid_step(&mut self, operation: &Operation, answer: &Answer) -> bool {
        *answer == Answer::NotDone || self.invoke(operation) == *answer
    }
}

/// What was sent and answered, in this order. An operation whose outcome is unknown stays without an answer: it may have
/// taken effect at any later time, or never.
struct History {
    tester: LinearizabilityTester<usize, Field>,
    threads: usize,
    trail: String,
}

impl History {
    fn new() -> Self {
        Self { tester: LinearizabilityTester::new(Field(None)), threads: 0, trail: String::new() }
    }

    /// A thread has one operation at a time. After one without an answer, its client goes on as another thread.
    fn new_thread(&mut self) -> usize {
        self.threads += 1;
        self.threads
    }

    fn invoked(&mut self, thread: usize, operation: &Operation) {
        let _ = writeln!(self.trail, "{thread}: {operation:?}");
        self.tester.on_invoke(thread, operation.clone()).unwrap();
    }

    fn answered(&mut self, thread: usize, answer: &Answer) {
        let _ = writeln!(self.trail, "{thread}: ... {answer:?}");
        self.tester.on_return(thread, answer.clone()).unwrap();
    }
}

/// A client of one field.
struct FieldClient {
    url: String,
    client: Client,
    replicas: Arc<Vec<String>>,
    history: Arc<Mutex<History>>,
    /// Counts the operations of all clients.
    sent: watch::Sender<usize>,
    random: fastrand::Rng,
    /// The value that this client has seen last, and its entity tag.
    seen: Option<(i64, String)>,
    lost: usize,
}

impl FieldClient {
    async fn run(mut self) -> usize {
        let mut thread = self.history.lock().unwrap().new_thread();
        for _ in 0..OPERATIONS {
            let (operation, tag) = self.choose();
            let request = self.request(&operation, tag);
            self.history.lock().unwrap().invoked(thread, &operation);
            self.sent.send_modify(|sent| *sent += 1);
            let answer = self.send(&operation, request).await;
            let mut history = self.history.lock().unwrap();
            if let Some(answer) = answer {
                history.answered(thread, &answer);
            } else {
                self.lost += 1;
                thread = history.new_thread();
            }
        }
        self.lost
    }

    /// A random operation, and the entity tag that its condition needs.
    fn choose(&mut self) -> (Operation, Option<String>) {
        let (condition, tag) = match (self.random.u8(..4), &self.seen) {
            (0, _) => (Condition::Always, None),
            (_, Some((value, tag))) => (Condition::Matches(*value), Some(tag.clone())),
            (_, None) => (Condition::Absent, None),
        };
        let value = self.random.i64(1..1_000_000) * 100;
        match self.random.u8(..10) {
            0..=2 => (Operation::Get, None),
            3..=6 => (Operation::Set(condition, value), tag),
            7 | 8 => (Operation::Increment(condition, self.random.i64(1..10)), tag),
            // A DELETE can't demand that there is no value.
            _ if condition == Condition::Absent => (Operation::Delete(Condition::Always), None),
            _ => (Operation::Delete(condition), tag),
        }
    }

    fn request(&mut self, operation: &Operation, tag: Option<String>) -> RequestBuilder {
        let url = format!("{}{}", self.replicas[self.random.usize(..self.replicas.len())], self.url);
        let (request, condition) = match operation {
            Operation::Get => (self.client.get(url), &Condition::Always),
            Operation::Set(condition, value) => (self.client.put(url).body(value.to_string()), condition),
            Operation::Delete(condition) => (self.client.delete(url), condition),
            Operation::Increment(condition, by) => {
                (self.client.post(url + "/increment").json(&json!({"by": by})), condition)
            }
        };
        match (condition, tag) {
            (Condition::Absent, _) => request.header("if-none-match", "*"),
            (_, Some(tag)) => request.header("if-match", tag),
            (_, None) => request,
        }
        .timeout(DEADLINE)
    }

    /// Sends a request. `None` if its outcome is unknown.
    async fn send(&mut self, operation: &Operation, request: RequestBuilder) -> Option<Answer> {
        let unanswered = (*operation == Operation::Get).then_some(Answer::NotDone);
        let Ok(answer) = request.send().await else { return unanswered };
        let tag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        let status = answer.status().as_u16();
        let Ok(body) = answer.bytes().await else { return unanswered };
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let value = || body["value"].as_str().unwrap().parse::<i64>().unwrap();
        if matches!(status, 200 | 201) {
            self.seen = Some((value(), tag.unwrap()));
        } else if matches!(status, 204 | 404) {
            self.seen = None;
        }
        Some(match (operation, status) {
            (Operation::Get, 200) => Answer::Value(Some(value())),
            (Operation::Get, 404) => Answer::Value(None),
            (Operation::Set(..), 201) => Answer::Created,
            (Operation::Set(..), 200) => Answer::Replaced,
            (Operation::Delete(_), 204) => Answer::Removed,
            (Operation::Delete(_), 404) => Answer::Absent,
            (Operation::Increment(..), 200) => Answer::Sum(value()),
            (_, 412) => {
                // The present value is read after the refusal, so it is no part of the answer.
                self.seen = None;
                Answer::Refused
            }
            (_, 503) if body["code"] == "outcome_unknown" => return unanswered,
            (_, 503) => Answer::NotDone,
            (_, status) => panic!("{operation:?} was answered with {status}: {body}"),
        })
    }
}

/// Clients that read and write fields, each field with a history of its own.
struct Fields {
    replicas: Arc<Vec<String>>,
    client: Client,
    random: fastrand::Rng,
    recorded: usize,
    /// Operations without an answer.
    lost: usize,
}

impl Fields {
    fn new(replicas: impl IntoIterator<Item = String>, seed: u64) -> Self {
        let replicas = Arc::new(replicas.into_iter().collect());
        Self { replicas, client: Client::new(), random: random(seed), recorded: 0, lost: 0 }
    }

    /// Records some histories at one time, while a fault happens, and checks each.
    async fn round(&mut self, fault: impl AsyncFnOnce(watch::Receiver<usize>)) {
        let histories: Vec<_> = (0..AT_ONCE).map(|_| Arc::new(Mutex::new(History::new()))).collect();
        let sent = watch::channel(0).0;
        let counted = sent.subscribe();
        let mut clients = Vec::new();
        for (number, history) in histories.iter().enumerate() {
            for _ in 0..CLIENTS {
                let client = FieldClient {
                    url: format!("/v1/hashes/linear/fields/f{}", self.recorded + number),
                    client: self.client.clone(),
                    replicas: self.replicas.clone(),
                    history: history.clone(),
                    sent: sent.clone(),
                    random: self.random.fork(),
                    seen: None,
                    lost: 0,
                };
                clients.push(client.run());
            }
        }
        let (lost, ()) = tokio::join!(join_all(clients), fault(counted));
        self.lost += lost.into_iter().sum::<usize>();
        self.recorded += AT_ONCE;
        for history in histories {
            let history = history.lock().unwrap();
            assert!(history.tester.is_consistent(), "no order explains this:\n{}", history.trail);
        }
    }
}

on_both_brokers! {
    async fn p9_concurrent_operations_on_a_field_have_an_order(world) {
        let mut gateways = vec![world.gateway().await];
        while world.redis.is_some() && gateways.len() < 3 {
            gateways.push(world.gateway().await);
        }
        let mut fields = Fields::new(gateways.iter().map(|gateway| gateway.url.clone()), 1);
        for _ in 0..ROUNDS {
            fields.round(async |_| {}).await;
        }
        assert_eq!(fields.lost, 0);
    }

    async fn p9_concurrent_operations_on_a_field_have_an_order_while_answers_are_lost(world) {
        let (mut gateways, mut proxies, mut urls) = (Vec::<Gateway>::new(), Vec::new(), Vec::new());
        if let Some(server) = &world.redis {
            // Between the replicas and Redis.
            for _ in 0..3 {
                let proxy = Proxy::to(server.port()).await;
                let url = proxy.url();
                let gateway = world.gateway_with(|settings| settings.redis.url = Some(url.parse().unwrap())).await;
                urls.push(gateway.url.clone());
                gateways.push(gateway);
                proxies.push((proxy, server.port()));
            }
        } else {
            // Between the clients and the gateway.
            let gateway = world.gateway().await;
            let port = gateway.address().rsplit(':').next().unwrap().parse().unwrap();
            let proxy = Proxy::to(port).await;
            urls.push(proxy.url().replace("redis:", "http:"));
            gateways.push(gateway);
            proxies.push((proxy, port));
        }
        let mut fields = Fields::new(urls, 2);
        for _ in 0..FAULTS {
            for gateway in &gateways {
                gateway.until_well().await;
            }
            let random = &mut fields.random;
            let (begin, more, failing) = (random.usize(..100), random.usize(1..20), random.usize(..proxies.len()));
            let (proxy, port) = &proxies[failing];
            fields.round(async |mut sent| {
                let _ = sent.wait_for(|sent| *sent >= begin).await;
                proxy.set(Link::Drop(Way::ToClient));
                let _ = timeout(LOSS, sent.wait_for(|sent| *sent >= begin + more)).await;
                proxy.redirect(*port);
                proxy.set(Link::Pass);
            }).await;
        }
        println!("{} histories, {} operations without an answer", fields.recorded, fields.lost);
        assert!(fields.lost >= FAULTS, "{} answers were lost", fields.lost);
    }
}

/// Checks a history of operations, with the number of each one's thread, and their answers. A thread's operation without
/// an answer is in flight until its next line.
fn has_an_order(steps: &[(usize, Result<Operation, Answer>)]) -> bool {
    let mut history = History::new();
    for (thread, step) in steps {
        match step {
            Ok(operation) => history.invoked(*thread, operation),
            Err(answer) => history.answered(*thread, answer),
        }
    }
    history.tester.is_consistent()
}

#[test]
fn the_checker_notices_what_no_order_explains() {
    use Operation::{Get, Increment, Set};
    let set = |value| (1, Ok(Set(Condition::Always, value)));
    let compare_and_set = |thread, old, new| (thread, Ok(Set(Condition::Matches(old), new)));
    let get = || (2, Ok(Get));
    let read = |value| (2, Err(Answer::Value(value)));
    let (created, replaced) = ((1, Err(Answer::Created)), |thread| (thread, Err(Answer::Replaced)));
    for (what, is_explained, rest) in [
        ("a read of the value", true, vec![get(), read(Some(1))]),
        ("a stale read", false, vec![get(), read(None)]),
        ("a stale read after a write", false, vec![set(2), replaced(1), get(), read(Some(1))]),
        ("a read of either value during a write", true, vec![set(2), get(), read(Some(1)), replaced(1)]),
        ("a value that comes back", false, vec![set(2), get(), read(Some(2)), get(), read(Some(1)), replaced(1)]),
        (
            "two writes of which each has replaced the same value",
            false,
            vec![compare_and_set(1, 1, 2), compare_and_set(2, 1, 3), replaced(1), replaced(2)],
        ),
        (
            "two writes of which one was refused",
            true,
            vec![compare_and_set(1, 1, 2), compare_and_set(2, 1, 3), (1, Err(Answer::Refused)), replaced(2)],
        ),
        (
            "a refusal although the value is the same",
            false,
            vec![compare_and_set(1, 1, 2), (1, Err(Answer::Refused))],
        ),
        ("a write without an answer that was not done", true, vec![set(2), get(), read(Some(1))]),
        (
            "a write without an answer that was done late",
            true,
            vec![set(2), get(), read(Some(1)), get(), read(Some(2))],
        ),
        (
            "a write without an answer that was done and undone",
            false,
            vec![set(2), get(), read(Some(2)), get(), read(Some(1))],
        ),
        (
            "an increment that counts twice",
            false,
            vec![(1, Ok(Increment(Condition::Always, 5))), (1, Err(Answer::Sum(6))), get(), read(Some(11))],
        ),
        (
            "a write that was said not to be done",
            false,
            vec![set(2), (1, Err(Answer::NotDone)), get(), read(Some(2))],
        ),
    ] {
        let steps = [vec![set(1), created.clone()], rest].concat();
        assert_eq!(has_an_order(&steps), is_explained, "{what}");
    }
}
