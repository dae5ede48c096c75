//! What browsers load from the gateway: the index, the console, the page of the API, the browser module.

use reqwest::{Method, Response};
use serde_json::Value;

use crate::auth::close;
use crate::support::Gateway;

async fn get(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = gateway.request(Method::GET, path);
    gateway.answer(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn browsers_get_the_console_and_programs_an_index() {
    let gateway = Gateway::start(close).await;
    let chromium = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let page = get(&gateway, "/", &[("accept", chromium)]).await;
    assert_eq!((page.status().as_u16(), header(&page, "vary")), (200, "accept"));
    assert!(
        header(&page, "content-security-policy")
            .starts_with("default-src 'none'; script-src 'self'; style-src 'self';")
    );
    assert!(page.text().await.unwrap().starts_with("<!doctype html>"));
    for accept in ["*/*", "application/json", "text/plain"] {
        let index: Value = get(&gateway, "/", &[("accept", accept)]).await.json().await.unwrap();
        assert_eq!((&index["name"], &index["openapi"]), (&"roomcast".into(), &"/openapi.json".into()), "{accept}");
        // Each of its paths is one.
        for path in ["openapi", "health", "browser_module", "console", "api_page"] {
            assert_eq!(get(&gateway, index[path].as_str().unwrap(), &[]).await.status(), 200, "{path}");
        }
    }
}

#[tokio::test]
async fn files_for_browsers_are_revalidated_and_have_their_types() {
    let gateway = Gateway::start(|_| {}).await;
    for (path, media_type) in [
        ("/roomcast.js", "text/javascript; charset=utf-8"),
        ("/console/console.js", "text/javascript; charset=utf-8"),
        ("/console/console.css", "text/css; charset=utf-8"),
        ("/docs/swagger-ui-bundle.js", "text/javascript"),
        ("/docs/swagger-ui.css", "text/css"),
    ] {
        let first = get(&gateway, path, &[]).await;
        assert_eq!((first.status().as_u16(), header(&first, "content-type")), (200, media_type), "{path}");
        assert_eq!(
            (header(&first, "cache-control"), header(&first, "x-content-type-options")),
            ("no-cache", "nosniff")
        );
        let again = get(&gateway, path, &[("if-none-match", header(&first, "etag"))]).await;
        assert_eq!((again.status().as_u16(), again.bytes().await.unwrap().len()), (304, 0), "{path}");
    }
    assert_eq!(get(&gateway, "/docs/no-such-file.js", &[]).await.status(), 404);
    assert_eq!(header(&get(&gateway, "/livez", &[]).await, "content-security-policy").find("script-src"), None);
}

#[tokio::test]
async fn a_setting_turns_the_console_off() {
    let gateway = Gateway::start(|settings| settings.server.no_console = true).await;
    let index: Value = get(&gateway, "/", &[("accept", "text/html")]).await.json().await.unwrap();
    assert_eq!((&index["name"], &index["console"]), (&"roomcast".into(), &Value::Null));
    for path in ["/docs", "/docs/", "/docs/swagger-ui.css", "/console/console.js"] {
        assert_eq!(get(&gateway, path, &[]).await.status(), 404, "{path}");
    }
    assert_eq!(get(&gateway, "/roomcast.js", &[]).await.status(), 200);
}
