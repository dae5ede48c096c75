//! Web pages: their origins, and tokens in cookies.

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::{all, claims, close, token};
use crate::support::{Gateway, World};

const PAGE: &str = "https://app.example";

async fn gateway() -> Gateway {
    Gateway::start(|settings| {
        close(settings);
        settings.access.cors_origin = vec![PAGE.parse().unwrap(), "http://localhost:3000".parse().unwrap()];
    })
    .await
}

#[tokio::test]
async fn a_write_with_the_token_in_a_cookie_needs_an_origin_that_is_allowed() {
    let gateway = gateway().await;
    let cookie = format!("theme=dark; __Host-roomcast={}", token(&claims(&all())));
    for (method, path) in [
        (Method::POST, "/v1/rooms/lobby/events"),
        (Method::PUT, "/v1/hashes/lamp/fields/colour"),
        (Method::DELETE, "/v1/hashes/lamp"),
    ] {
        let write = |origin: Option<&str>| {
            let request = gateway.request(method.clone(), path).header("cookie", &cookie).body("green");
            gateway.send(match origin {
                Some(origin) => request.header("origin", origin),
                None => request,
            })
        };
        for origin in [
            None,
            Some("null"),
            Some("https://evil.example"),
            Some("https://app.example.evil"),
            Some("http://app.example"),
        ] {
            let (status, problem) = write(origin).await;
            assert_eq!((status.as_u16(), &problem["code"]), (403, &json!("origin_not_allowed")), "{origin:?}");
        }
        assert!(write(Some(PAGE)).await.0.is_success());
        // A form of another site can't set this header.
        let request = gateway.request(method, path).bearer_auth(token(&claims(&all()))).body("green");
        assert!(gateway.send(request.header("cookie", &cookie)).await.0 != StatusCode::FORBIDDEN);
    }
    let read = gateway.request(Method::GET, "/v1/rooms/lobby/events").header("cookie", &cookie);
    assert_eq!(gateway.send(read).await.0, StatusCode::OK);
}

/// Headers that browsers send with the requests of pages of other sites.
const FOREIGN: [&[(&str, &str)]; 6] = [
    &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")],
    &[("origin", "https://evil.app.example"), ("sec-fetch-site", "same-site")],
    &[("origin", "null")],
    &[("origin", "https://evil.example")],
    // An image, or a link.
    &[("sec-fetch-site", "cross-site")],
    &[("sec-fetch-site", "same-site")],
];
/// Headers that browsers send with the requests of allowed pages, of the gateway's own pages, and of its user.
const OWN: [&[(&str, &str)]; 4] = [
    &[("origin", PAGE), ("sec-fetch-site", "cross-site")],
    &[("sec-fetch-site", "same-origin")],
    &[("sec-fetch-site", "none")],
    // A browser without Fetch metadata, at its own page.
    &[],
];
const STREAMS: [&str; 2] = ["/v1/rooms/lobby/stream?", "/v1/stream?room=lobby&"];

