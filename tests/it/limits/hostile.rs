//! Hostile connections: slow heads and bodies, half-open connections, huge heads, and floods.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Gateway, Replica, Stream, spawn, within};

async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.address()).await.unwrap()
}

/// Reads until the gateway closes the connection.
async fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = within("the gateway closes the connection", socket.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn p11_slow_heads_and_bodies_end_in_time_and_others_are_served_meanwhile() {
    let gateway = Gateway::start(|settings| {
        settings.requests.header_timeout = Duration::from_secs(1);
        settings.requests.request_timeout = Duration::from_secs(1);
    });
    let gateway = gateway.await;
    let mut slow_clients = Vec::new();
    for body in [false, true] {
        for _ in 0..50 {
            let mut socket = connect(&gateway).await;
            slow_clients.push(spawn(async move {
                let head = "POST /v1/rooms/lobby/events HTTP/1.1\r\nhost: localhost\r\n";
                let whole = format!("{head}content-type: text/plain\r\ncontent-length: 1000\r\n\r\n");
                socket.write_all(if body { whole.as_bytes() } else { head.as_bytes() }).await.unwrap();
                let (mut reading, mut writing) = socket.into_split();
                let began = Instant::now();
                let dripping = spawn(async move {
                    // A little at a time, until the connection is closed.
                    while writing.write_all(if body { b"x" } else { b"x:y\r\n" }).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                });
                let mut answer = Vec::new();
                let _ = within("it is cut off", reading.read_to_end(&mut answer)).await;
                dripping.abort();
                (began.elapsed(), String::from_utf8_lossy(&answer).into_owned())
            }));
        }
    }
    gateway.publish("lobby", "meanwhile").await;
    let heads = slow_clients.len() / 2;
    for (n, client) in slow_clients.into_iter().enumerate() {
        let (took, answer) = client.await.unwrap();
        assert!(took >= Duration::from_millis(900), "{took:?}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{n}: {answer}");
    }
    // On a new connection: the ones that were kept alive are closed by now.
    let metrics = reqwest::get(format!("{}/metrics", gateway.url)).await.unwrap().text().await.unwrap();
    let line = "roomcast_rejected_total{limit=\"header_time\",kind=\"connection\"} ";
    let counted = metrics.lines().find_map(|text| text.strip_prefix(line)?.parse::<usize>().ok());
    // Idle connections that were kept alive count, too.
    assert!(counted.is_some_and(|counted| counted >= heads), "{metrics}");
}

#[tokio::test]
async fn p11_thousands_of_connections_that_say_nothing_cost_little_and_go() {
    // Each connection is an open file of the test, and one of the gateway, which is a process of its own.
    let half_open = if open_file_limit() > 15_000 { 10_000 } else { 500 };
    let gateway = Replica::start_with(&["--header-timeout", "5s"]);
    let address = gateway.url().strip_prefix("http://").unwrap().to_owned();
    let before = gateway.resident_kib();
    let mut sockets = Vec::with_capacity(half_open);
    for n in 0..half_open {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        if n % 2 == 0 {
            socket.write_all(b"GET /v1/rooms/lobby/stream HT").await.unwrap();
        }
        sockets.push(socket);
    }
    let publish = async |text: &'static str| {
        let answer =
            reqwest::Client::new().post(format!("{}/v1/rooms/lobby/events", gateway.url())).body(text).send().await;
        assert_eq!(answer.unwrap().status(), 201);
    };
    publish("meanwhile").await;
    let mut stream = Stream::open(&format!("{}/v1/rooms/lobby/stream?from=earliest", gateway.url()), None).await;
    assert_eq!(stream.data().await, "meanwhile");
    let bytes = (gateway.resident_kib() - before) * 1024 / half_open as u64;
    assert!(bytes < 32 * 1024, "{bytes} bytes for each connection");
    for socket in sockets {
        let answer = rest(socket).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    publish("after").await;
    assert_eq!(stream.data().await, "after");
}

fn open_file_limit() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(u64::MAX)
}

#[tokio::test]
async fn p11_a_head_that_is_too_large_is_refused_before_all_of_it_is_read() {
    let gateway = Gateway::start(|_| {}).await;
    for head in [
        format!("x-bomb: {}\r\n", "x".repeat(10 * 1024 * 1024)),
        "x-bomb: x\r\n".repeat(1024 * 1024),
        format!("{}: x\r\n", "x".repeat(1024 * 1024)),
        format!("cookie: {}\r\n", "a=b; ".repeat(1024 * 1024)),
    ] {
        let socket = connect(&gateway).await;
        let (mut reading, mut writing) = socket.into_split();
        let bomb = spawn(async move {
            let _ = writing.write_all(format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{head}").as_bytes()).await;
        });
        let mut answer = Vec::new();
        let _ = within("it is refused", reading.read_to_end(&mut answer)).await;
        bomb.abort();
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431") || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
    }
    gateway.publish("lobby", "after").await;
}

#[tokio::test]
async fn p7_a_flood_of_one_caller_is_refused_and_others_are_served() {
    let gateway = Gateway::start(|settings| {
        super::few(settings);
        settings.limits.rate_per_subject = 20;
    });
    let gateway = gateway.await;
    let flood = (0..8).map(|_| {
        let (url, token) = (format!("{}/v1/rooms/flood/events", gateway.url), super::as_user("eve"));
        spawn(async move {
            let client = reqwest::Client::new();
            let (mut stored, mut refused) = (0u32, 0u32);
            for _ in 0..300 {
                let answer = client.post(&url).bearer_auth(&token).body("flood").send().await.unwrap();
                match answer.status().as_u16() {
                    201 => stored += 1,
                    429 => refused += 1,
                    other => panic!("{other}"),
                }
            }
            (stored, refused)
        })
    });
    let flood: Vec<_> = flood.collect();
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(super::status(&gateway, super::publish(&gateway, "ann")).await, 201);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let (mut stored, mut refused) = (0, 0);
    for publisher in flood {
        let (its_stored, its_refused) = publisher.await.unwrap();
        stored += its_stored;
        refused += its_refused;
    }
    // The burst, the requests that each second allows, and one request in flight of each of the eight publishers.
    let most = 40 + 20 * u32::try_from(began.elapsed().as_secs() + 1).unwrap() + 8;
    assert!(stored <= most && refused > 0, "{stored} of {most} stored, {refused} refused");
}
