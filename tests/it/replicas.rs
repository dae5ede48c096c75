//! Three replicas over one Redis are one gateway.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;

use crate::support::{Gateway, World, eventually, spawn, within};

async fn three_replicas(world: &World) -> Vec<Gateway> {
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(world.gateway().await);
    }
    replicas
}

#[tokio::test]
async fn p1_five_publishers_and_nine_subscribers_on_three_replicas_see_one_order() {
    let world = World::redis().await;
    let replicas = three_replicas(&world).await;
    let mut streams = Vec::new();
    for replica in &replicas {
        for _ in 0..3 {
            streams.push(replica.room("busy").await);
        }
    }
    let publishers: Vec<_> = (0..5)
        .map(|publisher| {
            let request = replicas[publisher % 3].request(Method::POST, "/v1/rooms/busy/events");
            spawn(async move {
                for count in 0..200 {
                    let request = request.try_clone().unwrap().body(format!("{publisher} {count}"));
                    assert_eq!(request.send().await.unwrap().status(), 201);
                }
            })
        })
        .collect();
    let records = streams.into_iter().map(|mut stream| {
        spawn(async move {
            let mut record = Vec::new();
            for _ in 0..1000 {
                let event = stream.event().await;
                record.push((event.id, event.data));
            }
            record
        })
    });
    let records: Vec<_> = records.collect();
    for publisher in publishers {
        within("a publisher ends", publisher).await.unwrap();
    }
    let mut all = Vec::new();
    for record in records {
        all.push(within("a stream has all events", record).await.unwrap());
    }
    assert_eq!(all.len(), 9);
    assert!(all.iter().all(|record| *record == all[0]));
    assert_eq!(all[0].iter().map(|(id, _)| id).collect::<BTreeSet<_>>().len(), 1000);
}

#[tokio::test]
async fn p2_a_subscriber_resumes_on_another_replica() {
    let world = World::redis().await;
    let replicas = three_replicas(&world).await;
    let mut stream = replicas[0].room("moving").await;
    replicas[1].publish("moving", "1").await;
    assert_eq!(stream.data().await, "1");
    let position = stream.last_event_id.clone();
    drop(stream);
    replicas[2].publish("moving", "2").await;
    let mut stream = replicas[1].resume("/v1/rooms/moving/stream", Some(&position)).await;
    assert_eq!(stream.opened["rooms"]["moving"]["resume"], "complete");
    replicas[0].publish("moving", "3").await;
    assert_eq!(stream.datas(2).await, ["2", "3"]);
}

/// Each replica knows a different part of the lost events, and they find the loss one after the other.
#[tokio::test]
async fn p4_one_loss_is_told_by_one_gap_though_each_replica_knows_another_part_of_it() {
    let world = World::redis().await;
    let replicas = three_replicas(&world).await;
    let mut streams = Vec::new();
    for replica in &replicas {
        streams.push(replica.room("lost").await);
    }
    let start = streams[0].last_event_id.clone();
    for (replica, text) in replicas.iter().zip(["1", "2", "3"]) {
        replica.publish("lost", text).await;
    }
    for stream in &mut streams {
        assert_eq!(stream.datas(3).await, ["1", "2", "3"]);
    }
    world.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    // A replica that knows nothing of the room begins an epoch without a recorded loss.
    let newcomer = world.gateway().await;
    newcomer.publish("lost", "4").await;
    for (replica, text) in replicas.iter().zip(["5", "6", "7"]) {
        replica.publish("lost", text).await;
    }
    for (stream, replica) in streams.iter_mut().zip(&replicas) {
        let gap = stream.event().await;
        assert_eq!((gap.event.as_str(), &gap.json()["reason"]), ("stream.gap", &json!("log_lost")));
        assert_eq!(stream.datas(4).await, ["4", "5", "6", "7"]);
        // A stream that is opened now is told of no earlier loss.
        let mut fresh = replica.room("lost").await;
        replica.publish("lost", "8").await;
        assert_eq!(fresh.data().await, "8");
    }
    let mut late = newcomer.resume("/v1/rooms/lost/stream", Some(&start)).await;
    assert_eq!(late.event().await.json()["reason"], "log_lost");
    assert_eq!(late.datas(4).await, ["4", "5", "6", "7"]);
}

#[tokio::test]
async fn subscriber_counts_include_every_replica_until_it_stops() {
    let world = World::redis().await;
    let mut replicas = three_replicas(&world).await;
    let mut streams = Vec::new();
    for replica in &replicas {
        streams.push(replica.room("counted").await);
    }
    eventually("three are counted", async || {
        (replicas[0].get("/v1/rooms").await.1["rooms"] == json!([{"room": "counted", "subscribers": 3}]))
            .then_some(())
    })
    .await;
    replicas.pop().unwrap().stop().await.unwrap();
    eventually("two are counted", async || {
        (replicas[0].get("/v1/rooms/counted").await.1["subscribers"] == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn values_are_shared_by_all_replicas() {
    let world = World::redis().await;
    let replicas = three_replicas(&world).await;
    let path = "/v1/hashes/shared/fields/f";
    replicas[0].send(replicas[0].request(Method::PUT, path).body("here")).await;
    assert_eq!(replicas[1].get(path).await.1["value"], "here");
    let by = json!({"by": 1});
    let increments = (0..30).map(|count| replicas[count % 3].post("/v1/hashes/shared/fields/n/increment", &by));
    futures_util::future::join_all(increments.collect::<Vec<_>>()).await;
    assert_eq!(replicas[2].get("/v1/hashes/shared/fields/n").await.1["value"], "30");
}

#[tokio::test]
async fn deployments_with_different_prefixes_are_separate() {
    let world = World::redis().await;
    let one = world.gateway_with(|settings| settings.redis.prefix = "one".into()).await;
    let two = world.gateway_with(|settings| settings.redis.prefix = "two".into()).await;
    let mut stream = two.room("same").await;
    one.publish("same", "from one").await;
    two.publish("same", "from two").await;
    assert_eq!(stream.data().await, "from two");
    assert_eq!(one.get("/v1/rooms/same").await.1["retained"], 1);
}