fn with_headers(request: RequestBuilder, headers: &[(&str, &str)]) -> RequestBuilder {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

async fn closed(world: &World) -> Gateway {
    world
        .gateway_with(|settings| {
            close(settings);
            settings.access.cors_origin = vec![PAGE.parse().unwrap()];
            settings.access.anonymous = vec!["subscribe=open".parse().unwrap()];
        })
        .await
}

on_both_brokers! {
    async fn a_page_of_another_site_opens_no_stream_with_the_users_cookie(world) {
        let gateway = closed(&world).await;
        let token = token(&claims(&all()));
        let cookie = format!("__Host-roomcast={token}");
        let publish = || gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(&token).body("hello");
        let path = format!("/v1/rooms/lobby/stream?subscriber=desk&access_token={token}");
        let mut own = gateway.stream(&path).await;
        for (headers, path) in FOREIGN.iter().flat_map(|headers| STREAMS.map(|path| (headers, path))) {
            for query in ["subscriber=desk", "presence=true", ""] {
                let request = gateway.request(Method::GET, &format!("{path}{query}")).header("cookie", &cookie);
                let answer = gateway.answer(with_headers(request, headers)).await;
                assert_eq!(answer.status().as_u16(), 403, "{path}{query} {headers:?}");
                assert_eq!(answer.json::<Value>().await.unwrap()["code"], "origin_not_allowed");
            }
            let request = gateway.request(Method::HEAD, &format!("{path}subscriber=desk")).header("cookie", &cookie);
            assert_eq!(gateway.answer(with_headers(request, headers)).await.status().as_u16(), 403);
        }
        gateway.send(publish()).await;
        assert_eq!(own.data().await, "hello", "the user's own stream goes on");
        for (headers, path) in OWN.iter().flat_map(|headers| STREAMS.map(|path| (headers, path))) {
            let request = gateway.request(Method::GET, &format!("{path}subscriber=desk")).header("cookie", &cookie);
            let mut stream = gateway.answer(with_headers(request, headers)).await;
            assert_eq!(stream.status(), StatusCode::OK, "{headers:?}");
            let first = stream.chunk().await.unwrap().unwrap();
            assert!(String::from_utf8_lossy(&first).contains("stream.open"), "{first:?}");
        }
        assert_eq!(own.event().await.event, "stream.end", "its own page has taken over");
    }

    async fn a_page_of_another_site_takes_no_name_even_if_callers_without_a_token_may(world) {
        let gateway = closed(&world).await;
        let mut own = gateway.stream("/v1/rooms/open/stream?subscriber=desk").await;
        for headers in FOREIGN {
            let stream = |query: &str| {
                let request = gateway.request(Method::GET, &format!("/v1/rooms/open/stream{query}"));
                gateway.answer(with_headers(request, headers))
            };
            assert_eq!(stream("?subscriber=desk").await.status().as_u16(), 403, "{headers:?}");
            // Without a name, the stream reads what everybody may read.
            assert_eq!(stream("").await.status().as_u16(), 200, "{headers:?}");
        }
        let publish = gateway.request(Method::POST, "/v1/rooms/open/events").bearer_auth(token(&claims(&all())));
        gateway.send(publish.body("hello")).await;
        assert_eq!(own.data().await, "hello");
    }

    async fn a_page_that_could_not_read_the_answer_changes_nothing_without_keys(world) {
        let gateway = world.gateway_with(|settings| settings.access.cors_origin = vec![PAGE.parse().unwrap()]).await;
        let insecure = world.gateway_with(|settings| settings.access.insecure_allow_anonymous = true).await;
        // A page on another port of this machine.
        let page = "http://localhost:3000";
        let foreign: [&[(&str, &str)]; 3] =
            [&[("origin", page)], &[("origin", page), ("sec-fetch-site", "same-site")], &[("origin", "http://127.0.0.1")]];
        for (gateway, headers) in [&gateway, &insecure].into_iter().flat_map(|gateway| foreign.map(|headers| (gateway, headers))) {
            for (method, path) in [
                (Method::POST, "/v1/rooms/lobby/events"),
                (Method::POST, "/v1/rooms/lobby/events?event=chat"),
                (Method::PUT, "/v1/hashes/lamp/fields/colour"),
                (Method::DELETE, "/v1/hashes/lamp"),
                (Method::DELETE, "/v1/rooms/lobby/events"),
                (Method::GET, "/v1/rooms/lobby/stream?subscriber=desk"),
                (Method::GET, "/v1/stream?room=lobby&presence=true"),
            ] {
                let request = with_headers(gateway.request(method, path).body("green"), headers);
                let (status, problem) = gateway.send(request).await;
                assert_eq!((status.as_u16(), &problem["code"]), (403, &json!("origin_not_allowed")), "{path}");
                let detail = problem["detail"].as_str().unwrap();
                assert!(detail.contains("--cors-origin") && detail.contains(headers[0].1), "{detail}");
            }
            assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], 0);
            let read = with_headers(gateway.request(Method::GET, "/v1/rooms/lobby/events"), headers);
            assert_eq!(gateway.send(read).await.0, StatusCode::OK);
        }
        let (own, port) = (gateway.url.clone(), gateway.address().rsplit(':').next().unwrap());
        let own_name = format!("http://LOCALHOST:{port}");
        for (host, headers) in [
            ("", &[("origin", own.as_str())][..]),
            ("", &[("origin", &own), ("sec-fetch-site", "same-origin")]),
            (own_name.strip_prefix("http://").unwrap(), &[("origin", &own_name.to_lowercase())]),
            // A proxy of a page's own server may change the host.
            ("", &[("origin", page), ("sec-fetch-site", "same-origin")]),
            ("localhost", &[("origin", "http://localhost")]),
            ("localhost:443", &[("origin", "https://localhost")]),
            ("", &[("origin", PAGE), ("sec-fetch-site", "cross-site")]),
            ("", &[]),
        ] {
            let request = gateway.request(Method::POST, "/v1/rooms/own/events").body("hello");
            let request = if host.is_empty() { request } else { request.header("host", host) };
            let (status, answer) = gateway.send(with_headers(request, headers)).await;
            assert_eq!(status.as_u16(), 201, "{host} {headers:?} {answer}");
        }
    }

    async fn a_head_request_of_a_stream_enters_nothing(world) {
        let gateway = closed(&world).await;
        let token = token(&claims(&all()));
        let mut own = gateway.stream(&format!("/v1/rooms/lobby/stream?subscriber=desk&access_token={token}")).await;
        for path in STREAMS {
            for name in ["desk", "other"] {
                let path = format!("{path}presence=true&subscriber={name}");
                let answer = gateway.answer(gateway.request(Method::HEAD, &path).bearer_auth(&token)).await;
                assert_eq!(answer.status().as_u16(), 200);
                assert_eq!(answer.headers()["content-type"], "text/event-stream");
            }
            let unnamed = gateway.answer(gateway.request(Method::HEAD, path)).await;
            assert_eq!(unnamed.status().as_u16(), 401);
        }
        let list = gateway.request(Method::GET, "/v1/rooms/lobby/subscribers").bearer_auth(&token);
        let list = gateway.send(list).await.1;
        assert_eq!(list["subscribers"].as_array().unwrap().len(), 1, "{list}");
        let publish = gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(&token);
        gateway.send(publish.body("hello")).await;
        assert_eq!(own.data().await, "hello");
        let log = gateway.send(gateway.request(Method::GET, "/v1/rooms/lobby/events").bearer_auth(&token)).await.1;
        assert_eq!(log["events"].as_array().unwrap().len(), 1, "nobody has asked for joins and leaves: {log}");
    }
}

