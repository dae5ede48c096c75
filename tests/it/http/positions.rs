//! Where clients put the id of the last event when they reconnect.

use reqwest::Method;

use super::refused;
use crate::support::{Gateway, Stream};

async fn open(gateway: &Gateway, path: &str, last_event_id: &str) -> Stream {
    gateway.resume(path, Some(last_event_id).filter(|id| !id.is_empty())).await
}

on_both_brokers! {
    async fn a_stream_resumes_from_the_newest_position_that_its_client_sends_in_any_place(world) {
        let gateway = world.gateway().await;
        let (mut one, mut both) = (gateway.room("lobby").await, gateway.stream("/v1/stream?room=lobby").await);
        let (mut ids, mut cursors) = (Vec::new(), Vec::new());
        for text in ["first", "second", "third"] {
            gateway.publish("lobby", text).await;
            ids.push(one.event().await.id);
            cursors.push(both.event().await.id);
        }
        for (route, ids) in [("/v1/rooms/lobby/stream?", ids), ("/v1/stream?room=lobby&", cursors)] {
            let (old, newer) = (&ids[0], &ids[1]);
            for (query, header) in [
                // event-source-polyfill and reconnecting-eventsource; Mercure; others.
                (format!("lastEventId={newer}"), String::new()),
                (format!("lastEventID={newer}"), String::new()),
                (format!("Last-Event-ID={newer}"), String::new()),
                (format!("last-event-id={newer}"), String::new()),
                (format!("last_event_id={newer}"), String::new()),
                (format!("lastEventId={newer}&after={old}"), String::new()),
                // eventsource-polyfill.
                (format!("evs_last_event_id={newer}&after={old}&evs_buffer_size_limit=262144&evs_preamble=2056"), String::new()),
                (format!("lastEventId={old}&lastEventId={newer}"), String::new()),
                (format!("Last-Event-ID={old}&lastEventId={newer}"), String::new()),
                (format!("lastEventId=&after={newer}"), String::new()),
                (format!("lastEventId={old}"), newer.clone()),
                // fetch-event-source with a start id of its own.
                (String::new(), format!("{old}, {newer}")),
                (String::new(), format!("{old},{newer}, ")),
            ] {
                let mut stream = open(&gateway, &format!("{route}{query}"), &header).await;
                let event = stream.event().await;
                assert!(event.data.contains("third"), "{query} {header}: {event:?}");
            }
        }
    }

    async fn a_position_in_a_query_of_another_route_is_refused(world) {
        let gateway = world.gateway().await;
        let read = gateway.request(Method::GET, "/v1/rooms/lobby/events?lastEventId=1-1");
        refused(&gateway, read, 400, "invalid_query").await;
        for query in ["lastEventId=x", "Last-Event-ID=1"] {
            let stream = gateway.request(Method::GET, &format!("/v1/rooms/lobby/stream?{query}"));
            refused(&gateway, stream, 400, "invalid_position").await;
        }
    }
}

#[tokio::test]
async fn a_refusal_above_the_limit_of_connections_repeats_the_position_from_any_place() {
    let gateway = Gateway::start(|settings| settings.requests.max_connections = 2).await;
    let _streams = [gateway.room("full").await, gateway.room("full").await];
    for query in ["lastEventId=7-7", "Last-Event-ID=7-7&after=1-1", "after=7-7&access_token=x&unknown=1"] {
        let refused = gateway.stream(&format!("/v1/rooms/full/stream?{query}")).await;
        assert_eq!(refused.opened["reason"], "too_many_connections");
        assert_eq!(refused.last_event_id, "7-7", "{query}");
    }
}
