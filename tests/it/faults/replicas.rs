//! Replicas that are killed, and replicas that shut down.

use super::stage::{Promise, Stage};
use crate::support::Replica;

#[tokio::test]
async fn p2_under_load_a_killed_replica_loses_nothing() {
    let mut stage = Stage::begin(201).await;
    let victim = stage.rng.usize(..3);
    stage.replicas[victim].kill();
    stage.replicas.remove(victim);
    stage.balancer.set(stage.replicas.iter().map(Replica::url));
    stage.some_traffic().await;
    stage.heal("`kill -9` of a replica", Promise::NoGap).await;
}

#[tokio::test]
async fn p12_under_load_a_rolling_restart_of_all_three_loses_nothing() {
    let mut stage = Stage::begin(202).await;
    for number in 0..3 {
        let old = stage.replace(number).await;
        // The balancer notices late: it still sends clients to the replica that shuts down.
        stage.balancer.set(stage.replicas.iter().chain([&old]).map(Replica::url));
        assert_eq!(old.terminate().await, Some(0));
        stage.balancer.set(stage.replicas.iter().map(Replica::url));
    }
    stage.heal("Rolling restart of all three replicas (`SIGTERM`)", Promise::NoGap).await;
}