#[tokio::test]
async fn cors_headers_are_for_pages_of_allowed_origins_only() {
    let gateway = gateway().await;
    let preflight = async |origin: &str| {
        let request = gateway.request(Method::OPTIONS, "/v1/rooms/lobby/events").header("origin", origin);
        let wanted = "authorization,content-type,idempotency-key,if-match,if-none-match,last-event-id,\
                      traceparent,tracestate,baggage,x-requested-with";
        let request = request.header("access-control-request-method", "POST");
        gateway.answer(request.header("access-control-request-headers", wanted)).await
    };
    let answer = preflight(PAGE).await;
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_ascii_lowercase());
    assert_eq!(header("access-control-allow-origin").as_deref(), Some(PAGE));
    assert_eq!(header("access-control-allow-credentials").as_deref(), Some("true"));
    for (name, words) in [
        ("access-control-allow-methods", &["post", "put", "patch", "delete"][..]),
        (
            "access-control-allow-headers",
            &[
                "authorization",
                "idempotency-key",
                "if-match",
                "if-none-match",
                "last-event-id",
                "traceparent",
                "tracestate",
                "baggage",
                "x-requested-with",
            ],
        ),
        ("vary", &["origin"]),
    ] {
        let text = header(name).unwrap();
        assert!(words.iter().all(|word| text.contains(word)), "{name}: {text}");
    }
    for other in ["https://evil.example", "null", "https://app.example:8443", "http://app.example"] {
        assert_eq!(preflight(other).await.headers().get("access-control-allow-origin"), None, "{other}");
    }
    // The page can read refusals, too.
    for path in ["/v1/rooms/lobby/events", "/nowhere"] {
        let answer = gateway.answer(gateway.request(Method::GET, path).header("origin", PAGE)).await;
        assert!(answer.status().is_client_error());
        assert_eq!(answer.headers()["access-control-allow-origin"], PAGE);
        let exposed = answer.headers()["access-control-expose-headers"].to_str().unwrap().to_ascii_lowercase();
        for name in ["etag", "link", "retry-after", "x-request-id"] {
            assert!(exposed.contains(name), "{exposed}");
        }
    }
    // A cache must not give one page's response to another.
    let answer = gateway.answer(gateway.request(Method::GET, "/v1/hashes/lamp")).await;
    let admin = token(&claims(&json!({"admin": true})));
    let put = gateway.request(Method::PUT, "/v1/hashes/lamp/fields/colour").bearer_auth(&admin).body("green");
    assert_eq!(gateway.send(put).await.0, StatusCode::CREATED);
    let field = gateway.request(Method::GET, "/v1/hashes/lamp/fields/colour").bearer_auth(&admin);
    let field = gateway.answer(field).await;
    let varies: Vec<_> = field.headers().get_all("vary").into_iter().map(|value| value.to_str().unwrap()).collect();
    let varies = varies.join(",").to_ascii_lowercase();
    assert!(varies.contains("origin") && varies.contains("accept"), "{varies}");
    let vary: Vec<_> = answer.headers().get_all("vary").into_iter().map(|value| value.to_str().unwrap()).collect();
    assert!(vary.join(",").to_ascii_lowercase().contains("origin"), "{vary:?}");
}

