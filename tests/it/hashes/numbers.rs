//! Increments of whole numbers and decimals, with conditions.

use reqwest::{Method, RequestBuilder};
use serde_json::json;

use super::put;
use crate::support::{Gateway, World, random};

const FIELD: &str = "/v1/hashes/n/fields/count";
const INCREMENT: &str = "/v1/hashes/n/fields/count/increment";

/// An increment by a number in this spelling.
fn increment(gateway: &Gateway, by: &str) -> RequestBuilder {
    let request = gateway.request(Method::POST, INCREMENT).header("content-type", "application/json");
    request.body(format!(r#"{{"by":{by}}}"#))
}

/// The sum of a value and a number, or the code of the refusal.
async fn sum(gateway: &Gateway, value: &str, by: &str) -> String {
    put(gateway, FIELD, value).await;
    let (status, body) = gateway.send(increment(gateway, by)).await;
    if status == 200 {
        let sum = body["value"].as_str().unwrap().to_owned();
        assert_eq!(gateway.get(FIELD).await.1["value"], sum.as_str());
        sum
    } else {
        assert_eq!(gateway.get(FIELD).await.1["value"], value, "a refused increment has changed the value");
        body["code"].as_str().unwrap().to_owned()
    }
}

on_both_brokers! {
    async fn p9_sums_of_decimals_are_exact(world) {
        let gateway = world.gateway().await;
        for (value, by, expected) in [
            ("0.1", "0.2", "0.3"),
            ("0", "0.5", "0.5"),
            ("1.5", "0.5", "2"),
            ("2", "1", "3"),
            ("2.0", "1", "3"),
            ("1.5", "1", "2.5"),
            ("1.50", "-1.5", "0"),
            ("-0.5", "0.25", "-0.25"),
            ("0.5", "-1", "-0.5"),
            ("-1.5", "-1.5", "-3"),
            ("-0", "0.5", "0.5"),
            ("1", "1e-7", "1.0000001"),
            ("1", "25e-1", "3.5"),
            ("1", "1.0", "2"),
            ("1", "1E2", "101"),
            ("0.000000000000001", "0.000000000000002", "0.000000000000003"),
            ("999999999999.998", "0.001", "999999999999.999"),
            ("-999999999999.998", "-0.001", "-999999999999.999"),
            ("1.5000000000000000000000000", "0.5", "2"),
            ("9223372036854775806", "1", "9223372036854775807"),
            ("9223372036854775806", "1.0", "9223372036854775807"),
        ] {
            assert_eq!(sum(&gateway, value, by).await, expected, "{value} + {by}");
        }
        // Ten times a tenth is one, which it is not in binary.
        gateway.send(gateway.request(Method::DELETE, FIELD)).await;
        for _ in 0..10 {
            gateway.send(increment(&gateway, "0.1")).await;
        }
        assert_eq!(gateway.get(FIELD).await.1["value"], "1");
    }

    async fn p9_values_and_sums_out_of_range_are_refused(world) {
        let gateway = world.gateway().await;
        for (value, by) in [
            ("9223372036854775807", "1"), ("-9223372036854775808", "-1"), ("9223372036854775807", "0.5"),
            ("999999999999999", "0.1"), ("0.1", "99999999999999.9"), ("999999999999.999", "0.001"), ("1234567890123456.5", "1"),
            ("0.0000000000000001", "1"), ("1000000000000000.0", "1"), ("0.5", "1000000000000000"),
            ("green", "0.5"), ("", "0.5"), (" 1", "0.5"), ("1 ", "0.5"), ("01", "0.5"), ("01.5", "1"), ("+1", "0.5"),
            (".5", "1"), ("5.", "1"), ("1.5.5", "1"), ("1e3", "0.5"), ("--1.5", "1"), ("-", "0.5"), ("-.5", "1"), ("0x1", "0.5"),
            ("inf", "0.5"), ("nan", "0.5"), ("1,5", "0.5"), (&format!("1.5{}", "0".repeat(40)), "1"), ("1.5\n", "1"), ("-0", "1"),
        ] {
            assert_eq!(sum(&gateway, value, by).await, "not_a_number", "{value:?} + {by}");
        }
        for by in ["9223372036854775808", "1e19", "0.1234567890123456", "1e-16", "1e999999999999", "\"1\"", "[1]", "true", "01", ".5"] {
            assert_eq!(sum(&gateway, "1", by).await, "invalid_body", "{by}");
        }
    }

    async fn p9_an_increment_with_a_condition_adds_only_if_it_holds(world) {
        let gateway = world.gateway().await;
        let first = gateway.answer(increment(&gateway, "5").header("if-none-match", "*")).await;
        let tag = first.headers()["etag"].clone();
        let (status, problem) = gateway.send(increment(&gateway, "5").header("if-none-match", "*")).await;
        assert_eq!((status.as_u16(), &problem["present"]), (412, &json!({"value": "5"})));
        let (status, body) = gateway.send(increment(&gateway, "1").header("if-match", &tag)).await;
        assert_eq!((status.as_u16(), &body["value"]), (200, &json!("6")));
        let (status, problem) = gateway.send(increment(&gateway, "1").header("if-match", &tag)).await;
        assert_eq!((status.as_u16(), &problem["present"]), (412, &json!({"value": "6"})));
        gateway.send(gateway.request(Method::DELETE, FIELD)).await;
        let (status, problem) = gateway.send(increment(&gateway, "1").header("if-match", "*")).await;
        assert_eq!((status.as_u16(), &problem["present"]), (412, &json!({})));
        assert_eq!(gateway.get(FIELD).await.0, 404);
    }
}

/// A text that looks like a number.
fn random_number(random: &mut fastrand::Rng) -> String {
    let digits = |random: &mut fastrand::Rng, most: usize| -> String {
        (0..random.usize(1..=most)).map(|_| random.digit(10)).collect()
    };
    let sign = if random.u8(..3) == 0 { "-" } else { "" };
    let whole = if random.bool() { "0".to_owned() } else { digits(random, 10) };
    let zeros = "0".repeat(random.usize(..4));
    let decimals = if random.u8(..3) == 0 { String::new() } else { format!(".{zeros}{}", digits(random, 8)) };
    format!("{sign}{whole}{decimals}")
}

#[tokio::test]
async fn p9_both_brokers_add_alike() {
    let (embedded, redis) = (World::embedded(), World::redis().await);
    let (embedded, redis) = (embedded.gateway().await, redis.gateway().await);
    let (mut random, mut sums) = (random(7), 0);
    for _ in 0..400 {
        let (value, by) = (random_number(&mut random), random_number(&mut random));
        let (one, two) = (sum(&embedded, &value, &by).await, sum(&redis, &value, &by).await);
        assert_eq!(one, two, "{value} + {by}");
        sums += u32::from(one.parse::<f64>().is_ok());
    }
    assert!((100..400).contains(&sums), "{sums} sums");
}
