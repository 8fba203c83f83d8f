//! A `macro_rules!` passes the body as a `block`, and all other parts of the handler as fragments too.

use axum::Router;
use axum::routing::post;
use idempotent_runtime::idempotent;

macro_rules! handler {
    ($(#[$attribute:meta])* $visibility:vis $name:ident($pattern:pat => $argument:ty) -> $returned:ty $body:block) => {
        $(#[$attribute])*
        #[idempotent]
        $visibility async fn $name($pattern: $argument) -> $returned $body
    };
}

handler! {
    /// Documented.
    pub echo(body => String) -> String { body }
}

fn main() {
    let _: Router = Router::new().route("/", post(echo));
}