#[tokio::test]
async fn headers_keep_browsers_from_running_guessing_and_storing_responses() {
    let gateway = gateway().await;
    for path in ["/v1/rooms/lobby/events", "/openapi.json", "/nowhere"] {
        let answer = gateway.answer(gateway.request(Method::GET, path).bearer_auth(token(&claims(&all())))).await;
        let headers = answer.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
        assert!(headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
        assert_eq!(headers["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn an_open_gateway_on_loopback_serves_pages_of_allowed_origins() {
    let gateway = Gateway::start(|settings| settings.access.cors_origin = vec![PAGE.parse().unwrap()]).await;
    for (origin, status) in [(PAGE, 201), ("https://evil.example", 403)] {
        let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").body("hello");
        let request = request.header("origin", origin).header("sec-fetch-site", "cross-site");
        assert_eq!(gateway.send(request).await.0.as_u16(), status, "{origin}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_writes_nothing_even_if_callers_without_a_token_may() {
    let gateway = Gateway::start(|settings| {
        close(settings);
        settings.access.anonymous = vec!["publish=open".parse().unwrap()];
        settings.access.cors_origin = vec![PAGE.parse().unwrap()];
    })
    .await;
    for (origin, status) in
        [(None, 201), (Some(PAGE), 201), (Some("https://evil.example"), 403), (Some("null"), 403)]
    {
        let request = gateway.request(Method::POST, "/v1/rooms/open/events").body("hello");
        let request = match origin {
            Some(origin) => request.header("origin", origin),
            None => request,
        };
        assert_eq!(gateway.send(request).await.0.as_u16(), status, "{origin:?}");
    }
}

#[tokio::test]
async fn the_tokens_cookie_is_found_beside_any_others() {
    let gateway = gateway().await;
    let own = format!("__Host-roomcast={}", token(&claims(&all())));
    let quoted = own.replacen('=', "=\"", 1) + "\"";
    let (utf8, latin, own) = ("name=Zo\u{eb}".as_bytes(), &b"name=Zo\xeb"[..], own.as_bytes());
    for lines in [
        vec![[utf8, b"; ", own].concat()],
        vec![[own, b"; ", latin].concat()],
        vec![latin.to_vec(), own.to_vec(), utf8.to_vec()],
        vec![[latin, b";", quoted.as_bytes(), b";flag; a=b=c"].concat()],
        vec![[b"__Host-roomcast=; __Host-roomcast=\"\";", own].concat()],
        vec![[b"\xff; =x; \xeb=1; ", own].concat()],
    ] {
        let request = gateway.request(Method::GET, "/v1/rooms/lobby");
        let request = lines.iter().fold(request, |request, line| request.header("cookie", &line[..]));
        assert_eq!(gateway.send(request).await.0, StatusCode::OK, "{:?}", String::from_utf8_lossy(&lines.concat()));
    }
}

#[tokio::test]
async fn an_empty_or_second_token_does_not_hide_the_callers_own() {
    let gateway = gateway().await;
    let own = token(&claims(&all()));
    let query = format!("/v1/rooms/lobby/stream?access_token=&access_token={own}");
    assert!(gateway.stream(&query).await.opened.get("rooms").is_some());
    let get = |second: &str| {
        let request = gateway.request(Method::GET, "/v1/rooms/lobby").bearer_auth(&own);
        gateway.send(request.header("authorization", second))
    };
    assert_eq!(get(&format!("Bearer {own}")).await.0, StatusCode::OK);
    let (status, problem) = get("Bearer x.y.z").await;
    assert_eq!((status.as_u16(), &problem["code"]), (401, &json!("token_invalid")));
}

#[tokio::test]
async fn a_page_that_could_not_read_the_answer_writes_nothing_with_a_token_in_the_query() {
    let gateway = gateway().await;
    let path = format!("/v1/rooms/lobby/events?access_token={}", token(&claims(&all())));
    let write = |headers: &[(&str, &str)]| {
        gateway.send(with_headers(gateway.request(Method::POST, &path).body("hello"), headers))
    };
    for headers in FOREIGN {
        let (status, problem) = write(headers).await;
        assert_eq!((status.as_u16(), &problem["code"]), (403, &json!("origin_not_allowed")), "{headers:?}");
    }
    for headers in OWN {
        assert_eq!(write(headers).await.0.as_u16(), 201, "{headers:?}");
    }
}

#[tokio::test]
async fn a_write_with_a_cookie_of_the_gateways_own_page_needs_no_list() {
    let gateway = gateway().await;
    let cookie = format!("__Host-roomcast={}", token(&claims(&all())));
    let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").header("cookie", cookie).body("hello");
    let request = with_headers(request, &[("origin", &gateway.url), ("sec-fetch-site", "same-origin")]);
    assert_eq!(gateway.send(request).await.0.as_u16(), 201);
}

#[tokio::test]
async fn pages_of_applications_have_origins_that_can_be_listed() {
    let pages = [
        "capacitor://localhost",
        "ionic://localhost",
        "tauri://localhost",
        "app://.",
        "chrome-extension://abcdefghij",
    ];
    let gateway = Gateway::start(|settings| {
        settings.access.cors_origin = pages.iter().map(|page| page.parse().unwrap()).collect();
    })
    .await;
    for page in pages {
        let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").body("hello").header("origin", page);
        let answer = gateway.answer(request.header("sec-fetch-site", "cross-site")).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(answer.headers()["access-control-allow-origin"], page);
    }
    for refused in ["null", "*", "file://"] {
        crate::cli::refuses(&["--cors-origin", refused], &["--cors-origin", "pages of anybody"]);
    }
}
