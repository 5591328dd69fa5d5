//! `/api/docs`: the description for people, without a word to anybody outside.

use crate::client::Api;
use crate::common::Server;

/// Whatever a page of ours loads.
const PAGES: [&str; 7] = [
    "",
    "index.css",
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-initializer.js",
    "favicon-32x32.png",
];

#[tokio::test]
async fn the_docs_are_there_without_a_key_and_may_load_nothing_from_outside() {
    let server = Server::start().await;
    let nobody = Api::with_key(&server, "none");
    let moved = nobody.get("/api/docs").await;
    assert_eq!(moved.status, 200, "it is a redirect: {moved:?}");
    for page in PAGES {
        let answer = nobody.get(&format!("/api/docs/{page}")).await;
        assert_eq!(answer.status, 200, "{page}");
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{page}: {policy}");
        assert!(policy.contains("connect-src 'self';"), "{page}: {policy}");
        assert!(!policy.contains("http"), "{page}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{page}");
    }
    let start = nobody.get("/api/docs/swagger-initializer.js").await.text;
    assert!(start.contains("\"url\": \"/api/openapi.json\""), "{start}");
    assert!(start.contains("\"validatorUrl\": \"none\""), "nobody is asked about it: {start}");
    assert_eq!(nobody.get("/api/docs/nope").await.status, 404);
}
