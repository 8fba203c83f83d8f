//! A trait that the user implements for every type. Its methods have the same names as those that the expansion calls.

use axum::Router;
use axum::routing::post;
use idempotent_runtime::idempotent;

trait Everything {
    fn key(&mut self, _: u8) {}
    fn caller(&mut self) {}
    fn fingerprint(&self) {}
    fn cache_if(&self) {}
}

impl<T> Everything for T {}

#[idempotent(key = body, caller = body.len(), fingerprint = body.len(), cache_if = |_| true)]
async fn echo(body: String) -> String {
    body
}

fn main() {
    let _: Router = Router::new().route("/", post(echo));
}
