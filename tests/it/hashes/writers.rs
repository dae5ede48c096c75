//! Many writers of one value, with compare-and-set and idempotency keys, while replicas and links fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{
    Balancer, DEADLINE, Link, Proxy, Replica, Way, World, eventually, number_from, random, spawn,
};

const WRITERS: usize = 8;
/// Writes of each writer: enough for each fault to meet some. `ROOMCAST_WRITES` sets another number.
const WRITES: usize = 250;
/// Parts of the writes on the embedded broker. Answers are lost after each.
const STEPS: usize = 25;

/// Writers that count in one value. It holds a number for each of them.
struct Writers {
    /// Writes of each writer.
    writes: usize,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    done: Arc<AtomicUsize>,
}

impl Writers {
    fn start(balancer: &Balancer, random: &mut fastrand::Rng) -> Self {
        let count = number_from("ROOMCAST_WRITES").map_or(WRITES, |count| usize::try_from(count).unwrap());
        let done = Arc::<AtomicUsize>::default();
        let tasks = (0..WRITERS).map(|number| {
            let writer =
                Writer { number, client: Client::new(), balancer: balancer.clone(), random: random.fork() };
            spawn(writer.run(count, done.clone()))
        });
        Self { writes: count, tasks: tasks.collect(), done }
    }

    /// Waits until this part of all writes is done.
    async fn until(&self, part: usize, parts: usize) {
        let done = WRITERS * self.writes * part / parts;
        let progress = || self.done.load(Ordering::SeqCst);
        while progress() < done {
            let before = progress();
            eventually("the writers write", async || (progress() > before).then_some(())).await;
        }
    }

    /// Waits for the end. Then each writer's count, and the sum, is exactly what was written.
    async fn finish(self, url: &str) {
        for finished in join_all(self.tasks).await {
            finished.unwrap();
        }
        assert_eq!(value(url, "counts").await, [&*self.writes.to_string(); WRITERS].join(" "));
        assert_eq!(value(url, "sum").await, (WRITERS * self.writes / 2).to_string());
    }
}

struct Writer {
    number: usize,
    client: Client,
    balancer: Balancer,
    random: fastrand::Rng,
}

impl Writer {
    async fn run(mut self, count: usize, done: Arc<AtomicUsize>) {
        for _ in 0..count {
            while !self.increase_own_count().await {}
            let key = format!("{:032x}", self.random.u128(..));
            let path = "/v1/hashes/shared/fields/sum/increment";
            let add = |client: &Client, url: String| {
                client.post(url + path).header("idempotency-key", &key).json(&json!({"by": 0.5}))
            };
            assert_eq!(self.repeat(add).await.0, 200);
            done.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Reads the value and replaces it if it is still the same. Returns whether it was.
    async fn increase_own_count(&mut self) -> bool {
        let path = "/v1/hashes/shared/fields/counts";
        let (status, tag, body) = self.repeat(|client, url| client.get(url + path)).await;
        let mut counts = [0; WRITERS];
        if status == 200 {
            let text = body["value"].as_str().unwrap();
            counts.iter_mut().zip(text.split(' ')).for_each(|(count, text)| *count = text.parse().unwrap());
        }
        counts[self.number] += 1;
        let value = counts.map(|count: usize| count.to_string()).join(" ");
        let key = format!("{:032x}", self.random.u128(..));
        let put = |client: &Client, url: String| {
            let request = client.put(url + path).header("idempotency-key", &key).body(value.clone());
            match &tag {
                Some(tag) => request.header("if-match", tag),
                None => request.header("if-none-match", "*"),
            }
        };
        match self.repeat(put).await.0 {
            200 | 201 => true,
            412 => false,
            status => panic!("a write was answered with {status}"),
        }
    }

    /// Sends a request until its outcome is known, each time to any of the replicas. Returns the status, the entity tag and
    /// the body.
    async fn repeat(
        &mut self,
        request: impl Fn(&Client, String) -> RequestBuilder,
    ) -> (u16, Option<String>, Value) {
        loop {
            let url = self.balancer.pick(&mut self.random);
            if let Ok(answer) = request(&self.client, url).timeout(DEADLINE).send().await
                && !answer.status().is_server_error()
            {
                let tag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
                let status = answer.status().as_u16();
                if let Ok(body) = answer.json().await {
                    return (status, tag, body);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn value(url: &str, field: &str) -> String {
    let answer = reqwest::get(format!("{url}/v1/hashes/shared/fields/{field}")).await.unwrap();
    answer.json::<Value>().await.unwrap()["value"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn p9_every_write_of_many_writers_counts_once_while_replicas_and_links_fail() {
    let world = World::redis().await;
    let mut random = random(3);
    let mut proxies = Vec::new();
    for _ in 0..3 {
        proxies.push(Proxy::to(world.server().port()).await);
    }
    let mut replicas: Vec<_> = proxies.iter().map(|proxy| Replica::start(&proxy.url(), &[])).collect();
    let balancer = Balancer::default();
    let balance = |replicas: &[Replica]| balancer.set(replicas.iter().map(Replica::url));
    balance(&replicas);
    for replica in &replicas {
        replica.until(200).await;
    }
    let writers = Writers::start(&balancer, &mut random);
    let links = [Link::Cut, Link::Drop(Way::ToClient), Link::Reset, Link::Drop(Way::ToServer)];
    for (step, link) in links.into_iter().enumerate() {
        writers.until(2 * step + 1, 9).await;
        let failing = random.usize(..replicas.len());
        proxies[failing].set(link);
        replicas[failing].until(503).await;
        proxies[failing].set(Link::Pass);
        writers.until(2 * step + 2, 9).await;
        let killed = random.usize(..replicas.len());
        replicas[killed].kill();
        replicas[killed] = Replica::start(&proxies[killed].url(), &[]);
        balance(&replicas);
    }
    writers.finish(replicas[0].url()).await;
}

#[tokio::test]
async fn p9_every_write_of_many_writers_counts_once_while_the_process_is_killed_and_answers_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = random(4);
    let start = || Replica::start_on(folder.path(), &[]);
    let port = |replica: &Replica| replica.url().rsplit(':').next().unwrap().parse().unwrap();
    let mut replica = start();
    // Between the writers and the gateway.
    let proxy = Proxy::to(port(&replica)).await;
    let balancer = Balancer::default();
    balancer.set([proxy.url().replace("redis:", "http:")]);
    let writers = Writers::start(&balancer, &mut random);
    for step in 1..STEPS {
        writers.until(step, STEPS).await;
        proxy.set(Link::Drop(Way::ToClient));
        value(replica.url(), "counts").await;
        if step % 4 == 0 {
            replica.kill();
            replica = start();
        }
        proxy.set(Link::Pass);
        proxy.redirect(port(&replica));
    }
    writers.finish(replica.url()).await;
}
